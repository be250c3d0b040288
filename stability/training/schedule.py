"""The learning-rate schedule, written out because Optax's own schedules do not take traced numbers."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stability.config import RunConfig


def learning_rate(config: RunConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The learning rate applied at `step` (0-based): linear warm-up from 0, then cosine to the minimum.

    With w warm-up steps of n in all, peak p and minimum m (arXiv 2309.14322, Section 2.1):

        step < w:  p x step / w
        else:      m + (p - m) x (1 + cos(pi x (step - w) / (n - w))) / 2

    Safe at w = 0, where the first step has the peak.
    """
    peak, minimum = config.optimizer.learning_rate, config.schedule.minimum_learning_rate
    warmup = jnp.asarray(config.schedule.warmup_steps, jnp.float32)
    now = step.astype(jnp.float32)
    progress = jnp.clip((now - warmup) / (config.training.steps - warmup), 0.0, 1.0)
    cosine = minimum + (peak - minimum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(now < warmup, peak * now / jnp.maximum(warmup, 1.0), cosine)
