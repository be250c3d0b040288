"""Cross-entropy and z-loss.

Shapes: S positions, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stability.config import RunConfig


class Loss(NamedTuple):
    """Means over positions: `total` is what is minimised, `cross_entropy` what is reported (nats per token)."""

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    log_z_squared: Float[Array, ""]


def loss(config: RunConfig, logits_SxV: Float[Array, "S V"], targets_S: Int[Array, " S"]) -> Loss:
    """total = mean(log Z - logit of the target) + z_loss x mean(log^2 Z), log Z = logsumexp(logits).

    Source: arXiv 2309.14322, Section 2.1; z-loss after PaLM (arXiv 2204.02311).
    """
    log_z_S = jax.nn.logsumexp(logits_SxV, axis=-1)
    target_S = jnp.take_along_axis(logits_SxV, targets_S[:, None], axis=-1)[:, 0]
    cross_entropy = jnp.mean(log_z_S - target_S)
    log_z_squared = jnp.mean(jnp.square(log_z_S))
    return Loss(cross_entropy + config.loss.z_loss * log_z_squared, cross_entropy, log_z_squared)
