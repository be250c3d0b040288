"""One training step as a pure function, and many of them as one program.

Shapes: B batch, T time, A micro-batches of b sequences, C steps in one dispatch. A config here holds arrays
(`stability.config.to_leaves`).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from stability.config import RunConfig
from stability.model.axes import cut_as_parameters
from stability.model.observation import Observations, combined, dealt, when
from stability.model.transformer import Parameters, final_stream, head_parameters, initialise, parameter_kinds
from stability.training.loss import Loss, head_loss
from stability.training.observe import observe_tensors
from stability.training.optimizer import apply_update, clip_factor, direction
from stability.training.schedule import learning_rate


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What flows from step to step: `step` counts updates made; `alive` falls at the first non-finite number."""

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: Any
    alive: Bool[Array, ""]


class StepMetrics(NamedTuple):
    """Measured at every step, observed or not: it costs nothing that training does not compute anyway.

    `alive` is False from the first step on whose loss, gradient or updated parameters were not finite. The gradient
    counts by its norm: where that overflows, clipping makes zeros of it and Adam's second moments stay infinite, and
    parameters that no longer learn are finite.
    """

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    alive: Bool[Array, ""]


def initial_state(config: RunConfig) -> TrainState:
    """Parameters from the seed, a fresh optimizer, step 0."""
    parameters = initialise(config)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer=direction(config.optimizer).init(parameters),
        alive=jnp.ones((), bool),
    )


def step(
    config: RunConfig, state: TrainState, tokens_BxT1: Int[Array, "B T+1"], observe: Bool[Array, ""]
) -> tuple[TrainState, StepMetrics, Observations]:
    """One update. A state that is no longer alive stays as it is, at its last good parameters.

    Args:
        config: the run's config, leaves as arrays or tracers.
        state: from `initial_state` or an earlier step.
        tokens_BxT1: T inputs and, shifted by one, T targets.
        observe: whether to measure what `StepMetrics` does not hold.

    Returns:
        the next state, this step's metrics (of the parameters before the update), and the observations.
    """
    gradients, losses, observations = batch_gradients(config, state.parameters, tokens_BxT1, observe)
    gradient_norm = optax.tree.norm(gradients)
    updates, optimizer = direction(config.optimizer).update(gradients, state.optimizer)
    parameters = apply_update(config, state.parameters, updates, state.step)

    clip = clip_factor(config.optimizer, gradient_norm)
    observations |= when(observe, observe_tensors, state.parameters, gradients, updates, clip, config.optimizer.eps)
    alive = state.alive & jnp.isfinite(losses.total) & jnp.isfinite(gradient_norm) & _all_finite(parameters)
    metrics = StepMetrics(losses.total, losses.cross_entropy, gradient_norm, learning_rate(config, state.step), alive)
    moved = TrainState(state.step + 1, parameters, optimizer, alive)
    kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), moved, replace(state, alive=alive))
    return kept, metrics, observations


def batch_gradients(
    config: RunConfig, parameters: Parameters, tokens_BxT1: Int[Array, "B T+1"], observe: Bool[Array, ""]
) -> tuple[Parameters, Loss, Observations]:
    """Gradients of a batch's loss, its losses and observations: at once, or added up over its micro-batches in turn.

    Args: see `step`.
    """

    def objective(parameters: Parameters, tokens: Array) -> tuple[Array, tuple[Loss, Observations]]:
        losses, observations = _losses(config, parameters, tokens, observe)
        return losses.total, (losses, observations)

    cut = partial(cut_as_parameters, parameter_kinds(config))
    gradient = jax.grad(objective, has_aux=True)
    if config.micro_batch == tokens_BxT1.shape[0]:
        gradients, (losses, observations) = gradient(parameters, tokens_BxT1)
        return cut(gradients), losses, observations

    def one(total: Parameters, tokens: Array) -> tuple[Parameters, tuple[Loss, Observations]]:
        gradients, parts = gradient(parameters, tokens)
        return cut(jax.tree.map(jnp.add, total, cut(gradients))), parts

    tokens_Axbxt = dealt(tokens_BxT1, config.micro_batch)
    nothing = cut(jax.tree.map(jnp.zeros_like, parameters))
    total, (losses, observations) = jax.lax.scan(one, nothing, tokens_Axbxt)
    gradients = jax.tree.map(lambda all_: all_ / tokens_Axbxt.shape[0], total)
    return gradients, jax.tree.map(jnp.mean, losses), combined(observations)


def _losses(
    config: RunConfig, parameters: Parameters, tokens_BxT1: Int[Array, "B T+1"], observe: Bool[Array, ""]
) -> tuple[Loss, Observations]:
    """The losses of a batch, and all that is observed of its forward pass."""
    x_SxD, observations = final_stream(config, parameters, tokens_BxT1[:, :-1], observe)
    targets_S = tokens_BxT1[:, 1:].reshape(-1)
    losses, of_logits = head_loss(config, head_parameters(parameters), x_SxD, targets_S, observe)
    return losses, observations | of_logits


def advance(
    config: RunConfig,
    state: TrainState,
    tokens_CxBxT1: Int[Array, "C B T+1"],
    count: Int[Array, ""],
    observe: Bool[Array, ""],
) -> tuple[TrainState, StepMetrics, Observations]:
    """`count` steps in one dispatch, the last of them observed if `observe`.

    The count is an input, so one program serves every distance to the next thing to do (observe, evaluate, save, stop),
    and however a run is cut into dispatches, each of its steps is the same code on the same numbers.

    Args:
        config: the run's config.
        state: the state to start from.
        tokens_CxBxT1: the batches; only the first `count` are read.
        count: how many steps, 1 to C.
        observe: whether the last step is observed.

    Returns:
        the state after, the metrics of each step ([C], zeros beyond `count`), the last step's observations.
    """
    shapes = jax.eval_shape(step, config, state, tokens_CxBxT1[0], observe)
    _, metrics_shape, observations_shape = shapes
    capacity = tokens_CxBxT1.shape[0]
    metrics = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), metrics_shape)
    observations = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), observations_shape)

    def body(i: Array, carry: Any) -> Any:
        state, metrics, _ = carry
        tokens = jax.lax.dynamic_index_in_dim(tokens_CxBxT1, i, keepdims=False)
        state, now, observations = step(config, state, tokens, observe & (i == count - 1))
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, now), observations

    return jax.lax.fori_loop(0, count, body, (state, metrics, observations))  # type: ignore[no-any-return]


def evaluate(config: RunConfig, parameters: Parameters, tokens_MxBxT1: Int[Array, "M B T+1"]) -> Float[Array, ""]:
    """Mean cross-entropy without the z-loss term, in nats per token, over M batches of validation text."""

    def one(tokens_bxT1: Int[Array, "b T+1"]) -> Float[Array, ""]:
        return _losses(config, parameters, tokens_bxT1, jnp.zeros((), bool))[0].cross_entropy

    def batch(tokens_BxT1: Int[Array, "B T+1"]) -> Float[Array, ""]:
        if config.micro_batch >= len(tokens_BxT1):
            return one(tokens_BxT1)
        return jnp.mean(jax.lax.map(one, dealt(tokens_BxT1, config.micro_batch)))

    return jnp.mean(jax.lax.map(batch, tokens_MxBxT1))


def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()
