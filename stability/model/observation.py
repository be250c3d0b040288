"""Passive observation: measure inside the program, only when asked, without changing what the program computes."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Measured = TypeVar("Measured")
Observations = dict[str, Any]
"""Nested names -> float32 arrays: scalars, or one value a head."""


def when(observe: Bool[Array, ""], measure: Callable[..., Measured], *arrays: Any) -> Measured:
    """`measure(*arrays)` if `observe`, else zeros of the same shapes.

    One program serves observed and quiet steps: the flag is an input, the branch surrounds the measurement alone, and
    no gradient flows through it, so a run is the same bit for bit however often it is observed.
    """
    arrays = jax.lax.stop_gradient(arrays)
    shapes = jax.eval_shape(measure, *arrays)

    def quiet(*_: Any) -> Any:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    measured: Measured = jax.lax.cond(observe, measure, quiet, *arrays)
    return measured


def rms(x: Float[Array, "..."], axis: tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Root mean square over `axis` (all axes by default), in float32: sqrt(mean(x^2))."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis))
