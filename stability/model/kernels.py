"""How attention is computed: kernels that mix values by the same formula, and differ in speed, memory and rounding.

`plain`      all logits of all heads at once
`blockwise`  a block of queries at a time against the keys that it may see; backpropagation computes its logits again
`cudnn`      fused, on NVIDIA GPUs, in bfloat16: logits never leave the chip (arXiv 2205.14135)
`splash`     fused, on TPUs: JAX's Pallas kernel

Shapes: B batch, T time, H heads, K head dim, Q queries of a block, P keys up to a block's last query.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from stability.config import Kernel, RunConfig, Scalar, largest_divisor
from stability.errors import InputError

Weigh = Callable[[Float[Array, "B H Q P"]], Float[Array, "B H Q P"]]
"""From causal logits (minus infinity in the future) to weights, both float32."""

PLAIN_UP_TO = 1024
"""Sequences up to which `auto` computes all logits at once where no fused kernel serves."""
MOST_BLOCKS = 8
"""Blocks of queries that `blockwise` makes at most: each is code of its own, since each sees another number of keys."""
SMALLEST_BLOCK = 64
CUDNN_HEAD_DIM = 128
"""The largest that cuDNN's fused kernel takes forward and backward on every GPU that has it."""
TILE = 128
"""Rows and columns that matrix units are fastest with: `splash` wants sequences of whole tiles."""
SPLASH_BLOCK = 512
"""Queries and keys that `splash` looks at together, at most, as in MaxText: between JAX's own 128 a TPU would wait."""


def product(query: Float[Array, "B Q H K"], key: Float[Array, "B P H K"]) -> Float[Array, "B H Q P"]:
    """q.k of every pair, accumulated in float32 whatever the precision of the two."""
    return jnp.einsum("bqhk,bphk->bhqp", query, key, preferred_element_type=jnp.float32)


def causal_logits(dot_BxHxQxP: Float[Array, "B H Q P"], scale: Scalar, first: Scalar = 0) -> Float[Array, "B H Q P"]:
    """Attention logits: q.k x scale, minus infinity where the key lies in the future.

    Args:
        dot_BxHxQxP: of queries at places `first`, `first` + 1, ... and keys at places 0, 1, ...
        scale: of the logits.
        first: the place of the first query.
    """
    return jnp.where(is_past(dot_BxHxQxP.shape[2:], first), dot_BxHxQxP * scale, -jnp.inf)


def is_past(shape: tuple[int, ...], first: Scalar = 0) -> Array:
    """[1, 1, Q, P]: whether a query may see a key, the first query being at place `first`."""
    queries = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + first
    return (queries >= jax.lax.broadcasted_iota(jnp.int32, shape, 1))[None, None]


def plain(query: Array, key: Array, value: Array, scale: Scalar, weigh: Weigh) -> Float[Array, "B T H K"]:
    """Mix values, all logits at once."""
    return _mix(query, key, value, scale, weigh, 0)


def _mix(query: Array, key: Array, value: Array, scale: Scalar, weigh: Weigh, first: int) -> Float[Array, "B Q H K"]:
    """Values mixed for queries at places `first`, `first` + 1, ..."""
    weight = weigh(causal_logits(product(query, key), scale, first))
    return jnp.einsum("bhqp,bphk->bqhk", weight.astype(value.dtype), value)


