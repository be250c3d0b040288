"""Attention, MLP and norms, and the tables from which a config picks its attention and MLP by name.

Shapes: B batch, T time, S = B x T positions, D width, H heads, K head dim, Q queries and P keys of a part.
Activations travel as [S, D]: on CPU one flat matrix product is 1.3 times faster than a batched one.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from stability.config import ModelConfig, Role, RunConfig, Scalar, largest_divisor
from stability.model import kernels
from stability.model.axes import cut_by_role, cut_by_rows, sharers, whole
from stability.model.kernels import chosen_kernel
from stability.model.observation import Observations, combined, dealt, rms, when
from stability.model.parameterization import attention_scale, gain, matrix, rule

TRANSPOSED_FROM = 128
"""Fan-in from which on `product` transposes its input for the gradient on a CPU; below it costs what it saves."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x_SxI: Float[Array, "S I"], kernel_IxO: Float[Array, "I O"], result: DTypeLike | None = None
) -> Float[Array, "S O"]:
    """x W in the precision of x; the gradient of W keeps W's own precision.

    On a CPU that gradient, x^T dy, is a product of an x^T that lies in memory as such: XLA would read x and dy across
    their rows at half the speed (docs/lab_notebook.md). Other devices transpose as they read, at no cost.

    Args:
        x_SxI: activations.
        kernel_IxO: a weight, in float32.
        result: the type of the result; None is that of x. Products are summed up in float32 in any case.
    """
    return _forward(x_SxI, kernel_IxO, result)


def _forward(x_SxI: Array, kernel_IxO: Array, result: DTypeLike | None) -> Array:
    kernel_IxO = whole(kernel_IxO.astype(x_SxI.dtype))
    return jnp.matmul(x_SxI, kernel_IxO, preferred_element_type=result or x_SxI.dtype)


def _product_forward(x_SxI: Array, kernel_IxO: Array, result: DTypeLike | None) -> tuple[Array, tuple[Array, Array]]:
    return _forward(x_SxI, kernel_IxO, result), (x_SxI, kernel_IxO)


def _product_backward(result: DTypeLike | None, saved: tuple[Array, Array], dy_SxO: Array) -> tuple[Array, Array]:
    x_SxI, kernel_IxO = saved
    dy_SxO = dy_SxO.astype(x_SxI.dtype)

    def as_read(x_SxI: Array, dy_SxO: Array) -> Array:
        return jnp.matmul(x_SxI.T, dy_SxO, preferred_element_type=kernel_IxO.dtype)

    def transposed(x_SxI: Array, dy_SxO: Array) -> Array:
        x_IxS: Array = jax.lax.optimization_barrier(x_SxI.T)  # type: ignore[no-untyped-call]
        return jnp.matmul(x_IxS, dy_SxO, preferred_element_type=kernel_IxO.dtype)

    dx_SxI = jnp.matmul(dy_SxO, whole(kernel_IxO.astype(x_SxI.dtype)).T)
    if kernel_IxO.shape[0] < TRANSPOSED_FROM:
        return dx_SxI, as_read(x_SxI, dy_SxO)
    return dx_SxI, jax.lax.platform_dependent(x_SxI, dy_SxO, cpu=transposed, default=as_read)


product.defvjp(_product_forward, _product_backward)


