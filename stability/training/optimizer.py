"""AdamW with weight decay independent of the learning rate, built inside the traced step from the config's leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from stability.config import OptimizerConfig, RunConfig
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


def apply_update(config: RunConfig, parameters: Parameters, direction: Any, step: Int[Array, ""]) -> Parameters:
    """theta <- theta - s_t (lr x D + wd x theta), s_t = the schedule as a fraction of its peak.

    Weight decay is scaled by the schedule and not by the learning rate (arXiv 2309.14322, Section 3.2.2); each tensor's
    role multiplies lr and wd, and roles outside `optimizer.decayed_roles` are not decayed.
    """
    peak = config.optimizer.learning_rate
    fraction = learning_rate(config, step) / peak

    def new(theta: Array, d: Array, kind: Kind) -> Array:
        change = peak * kind.rule.learning_rate * d
        if kind.role in config.optimizer.decayed_roles:
            change = change + config.optimizer.weight_decay * kind.rule.weight_decay * theta
        return theta - fraction * change

    return jax.tree.map(new, parameters, direction, parameter_kinds(config))  # type: ignore[no-any-return]