def blockwise(query: Array, key: Array, value: Array, scale: Scalar, weigh: Weigh) -> Float[Array, "B T H K"]:
    """Mix values, a block of queries at a time: at most 1 / `MOST_BLOCKS` of the logits are there at once."""
    time = query.shape[1]
    size = largest_divisor(time, max(SMALLEST_BLOCK, -(-time // MOST_BLOCKS)))

    def block(first: int) -> Array:
        last = first + size
        mixed: Array = jax.checkpoint(partial(_mix, weigh=weigh, first=first))(
            query[:, first:last], key[:, :last], value[:, :last], scale
        )
        return mixed

    return jnp.concatenate([block(first) for first in range(0, time, size)], axis=1)


def cudnn(query: Array, key: Array, value: Array, scale: Scalar) -> Float[Array, "B T H K"]:
    """Softmax attention by cuDNN's fused kernel, which takes a scale that is known when the program is traced."""
    if not isinstance(scale, float):
        query, scale = _scaled(query, scale), 1.0
    return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=True, implementation="cudnn")


def _scaled(query: Array, scale: Scalar) -> Array:
    """Queries times the scale, rounded to their own precision: exact where the scale is a power of two."""
    return (query.astype(jnp.float32) * scale).astype(query.dtype)


def splash(query: Array, key: Array, value: Array, scale: Scalar, interpret: bool = False) -> Float[Array, "B T H K"]:
    """Softmax attention by JAX's Pallas kernel for TPUs, head dims filled up with zeros to whole tiles.

    Args:
        query: and key and value, of whole tiles of time.
        key: see query.
        value: see query.
        scale: multiplies the queries before they enter the kernel, which takes none.
        interpret: execute on any device, slowly: for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    _, time, heads, head_dim = query.shape
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((time, time))] * heads)
    block = TILE * largest_divisor(time // TILE, SPLASH_BLOCK // TILE)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash_attention_kernel.make_splash_mha(
        mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    filler = [(0, 0), (0, 0), (0, 0), (0, -head_dim % TILE)]
    q, k, v = (jnp.pad(x, filler).swapaxes(1, 2) for x in (_scaled(query, scale), key, value))
    mixed: Array = jax.vmap(kernel)(q, k, v).swapaxes(1, 2)[..., :head_dim]
    return mixed.astype(value.dtype)


FUSED: dict[Kernel, Callable[..., Array]] = {"cudnn": cudnn, "splash": splash}


def mix(kernel: Kernel, query: Array, key: Array, value: Array, scale: Scalar, weigh: Weigh) -> Float[Array, "B T H K"]:
    """Values mixed over the past of each position, by the kernel of that name.

    Args:
        kernel: which; those that are fused compute softmax weights, whatever `weigh` says.
        query: as it enters the product; [B, T, H, K], as are key and value.
        key: see query.
        value: see query.
        scale: of the logits.
        weigh: from causal logits to weights.
    """
    if kernel == "plain":
        return plain(query, key, value, scale, weigh)
    if kernel == "blockwise":
        return blockwise(query, key, value, scale, weigh)
    return _on_each_device(partial(FUSED[kernel], scale=scale), query, key, value)


def _on_each_device(kernel: Callable[..., Array], *arrays: Array) -> Array:
    """A kernel that the compiler cannot divide, executed by each device that shares a batch on its own rows of it.

    Axes with a single device are named too: a TPU's compiler refuses a kernel while any axis is left to it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Auto)
    if not axes:
        return kernel(*arrays)
    rows = PartitionSpec(axes)  # type: ignore[no-untyped-call]
    divided = jax.shard_map(kernel, in_specs=rows, out_specs=rows, axis_names=set(axes), check_vma=False)
    return divided(*arrays)


def chosen_kernel(config: RunConfig) -> Kernel:
    """The kernel that a run uses on the devices at hand: the one asked for, or what `auto` stands for."""
    asked = config.compute.attention
    if asked != "auto":
        return asked
    if _why_not_splash(config) is None:
        return "splash"
    if _why_not_cudnn(config) is None:
        return "cudnn"
    return "plain" if config.training.sequence_length <= PLAIN_UP_TO else "blockwise"


def refuse_kernel(config: RunConfig) -> None:
    """Refuse a fused kernel that the devices at hand, or the run's sizes, do not allow.

    Raises:
        InputError: names what stands in its way.
    """
    asked = config.compute.attention
    why = {"cudnn": _why_not_cudnn, "splash": _why_not_splash}.get(asked, lambda _: None)(config)
    if why is not None and config.model.attention != "none":
        raise InputError("compute.attention", asked, why, "Choose auto, which takes it where it can be used.")


def _why_not_cudnn(config: RunConfig) -> str | None:
    model, training = config.model, config.training
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return f"needs an NVIDIA GPU, and this is {device.device_kind}"
    if float(device.compute_capability) < 8.0:
        return f"needs an NVIDIA GPU of compute capability 8.0, and this one has {device.compute_capability}"
    if training.precision != "bfloat16":
        return f"computes in bfloat16, and training.precision={training.precision}"
    if model.head_dim % 8 or model.head_dim > CUDNN_HEAD_DIM:
        return f"takes head dims of 8, 16, ... {CUDNN_HEAD_DIM}, and model.head_dim={model.head_dim}"
    return _why_not_fused(config, SMALLEST_BLOCK)


def _why_not_splash(config: RunConfig) -> str | None:
    device = jax.local_devices()[0]
    if device.platform != "tpu":
        return f"needs a TPU, and this is {device.device_kind}"
    return _why_not_fused(config, TILE)


def _why_not_fused(config: RunConfig, whole: int) -> str | None:
    model, training = config.model, config.training
    if model.attention != "softmax":
        return f"computes softmax weights, and model.attention={model.attention}"
    if training.sequence_length % whole:
        return f"takes sequences of multiples of {whole}, and training.sequence_length={training.sequence_length}"
    return None