class Dense(nnx.Module):
    """A matrix product without bias, times the forward multiplier of its role."""

    def __init__(self, config: ModelConfig, role: Role, fan_in: int, fan_out: int, rngs: nnx.Rngs) -> None:
        self.role = role
        self.kernel = matrix(config, role, rngs.params(), (fan_in, fan_out), fan_in)
        self.multiplier = rule(config, role, fan_in).forward

    def __call__(
        self, x_SxI: Float[Array, "S I"], result: DTypeLike | None = None, whole_tiles_of: int = 1
    ) -> Float[Array, "S O"]:
        """x W x multiplier, in the precision of x or the one given.

        Args:
            x_SxI: activations.
            result: see `product`.
            whole_tiles_of: the number of outputs is filled up to a multiple of this, with zeros.
        """
        kernel_IxO = self.kernel[...]
        if missing := -kernel_IxO.shape[1] % whole_tiles_of:
            kernel_IxO = jnp.pad(kernel_IxO, [(0, 0), (0, missing)])
            if sharers() > 1:
                # For the gradient: XLA for TPUs fails where it may join cutting it with leaving out its filler.
                apart: Array = jax.lax.optimization_barrier(kernel_IxO)  # type: ignore[no-untyped-call]
                kernel_IxO = cut_by_role(self.role, apart)
        y_SxO = product(x_SxI, kernel_IxO, result)
        return y_SxO if self.multiplier == 1.0 else y_SxO * self.multiplier


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) x gain over the last axis, in float32, without bias."""

    def __init__(self, size: int) -> None:
        self.gain = gain(size)

    def __call__(self, x: Float[Array, "... D"], eps: Scalar) -> Float[Array, "... D"]:
        """Normalise the last axis; the result has the precision of x."""
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, -1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
        scale = self.gain[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (centred * jax.lax.rsqrt(variance + eps) * scale).astype(x.dtype)


def rotate(x_BxTxHxK: Float[Array, "B T H K"], base: Scalar) -> Float[Array, "B T H K"]:
    """Rotary positions (arXiv 2104.09864): pair (i, i + K/2) turns by t x base^(-2i/K)."""
    time, head_dim = x_BxTxHxK.shape[1], x_BxTxHxK.shape[3]
    frequency = base ** (-2.0 * jnp.arange(head_dim // 2, dtype=jnp.float32) / head_dim)
    angle_TxP = jnp.arange(time, dtype=jnp.float32)[:, None] * frequency[None, :]
    cos, sin = jnp.cos(angle_TxP)[None, :, None, :], jnp.sin(angle_TxP)[None, :, None, :]
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


MEAN_SQUARE_FLOOR = 1e-12
"""`rescale` takes shorter vectors for ones of RMS 1e-6: zero stays zero, and its gradient finite."""


def rescale(x: Float[Array, "... K"], kappa: Scalar) -> Float[Array, "... K"]:
    """sqrt(kappa) x / rms(x) over the last axis, in float32 (arXiv 2309.14322, Figure 10); 0 stays 0.

    Two vectors so rescaled have a product of at most kappa x K.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), -1, keepdims=True)
    return (x32 * jnp.sqrt(kappa) * jax.lax.rsqrt(jnp.maximum(mean_square, MEAN_SQUARE_FLOOR))).astype(x.dtype)


def qk_layernorm_size(config: ModelConfig) -> int | None:
    """Over how many entries of the queries and keys of a position qk-layernorm normalises; None is not at all."""
    return {"none": None, "per_head": config.head_dim, "whole_width": config.width}[config.qk_layernorm]


