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
from jaxtyping import Array, Float

from stability.config import ModelConfig, Role, RunConfig, Scalar, largest_divisor
from stability.model import kernels
from stability.model.axes import cut_by_rows, sharers
from stability.model.kernels import chosen_kernel
from stability.model.observation import Observations, combined, dealt, rms
from stability.model.operations import gelu, normalise, product
from stability.model.parameterization import attention_scale, gain, matrix, rule


class Dense(nnx.Module):
    """A matrix product without bias, times the forward multiplier of its role."""

    def __init__(self, config: ModelConfig, role: Role, fan_in: int, fan_out: int, rngs: nnx.Rngs) -> None:
        self.kernel = matrix(config, role, rngs.params(), (fan_in, fan_out), fan_in)
        self.multiplier = rule(config, role, fan_in).forward

    def __call__(
        self, x_SxI: Float[Array, "S I"], result: DTypeLike | None = None, ready_IxO: Float[Array, "I O"] | None = None
    ) -> Float[Array, "S O"]:
        """x W x multiplier, in the precision of x or the one given; `result` and `ready_IxO` as for `product`."""
        y_SxO = product(x_SxI, self.kernel[...], result, ready_IxO)
        return y_SxO if self.multiplier == 1.0 else y_SxO * self.multiplier


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) x gain over the last axis, in float32, without bias."""

    def __init__(self, size: int) -> None:
        self.gain = gain(size)

    def __call__(self, x: Float[Array, "... D"], eps: Scalar) -> Float[Array, "... D"]:
        """Normalise the last axis; the result has the precision of x."""
        return normalise(x, self.gain[...], eps)


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
        self, x_SxD: Float[Array, "S D"], config: RunConfig, time: int
    ) -> tuple[Float[Array, "S D"], tuple[Float[Array, "S D"], ...]]:
        """Mix values over the past of each position; returns the mixture, and what `observe` reads.

        That is flat: of arrays that have heads the branch that observes would choose the layout, and XLA for GPUs would
        transpose queries and keys for it in every step.
        """
        model = config.model
        flat_query, flat_key, value = self.query(x_SxD), self.key(x_SxD), self.value(x_SxD)
        query = split(flat_query, self.query_norm, model, time)
        key = split(flat_key, self.key_norm, model, time)
        query, key = rotate(query, model.rotary_base), rotate(key, model.rotary_base)
        weigh = partial(self.weigh, config=model, time=time)
        mixed = kernels.mix(
            chosen_kernel(config), query, key, value.reshape(query.shape), attention_scale(model), weigh
        )
        flat = x_SxD.shape
        return self.out(mixed.reshape(flat)), (flat_query, flat_key, query.reshape(flat), key.reshape(flat))

    def observe(
        self,
        model: ModelConfig,
        time: int,
        raw_query_SxD: Float[Array, "S D"],
        raw_key_SxD: Float[Array, "S D"],
        query_SxD: Float[Array, "S D"],
        key_SxD: Float[Array, "S D"],
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
        flat = (raw_query_SxD, raw_key_SxD, query_SxD, key_SxD)
        raw_query, raw_key, query, key = (x.reshape(-1, time, model.heads, model.head_dim) for x in flat)
        return {
            "query_rms/before_norm": rms(raw_query, (0, 1, 3)),
            "query_rms/after_norm": rms(query, (0, 1, 3)),
            "key_rms/before_norm": rms(raw_key, (0, 1, 3)),
            "key_rms/after_norm": rms(key, (0, 1, 3)),
        } | by_parts(partial(self.observe_logits, attention_scale(model)), query, key)

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
        return self.outer(gelu(self.inner(x_SxD)))


ATTENTIONS: dict[str, type[Attention] | None] = {
    "softmax": SoftmaxAttention,
    "squared_relu": SquaredReluAttention,
    "none": None,
}
MLPS: dict[str, type[MLP] | None] = {"gelu": MLP, "none": None}
