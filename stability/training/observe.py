"""What a step shows of itself beside its loss: output logits, and gradient, parameter and update RMS of every tensor.

Attention and the residual stream are observed where they arise, in `stability.model`. Definitions and units of every
name: docs/observations.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stability.config import Scalar
from stability.model.observation import Observations, rms
from stability.model.transformer import Parameters


def observe_output_logits(logits_SxV: Float[Array, "S V"]) -> Observations:
    """Mean, standard deviation and maximum of the output logits; mean log Z and mean log^2 Z over positions."""
    log_z_S = jax.nn.logsumexp(logits_SxV, axis=-1)
    return {
        "output_logit/mean": jnp.mean(logits_SxV),
        "output_logit/std": jnp.std(logits_SxV),
        "output_logit/max": jnp.max(logits_SxV),
        "output_logit/log_z_mean": jnp.mean(log_z_S),
        "output_logit/log_z_squared_mean": jnp.mean(jnp.square(log_z_S)),
    }


def observe_tensors(
    parameters: Parameters, gradients: Any, updates: Any, clip: Float[Array, ""], eps: Scalar
) -> Observations:
    """RMS per tensor of the gradient (before clipping), the parameter, and the update direction (before the LR).

    `gradient/rms_over_eps` is the RMS of the *clipped* gradient, which is what Adam compares with its eps.
    """
    observations: Observations = {}
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        size = rms(gradient)
        observations[f"gradient/rms/{tensor_name(path)}"] = size
        observations[f"gradient/rms_over_eps/{tensor_name(path)}"] = size * clip / eps
    for quantity, tree in (("parameter/rms", parameters), ("update/rms", updates)):
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            observations[f"{quantity}/{tensor_name(path)}"] = rms(value)
    return observations


def tensor_name(path: tuple[Any, ...]) -> str:
    """A parameter's place as a metric's name: blocks/block_00/mlp/inner/kernel is block_00/mlp/inner."""
    parts = [str(entry.key) for entry in path]
    return "/".join(part for part in parts if part not in ("blocks", "kernel"))