class Attention(nnx.Module):
    """Causal attention; queries and keys optionally normalised and rescaled before the rotation.

    How logits become weights, and what of the weights is worth observing, is for the variants to say.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        width, size = config.width, qk_layernorm_size(config)
        self.query = Dense(config, "query", width, width, rngs)
        self.key = Dense(config, "key", width, width, rngs)
        self.value = Dense(config, "value", width, width, rngs)
        self.out = Dense(config, "attention_output", width, width, rngs)
        self.query_norm = None if size is None else LayerNorm(size)
        self.key_norm = None if size is None else LayerNorm(size)

    @abstractmethod
    def weigh(self, logits_BxHxQxP: Float[Array, "B H Q P"], config: ModelConfig, time: int) -> Float[Array, "B H Q P"]:
        """Weights from causal logits (minus infinity in the future), in float32; zero in the future.

        Args:
            logits_BxHxQxP: of some queries, and all keys that they may see.
            config: the model's.
            time: the length of the whole sequence.
        """

    def observe_distribution(self, logits_BxHxQxT: Float[Array, "B H Q T"]) -> Observations:
        """What weights show beside the logits that make them, one value a head; nothing unless a variant says so."""
        return {}

    def __call__(
        self, x_SxD: Float[Array, "S D"], config: RunConfig, time: int, observe: Bool[Array, ""]
    ) -> tuple[Float[Array, "S D"], Observations]:
        """Mix values over the past of each position; returns the mixture and what was observed (zeros if not asked)."""
        model = config.model
        heads = (-1, time, model.heads, model.head_dim)
        flat_query, flat_key, value = self.query(x_SxD), self.key(x_SxD), self.value(x_SxD)
        query = split(flat_query, self.query_norm, model, time)
        key = split(flat_key, self.key_norm, model, time)
        query, key = rotate(query, model.rotary_base), rotate(key, model.rotary_base)

        weigh, scale = partial(self.weigh, config=model, time=time), attention_scale(model)
        mixed = kernels.mix(chosen_kernel(config), query, key, value.reshape(heads), scale, weigh)

        measure = partial(self.observe, scale)
        observations = when(observe, measure, flat_query.reshape(heads), flat_key.reshape(heads), query, key)
        return self.out(mixed.reshape(x_SxD.shape)), observations

    def observe(
        self,
        scale: Scalar,
        raw_query: Float[Array, "B T H K"],
        raw_key: Float[Array, "B T H K"],
        query: Float[Array, "B T H K"],
        key: Float[Array, "B T H K"],
    ) -> Observations:
        """How one block's attention stands, one value a head, over batch, queries and the keys that each may see.

        attention_logit/max, abs_max: of the scaled, causally masked logits before the softmax (signed; absolute);
        query_rms, key_rms: over positions and head dim, `before_norm` as projected and `after_norm` as they enter the
        product (the rotation keeps it);
        query_key_cosine: mean over the causal pairs of the cosine of query and key as they enter the product;
        and what `observe_distribution` adds.

        Logits are computed anew from queries and keys, a part of them at a time (`by_parts`), so that they are exact
        whatever kernel mixes values, and no kernel has to give them away.
        """
        return {
            "query_rms/before_norm": rms(raw_query, (0, 1, 3)),
            "query_rms/after_norm": rms(query, (0, 1, 3)),
            "key_rms/before_norm": rms(raw_key, (0, 1, 3)),
            "key_rms/after_norm": rms(key, (0, 1, 3)),
        } | by_parts(partial(self.observe_logits, scale), query, key)

    def observe_logits(
        self,
        scale: Scalar,
        query: Float[Array, "B Q H K"],
        key: Float[Array, "B T H K"],
        first: Scalar,
    ) -> Observations:
        """`observe`'s part that reads logits, of queries at places `first`, `first` + 1, ... of their sequences."""
        queries, time = query.shape[1], key.shape[1]
        dot_BxHxQxT = kernels.product(query, key)
        past = kernels.is_past((queries, time), first)
        logits = kernels.causal_logits(dot_BxHxQxT, scale, first)
        query_norm = jnp.linalg.norm(query.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., :, None]
        key_norm = jnp.linalg.norm(key.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., None, :]
        cosine = dot_BxHxQxT / jnp.maximum(query_norm * key_norm, 1e-30)
        # Rows first: reductions of one shape read the logits once for all.
        largest = jnp.max(logits, 3)
        largest_absolute = jnp.max(jnp.where(past, jnp.abs(logits), 0.0), 3)
        cosines = jnp.sum(jnp.where(past, cosine, 0.0), 3)
        # A mean over all pairs of the whole: parts have as many queries each, not as many pairs.
        pairs = query.shape[0] * queries * (time + 1) / 2
        return {
            "attention_logit/max": jnp.max(largest, (0, 2)),
            "attention_logit/abs_max": jnp.max(largest_absolute, (0, 2)),
            "query_key_cosine": jnp.sum(cosines, (0, 2)) / pairs,
        } | self.observe_distribution(logits)


OBSERVED_AT_ONCE = 2**24
"""Logits that observing has in memory at a time (64 MiB of each array); a step's own may never all be there."""


