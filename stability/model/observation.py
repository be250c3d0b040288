"""Passive observation: measure inside the program, only when asked, without changing what the program computes.

Shapes: B batch, A parts, b = B / A sequences of a part.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from stability.model.operations import apart

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

    def loud(*arrays: Any) -> Any:
        # XLA for GPUs makes a selection of a branch of nothing but elementwise operations and reductions, however large
        # the arrays, and so executes it in every step. One with a barrier it leaves a branch.
        return measure(*apart(arrays))

    measured: Measured = jax.lax.cond(observe, loud, quiet, *arrays)
    return measured


def rms(x: Float[Array, "..."], axis: tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Root mean square over `axis` (all axes by default), in float32: sqrt(mean(x^2))."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis))


def dealt(x: Shaped[Array, "B ..."], rows: int) -> Shaped[Array, "A b ..."]:
    """A batch as parts of `rows` sequences each, dealt like cards, so that devices that share it share every part."""
    return x.reshape(rows, x.shape[0] // rows, *x.shape[1:]).swapaxes(0, 1)


MEANS = frozenset({"query_key_cosine", "attention_entropy", "output_logit"})
"""Quantities that are means over positions or pairs, but for their maxima."""


def combined(parts: Observations) -> Observations:
    """What was observed of a whole batch, from equal parts of it: arrays whose first dimension counts the parts.

    Maxima are maxima of maxima, RMS values join as mean squares, means as means; a standard deviation is that of the
    parts' own and of their means.

    Raises:
        ValueError: a quantity whose name says none of these.
    """
    return {name: _combined(name, value, parts) for name, value in parts.items()}


def _combined(name: str, value: Float[Array, "A ..."], parts: Observations) -> Float[Array, "..."]:
    words = name.split("/")
    if {"max", "abs_max"} & set(words):
        return jnp.max(value, 0)
    if any(word.endswith("rms") for word in words[:2]):
        return jnp.sqrt(jnp.mean(jnp.square(value), 0))
    if words[-1] == "std":
        means = parts["/".join([*words[:-1], "mean"])]
        return jnp.sqrt(jnp.mean(jnp.square(value), 0) + jnp.var(means, 0))
    if words[0] in MEANS:
        return jnp.mean(value, 0)
    raise ValueError(f"{name}: how do parts of it make a whole? Say so in stability/model/observation.py.")
