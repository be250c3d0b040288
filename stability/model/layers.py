"""Attention, MLP and norms, and the tables from which a config picks its attention and MLP by name.

Shapes: B batch, T time, S = B x T positions, D width, H heads, K head dim, F MLP hidden.
Activations travel as [S, D]: on CPU one flat matrix product is 1.3 times faster than a batched one.
"""

from abc import abstractmethod
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from stability.config import ModelConfig, Role, Scalar
from stability.model.observation import Observations, rms, when
from stability.model.parameterization import attention_scale, gain, matrix, rule

TRANSPOSED_FROM = 128
"""Fan-in from which on `product` transposes its input for the gradient on a CPU; below it costs what it saves."""


@jax.custom_vjp
def product(x_SxI: Float[Array, "S I"], kernel_IxO: Float[Array, "I O"]) -> Float[Array, "S O"]:
    """x W. On a CPU the gradient of W, x^T dy, is a product of an x^T that lies in memory as such.

    XLA would read x and dy across their rows at half the speed (docs/lab_notebook.md). Other devices transpose as they
    read, at no cost.
    """
    return x_SxI @ kernel_IxO


def _product_forward(x_SxI: Array, kernel_IxO: Array) -> tuple[Array, tuple[Array, Array]]:
    return x_SxI @ kernel_IxO, (x_SxI, kernel_IxO)


def _product_backward(saved: tuple[Array, Array], dy_SxO: Array) -> tuple[Array, Array]:
    x_SxI, kernel_IxO = saved

    def as_read(x_SxI: Array, dy_SxO: Array) -> Array:
        return x_SxI.T @ dy_SxO

    def transposed(x_SxI: Array, dy_SxO: Array) -> Array:
        x_IxS: Array = jax.lax.optimization_barrier(x_SxI.T)  # type: ignore[no-untyped-call]
        return x_IxS @ dy_SxO

    dx_SxI = dy_SxO @ kernel_IxO.T
    if kernel_IxO.shape[0] < TRANSPOSED_FROM:
        return dx_SxI, as_read(x_SxI, dy_SxO)
    return dx_SxI, jax.lax.platform_dependent(x_SxI, dy_SxO, cpu=transposed, default=as_read)


product.defvjp(_product_forward, _product_backward)


class Dense(nnx.Module):
    """A matrix product without bias, times the forward multiplier of its role."""

    def __init__(self, config: ModelConfig, role: Role, fan_in: int, fan_out: int, rngs: nnx.Rngs) -> None:
        self.kernel = matrix(config, role, rngs.params(), (fan_in, fan_out), fan_in)
        self.multiplier = rule(config, role, fan_in).forward

    def __call__(self, x_SxI: Float[Array, "S I"]) -> Float[Array, "S O"]:
        """x W x multiplier, in the precision of x."""
        y_SxO = product(x_SxI, self.kernel[...].astype(x_SxI.dtype))
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
    def weigh(self, logits_BxHxTxT: Float[Array, "B H T T"], config: ModelConfig) -> Float[Array, "B H T T"]:
        """Weights from causal logits (minus infinity in the future), in float32; zero in the future."""

    def observe_weights(self, weight_BxHxTxT: Float[Array, "B H T T"]) -> Observations:
        """What the weights show beside the logits, one value a head; nothing unless a variant says so."""
        return {}

    def __call__(
        self, x_SxD: Float[Array, "S D"], config: ModelConfig, time: int, observe: Bool[Array, ""]
    ) -> tuple[Float[Array, "S D"], Observations]:
        """Mix values over the past of each position; returns the mixture and what was observed (zeros if not asked)."""
        heads = (-1, time, config.heads, config.head_dim)
        flat_query, flat_key, value = self.query(x_SxD), self.key(x_SxD), self.value(x_SxD)
        query = split(flat_query, self.query_norm, config, time)
        key = split(flat_key, self.key_norm, config, time)
        query, key = rotate(query, config.rotary_base), rotate(key, config.rotary_base)

        # The product accumulates in float32 and stays there through the weights, whatever the compute precision.
        dot_BxHxTxT = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
        scale = attention_scale(config)
        weight_BxHxTxT = self.weigh(causal_logits(dot_BxHxTxT, scale), config)
        mixed = jnp.einsum("bhts,bshk->bthk", weight_BxHxTxT.astype(value.dtype), value.reshape(heads))

        raw_query, raw_key = flat_query.reshape(heads), flat_key.reshape(heads)
        measure = partial(self.observe, scale)
        observations = when(observe, measure, raw_query, raw_key, query, key, dot_BxHxTxT, weight_BxHxTxT)
        return self.out(mixed.reshape(x_SxD.shape)), observations

    def observe(
        self,
        scale: Scalar,
        raw_query: Float[Array, "B T H K"],
        raw_key: Float[Array, "B T H K"],
        query: Float[Array, "B T H K"],
        key: Float[Array, "B T H K"],
        dot_BxHxTxT: Float[Array, "B H T T"],
        weight_BxHxTxT: Float[Array, "B H T T"],
    ) -> Observations:
        """How one block's attention stands, one value a head, over batch, queries and the keys that each may see.

        attention_logit/max, abs_max: of the scaled, causally masked logits before the softmax (signed; absolute);
        query_rms, key_rms: over positions and head dim, `before_norm` as projected and `after_norm` as they enter the
        product (the rotation keeps it);
        query_key_cosine: mean over the causal pairs of the cosine of query and key as they enter the product;
        and what `observe_weights` adds.
        """
        batch, _, time, _ = dot_BxHxTxT.shape
        past = jnp.tril(jnp.ones((time, time), bool))[None, None]
        logits = causal_logits(dot_BxHxTxT, scale)
        query_norm = jnp.linalg.norm(query.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., :, None]
        key_norm = jnp.linalg.norm(key.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., None, :]
        cosine = dot_BxHxTxT / jnp.maximum(query_norm * key_norm, 1e-30)
        pairs = batch * time * (time + 1) / 2
        return {
            "attention_logit/max": jnp.max(logits, (0, 2, 3)),
            "attention_logit/abs_max": jnp.max(jnp.where(past, jnp.abs(logits), 0.0), (0, 2, 3)),
            "query_rms/before_norm": rms(raw_query, (0, 1, 3)),
            "query_rms/after_norm": rms(query, (0, 1, 3)),
            "key_rms/before_norm": rms(raw_key, (0, 1, 3)),
            "key_rms/after_norm": rms(key, (0, 1, 3)),
            "query_key_cosine": jnp.sum(jnp.where(past, cosine, 0.0), (0, 2, 3)) / pairs,
        } | self.observe_weights(weight_BxHxTxT)