def by_parts(
    measure: Callable[..., Observations], query: Float[Array, "B T H K"], key: Float[Array, "B T H K"]
) -> Observations:
    """What `measure(query, key, first)` sees in all, by looking at equal parts in turn.

    Parts are of whole sequences, or else of queries of one sequence, so that each has `OBSERVED_AT_ONCE` logits at most
    (more only where time has no fitting divisor). Devices that share a batch have that many each: a part has sequences
    of every one of them, or all would be gathered for each part.
    """
    batch, time, heads, _ = query.shape
    devices = sharers() if batch % sharers() == 0 else 1
    each = largest_divisor(batch // devices, max(1, OBSERVED_AT_ONCE // (heads * time * time)))
    rows = devices * each
    queries = time if each > 1 else largest_divisor(time, max(1, OBSERVED_AT_ONCE // (heads * time)))

    def of_rows(part: tuple[Array, Array]) -> Observations:
        query, key = part if devices == 1 else tuple(cut_by_rows(x) for x in part)
        if queries == time:
            return measure(query, key, 0)

        def of_queries(first: Array) -> Observations:
            return measure(jax.lax.dynamic_slice_in_dim(query, first, queries, axis=1), key, first)

        return combined(jax.lax.map(of_queries, jnp.arange(0, time, queries)))

    if rows == batch:
        return of_rows((query, key))
    return combined(jax.lax.map(of_rows, (dealt(query, rows), dealt(key, rows))))


def split(
    flat_SxD: Float[Array, "S D"], norm: LayerNorm | None, config: ModelConfig, time: int
) -> Float[Array, "B T H K"]:
    """Queries or keys in heads: normalised by `norm`, each head then rescaled to RMS sqrt(kappa), if at all."""
    if norm is not None:
        size = norm.gain.shape[0]
        flat_SxD = norm(flat_SxD.reshape(-1, time, config.width // size, size), config.layernorm_eps)
    x_BxTxHxK = flat_SxD.reshape(-1, time, config.heads, config.head_dim)
    return x_BxTxHxK if config.kappa is None else rescale(x_BxTxHxK, config.kappa)


class SoftmaxAttention(Attention):
    """Weights exp(logit) / sum exp(logit): a distribution over the past."""

    def weigh(self, logits_BxHxQxP: Float[Array, "B H Q P"], config: ModelConfig, time: int) -> Float[Array, "B H Q P"]:
        """Softmax over keys."""
        return jax.nn.softmax(logits_BxHxQxP, axis=-1)

    def observe_distribution(self, logits_BxHxQxT: Float[Array, "B H Q T"]) -> Observations:
        """attention_entropy: mean over queries, in nats: log Z - sum p x logit, counted from the row's largest."""
        past = jnp.isfinite(logits_BxHxQxT)
        below = logits_BxHxQxT - jnp.max(logits_BxHxQxT, 3, keepdims=True)
        unnormalised = jnp.exp(below)
        z = jnp.sum(unnormalised, 3)
        energy = jnp.sum(jnp.where(past, unnormalised * below, 0.0), 3)
        return {"attention_entropy": jnp.mean(jnp.log(z) - energy / z, (0, 2))}


class SquaredReluAttention(Attention):
    """Pointwise weights relu(logit)^2 x T^-exponent, T the sequence length (arXiv 2309.14322, Figure E.11).

    They are no distribution: nothing ties them together, so there is no entropy to observe.
    """

    def weigh(self, logits_BxHxQxP: Float[Array, "B H Q P"], config: ModelConfig, time: int) -> Float[Array, "B H Q P"]:
        """Square what is positive."""
        scale: Scalar = time**-config.attention_length_exponent
        return jnp.square(jax.nn.relu(logits_BxHxQxP)) * scale


class MLP(nnx.Module):
    """Two matrices with a tanh-form GELU between them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        hidden = config.mlp_ratio * config.width
        self.inner = Dense(config, "mlp_in", config.width, hidden, rngs)
        self.outer = Dense(config, "mlp_out", hidden, config.width, rngs)

    def __call__(self, x_SxD: Float[Array, "S D"]) -> Float[Array, "S D"]:
        """W2 GELU(W1 x) at each position."""
        return self.outer(jax.nn.gelu(self.inner(x_SxD), approximate=True))


ATTENTIONS: dict[str, type[Attention] | None] = {
    "softmax": SoftmaxAttention,
    "squared_relu": SquaredReluAttention,
    "none": None,
}
MLPS: dict[str, type[MLP] | None] = {"gelu": MLP, "none": None}
