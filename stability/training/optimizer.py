"""AdamW with weight decay independent of the learning rate or coupled to it, built from the traced config's leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from stability.config import OptimizerConfig, RunConfig, Scalar
from stability.model.observation import rms
from stability.model.parameterization import Kind
from stability.model.transformer import Parameters, parameter_kinds
from stability.training.schedule import learning_rate


def clip_factor(config: OptimizerConfig, gradient_norm: Float[Array, ""]) -> Float[Array, ""]:
    """What global-norm clipping multiplies the gradient by: min(1, clip_norm / norm); 1 where clip_norm is null."""
    if config.clip_norm is None:
        return jnp.ones((), jnp.float32)
    return jnp.minimum(1.0, config.clip_norm / jnp.maximum(gradient_norm, 1e-30))


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradient to update direction D, before the learning rate: clip by global norm, then Adam."""
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def unscaled(theta: Array) -> Scalar:
    """Every tensor learns at the same rate."""
    return 1.0


def tensor_rms(theta: Array) -> Scalar:
    """max(RMS(theta), 1e-3): rates relative to what they change (arXiv 2309.14322, Figure E.14)."""
    return jnp.maximum(rms(theta), 1e-3)


LEARNING_RATE_SCALINGS: dict[str, Callable[[Array], Scalar]] = {"none": unscaled, "tensor_rms": tensor_rms}
"""What a tensor's own value multiplies its learning rate by."""


def independent(rate: Scalar) -> Scalar:
    """Decay that does not ask for the learning rate (arXiv 2309.14322, Section 3.2.2)."""
    return 1.0


def coupled(rate: Scalar) -> Scalar:
    """Decay in proportion to the tensor's learning rate, with all that multiplies it: Optax's and PyTorch's AdamW."""
    return rate


WEIGHT_DECAY_COUPLINGS: dict[str, Callable[[Scalar], Scalar]] = {"independent": independent, "coupled": coupled}
"""What a tensor's learning rate multiplies its weight decay by."""


def apply_update(config: RunConfig, parameters: Parameters, direction: Any, step: Int[Array, ""]) -> Parameters:
    """theta <- theta - s_t (rate x D + wd x theta), s_t = the schedule as a fraction of its peak.

    The rate of a tensor is the peak learning rate x the multiplier of its role x `learning_rate_scaling` of theta. Its
    decay is scaled by the schedule and by its role's multiplier; where `weight_decay_coupling` is coupled, by its rate
    too: theta - s_t rate (D + wd x theta). Roles outside `optimizer.decayed_roles` are not decayed.
    """
    optimizer, peak = config.optimizer, config.optimizer.learning_rate
    fraction = learning_rate(config, step) / peak
    scaling = LEARNING_RATE_SCALINGS[optimizer.learning_rate_scaling]
    coupling = WEIGHT_DECAY_COUPLINGS[optimizer.weight_decay_coupling]

    def new(theta: Array, d: Array, kind: Kind) -> Array:
        rate = peak * (kind.rule.learning_rate * scaling(theta))
        change = rate * d
        if kind.role in optimizer.decayed_roles:
            change = change + optimizer.weight_decay * (kind.rule.weight_decay * coupling(rate)) * theta
        return theta - fraction * change

    return jax.tree.map(new, parameters, direction, parameter_kinds(config))  # type: ignore[no-any-return]
