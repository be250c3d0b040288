"""Cross-entropy and z-loss, and the vocabulary head that they read: all logits at once, or a chunk at a time.

With a vocabulary of tens of thousands the logits of a batch are larger than all else that a step holds. Chunks of
positions need only their own: the gradient by the logits is a formula, so it is made while they are there, and no logit
is computed twice. On a CPU a single chunk is left to automatic differentiation.
Shapes: S positions, V vocabulary, D width, n chunks of C positions.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stability.config import RunConfig, largest_divisor
from stability.model.axes import cut_as_parameters
from stability.model.kernels import TILE
from stability.model.observation import Observations, dealt, when
from stability.model.operations import apart
from stability.model.transformer import (
    Parameters,
    head_in_tiles,
    head_parameters,
    head_ready,
    output_logits,
    parameter_kinds,
)
from stability.training.observe import OutputLogits, among_words, observe_output_logits

LOGITS_AT_ONCE = 2**27
"""Output logits (half a GiB of float32) above which they are made in chunks, where no one says how large."""


class Loss(NamedTuple):
    """Means over positions: `total` is what is minimised, `cross_entropy` what is reported (nats per token)."""

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    log_z_squared: Float[Array, ""]


def loss(config: RunConfig, logits_SxV: Float[Array, "S V"], targets_S: Int[Array, " S"]) -> Loss:
    """total = mean(log Z - logit of the target) + z_loss x mean(log^2 Z), log Z = logsumexp(logits).

    Source: arXiv 2309.14322, Section 2.1; z-loss after PaLM (arXiv 2204.02311).
    """
    return _loss(config, jax.nn.logsumexp(logits_SxV, axis=-1), _of_targets(logits_SxV, targets_S))


def _of_targets(logits_SxV: Array, targets_S: Array) -> Float[Array, " S"]:
    return jnp.take_along_axis(logits_SxV, targets_S[:, None], axis=-1)[:, 0]


def _loss(config: RunConfig, log_z_S: Array, target_S: Array) -> Loss:
    cross_entropy = jnp.mean(log_z_S - target_S)
    log_z_squared = jnp.mean(jnp.square(log_z_S))
    return Loss(cross_entropy + config.loss.z_loss * log_z_squared, cross_entropy, log_z_squared)


def chunk_size(config: RunConfig, positions: int) -> int:
    """Positions whose logits are there at a time, a divisor of all that a micro-batch has.

    Args:
        config: resolved; its `compute.head_chunk` is the most. Where that is null, as many as `LOGITS_AT_ONCE` allows.
        positions: of the micro-batch.
    """
    most = config.compute.head_chunk or max(1, LOGITS_AT_ONCE // _vocabulary(config))
    return largest_divisor(positions, most)


def head_loss(
    config: RunConfig,
    head: Parameters,
    x_SxD: Float[Array, "S D"],
    targets_S: Int[Array, " S"],
    observe: Bool[Array, ""],
) -> tuple[Loss, Observations]:
    """The loss of a final stream, and what is observed of its output logits (zeros if not asked).

    Args:
        config: its leaves may be tracers.
        head: `stability.model.transformer.head_parameters`.
        x_SxD: the final stream.
        targets_S: the token after each position.
        observe: whether to measure.
    """
    size = chunk_size(config, len(targets_S))
    if size == len(targets_S) and jax.default_backend() == "cpu":
        logits_SxV = output_logits(config, head, x_SxD)
        return loss(config, logits_SxV, targets_S), when(observe, partial(observe_logits, config), logits_SxV)
    losses, seen = _in_chunks(size, config, head, x_SxD, targets_S)
    return losses, when(observe, observe_output_logits, seen)


def observe_logits(config: RunConfig, logits_SxV: Float[Array, "S V"]) -> Observations:
    """What is observed of logits that are all there."""
    return observe_output_logits(_seen(config, logits_SxV))


def _seen(config: RunConfig, logits: Float[Array, "S V+"]) -> OutputLogits:
    return OutputLogits.of(logits, _vocabulary(config))


def _vocabulary(config: RunConfig) -> int:
    vocabulary = config.data.vocabulary_size
    assert vocabulary is not None, "resolve(config) fills in the vocabulary before anything is computed"
    return vocabulary


def logits_gradient(
    config: RunConfig,
    logits: Float[Array, "S V+"],
    log_z_S: Float[Array, " S"],
    targets_S: Int[Array, " S"],
) -> Float[Array, "S V+"]:
    """The gradient of `loss(...).total` by the logits: (softmax x (1 + 2 z_loss log Z) - [is the target]) / S.

    Zero for filler beside the words.
    """
    log_z_Sx1 = log_z_S[:, None]
    weight = jnp.exp(logits - log_z_Sx1) * (1 + 2 * config.loss.z_loss * log_z_Sx1)
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets_S[:, None]
    return (among_words(weight, 0.0, _vocabulary(config)) - is_target) / len(targets_S)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(
    size: int, config: RunConfig, head: Parameters, x_SxD: Array, targets_S: Array
) -> tuple[Loss, OutputLogits]:
    tiled = head_in_tiles(head, TILE)
    ready = head_ready(tiled, x_SxD.dtype)

    def one(chunk: tuple[Array, Array]) -> tuple[OutputLogits, Array]:
        x_CxD, targets_C = chunk
        return _read(config, output_logits(config, tiled, x_CxD, ready), targets_C)

    return _joined(config, jax.lax.map(one, _chunks(size, x_SxD, targets_S)))


def _chunks(size: int, x_SxD: Array, targets_S: Array) -> tuple[Float[Array, "n C D"], Int[Array, "n C"]]:
    return dealt(x_SxD, size), dealt(targets_S, size)


def _read(config: RunConfig, logits: Float[Array, "C V+"], targets_C: Array) -> tuple[OutputLogits, Array]:
    """All that anybody wants to know of logits, beside which columns of zeros may lie."""
    return _seen(config, logits), _of_targets(logits, targets_C)


def _joined(config: RunConfig, chunks: tuple[OutputLogits, Float[Array, "n C"]]) -> tuple[Loss, OutputLogits]:
    seen, target_S = jax.tree.map(jnp.ravel, chunks)
    return _loss(config, seen.log_z, target_S), seen


def _in_chunks_forward(
    size: int, config: RunConfig, head: Parameters, x_SxD: Array, targets_S: Array
) -> tuple[tuple[Loss, OutputLogits], Any]:
    """The loss, and at once its gradient: by each chunk's logits, which are gone when the next are made.

    The head is filled up, cast and gathered once for all chunks, and its gradient cut to size once.
    """
    cut = partial(cut_as_parameters, head_parameters(parameter_kinds(config)))
    tiled, of_tiled = jax.vjp(partial(head_in_tiles, size=TILE), head)
    ready = head_ready(tiled, x_SxD.dtype)

    def one(head_gradient: Parameters, chunk: tuple[Array, Array]) -> Any:
        x_CxD, targets_C = chunk
        logits, of_logits = jax.vjp(lambda head, x: output_logits(config, head, x, ready), tiled, x_CxD)
        seen, target_C = _read(config, logits, targets_C)
        more, dx = of_logits(logits_gradient(config, logits, seen.log_z, targets_C))
        return cut(jax.tree.map(jnp.add, head_gradient, cut(more))), (dx, (seen, target_C))

    nothing = cut(jax.tree.map(jnp.zeros_like, tiled))
    tiled_gradient, (dx, chunks) = jax.lax.scan(one, nothing, _chunks(size, x_SxD, targets_S))
    # XLA for TPUs fails where it may join leaving out the filler with cutting the gradient among devices.
    (head_gradient,) = of_tiled(apart(tiled_gradient))
    dx_SxD = dx.swapaxes(0, 1).reshape(x_SxD.shape)
    return _joined(config, chunks), (head_gradient, dx_SxD, dx.shape[0])


def _in_chunks_backward(size: int, saved: Any, cotangent: tuple[Loss, OutputLogits]) -> Any:
    """The gradient of the total alone: nothing else of a loss is ever minimised."""
    head_gradient, dx_SxD, chunks = saved
    factor = cotangent[0].total / chunks  # each chunk's total is a mean over its own positions

    def scaled(x: Array) -> Array:
        product: Array = x * factor
        return product.astype(x.dtype)

    return None, jax.tree.map(scaled, head_gradient), scaled(dx_SxD), None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)
