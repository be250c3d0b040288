"""What a step shows of itself beside its loss: output logits, and gradient, parameter and update RMS of every tensor.

Attention and the residual stream are observed where they arise, in `stability.model`. Definitions and units of every
name: docs/observations.md.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stability.config import Scalar
from stability.model.observation import Observations, rms
from stability.model.operations import apart
from stability.model.transformer import Parameters


class OutputLogits(NamedTuple):
    """What each position's logits tell: log Z, and mean, variance and maximum over the vocabulary."""

    log_z: Float[Array, " S"]
    mean: Float[Array, " S"]
    variance: Float[Array, " S"]
    largest: Float[Array, " S"]

    @classmethod
    def of(cls, logits_SxV: Float[Array, "S V+"], vocabulary: int) -> "OutputLogits":
        """Two passes over the logits: mean and maximum, then, once both are there, variance and log Z.

        Args:
            logits_SxV: of the words, and then of filler.
            vocabulary: how many words there are.
        """
        among = partial(among_words, vocabulary=vocabulary)
        firsts = jnp.sum(among(logits_SxV, 0.0), -1) / vocabulary, jnp.max(among(logits_SxV, -jnp.inf), -1)
        mean_S, largest_S = apart(firsts)
        shift_S = jnp.where(jnp.isfinite(largest_S), largest_S, 0.0)
        return cls(
            log_z=shift_S + jnp.log(jnp.sum(among(jnp.exp(logits_SxV - shift_S[:, None]), 0.0), -1)),
            mean=mean_S,
            variance=jnp.sum(among(jnp.square(logits_SxV - mean_S[:, None]), 0.0), -1) / vocabulary,
            largest=largest_S,
        )


def among_words(x_SxV: Float[Array, "S V+"], otherwise: float, vocabulary: int) -> Float[Array, "S V+"]:
    """Numbers of words as they are, and `otherwise` in the columns of filler that may follow."""
    if x_SxV.shape[1] == vocabulary:
        return x_SxV
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x_SxV.shape, 1) < vocabulary, x_SxV, otherwise)


def observe_output_logits(seen: OutputLogits) -> Observations:
    """Mean, standard deviation and maximum of the output logits; mean log Z and mean log^2 Z over positions."""
    return {
        "output_logit/mean": jnp.mean(seen.mean),
        "output_logit/std": jnp.sqrt(jnp.mean(seen.variance) + jnp.var(seen.mean)),
        "output_logit/max": jnp.max(seen.largest),
        "output_logit/log_z_mean": jnp.mean(seen.log_z),
        "output_logit/log_z_squared_mean": jnp.mean(jnp.square(seen.log_z)),
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