def split(
    flat_SxD: Float[Array, "S D"], norm: LayerNorm | None, config: ModelConfig, time: int
) -> Float[Array, "B T H K"]:
    """Queries or keys in heads: normalised by `norm`, each head then rescaled to RMS sqrt(kappa), if at all."""
    if norm is not None:
        size = norm.gain.shape[0]
        flat_SxD = norm(flat_SxD.reshape(-1, time, config.width // size, size), config.layernorm_eps)
    x_BxTxHxK = flat_SxD.reshape(-1, time, config.heads, config.head_dim)
    return x_BxTxHxK if config.kappa is None else rescale(x_BxTxHxK, config.kappa)


def causal_logits(dot_BxHxTxT: Float[Array, "B H T T"], scale: Scalar) -> Float[Array, "B H T T"]:
    """Attention logits: q.k x scale, minus infinity where the key lies in the future."""
    time = dot_BxHxTxT.shape[-1]
    past_TxT = jnp.tril(jnp.ones((time, time), bool))
    return jnp.where(past_TxT[None, None], dot_BxHxTxT * scale, -jnp.inf)


class SoftmaxAttention(Attention):
    """Weights exp(logit) / sum exp(logit): a distribution over the past."""

    def weigh(self, logits_BxHxTxT: Float[Array, "B H T T"], config: ModelConfig) -> Float[Array, "B H T T"]:
        """Softmax over keys."""
        return jax.nn.softmax(logits_BxHxTxT, axis=-1)

    def observe_weights(self, weight_BxHxTxT: Float[Array, "B H T T"]) -> Observations:
        """attention_entropy: mean over queries, in nats."""
        log_weight = jnp.where(weight_BxHxTxT > 0, jnp.log(jnp.where(weight_BxHxTxT > 0, weight_BxHxTxT, 1.0)), 0.0)
        return {"attention_entropy": -jnp.sum(weight_BxHxTxT * log_weight, -1).mean((0, 2))}


class SquaredReluAttention(Attention):
    """Pointwise weights relu(logit)^2 x T^-exponent, T the sequence length (arXiv 2309.14322, Figure E.11).

    They are no distribution: nothing ties them together, so there is no entropy to observe.
    """

    def weigh(self, logits_BxHxTxT: Float[Array, "B H T T"], config: ModelConfig) -> Float[Array, "B H T T"]:
        """Square what is positive."""
        scale: Scalar = logits_BxHxTxT.shape[-1] ** -config.attention_length_exponent
        return jnp.square(jax.nn.relu(logits_BxHxTxT)) * scale


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
