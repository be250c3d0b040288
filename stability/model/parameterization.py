"""How each kind of weight is initialised and trained: one table, role x size -> multipliers.

A parameter carries its role and its fan-in. Initialisation, optimizer and sharding read those and never match names, so
another parameterization is another table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from stability.config import ModelConfig, Role

TRUNCATED_NORMAL_STD = 0.87962566103423978
"""Standard deviation of a unit normal truncated at +-2, by which the initialiser is corrected (Flax's own constant)."""


@dataclass(frozen=True)
class Rule:
    """How one weight starts and moves: init_std, and what multiplies its learning rate, output and weight decay."""

    init_std: float
    truncated: bool = True
    learning_rate: float = 1.0
    forward: float = 1.0
    weight_decay: float = 1.0


def standard(role: Role, fan_in: int) -> Rule:
    """The paper's standard parameterization (arXiv 2309.14322, Section 2.1).

    Embedding normal with std 1/sqrt(width), where its `fan_in` is the width; every other matrix, the head included,
    truncated normal with std 1/sqrt(fan-in) after truncation; gains start at one.
    """
    if role == "gain":
        return Rule(init_std=0.0)
    return Rule(init_std=fan_in**-0.5, truncated=role != "embedding")


PARAMETERIZATIONS: dict[str, Callable[[Role, int], Rule]] = {"standard": standard}


def rule(config: ModelConfig, role: Role, fan_in: int) -> Rule:
    """The row of the config's table for one weight."""
    return PARAMETERIZATIONS[config.parameterization](role, fan_in)


class Parameter(nnx.Param[Array]):
    """A trained array that knows its `role` and `fan_in` (metadata of the variable)."""


def matrix(
    config: ModelConfig, role: Role, key: Key[Array, ""], shape: tuple[int, int], fan_in: int
) -> nnx.Param[Float[Array, "I O"]]:
    """A weight of the given shape, initialised by its rule."""
    law = rule(config, role, fan_in)
    if law.truncated:
        unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) / TRUNCATED_NORMAL_STD
    else:
        unit = jax.random.normal(key, shape, jnp.float32)
    return Parameter(law.init_std * unit, role=role, fan_in=fan_in)


def gain(size: int) -> nnx.Param[Float[Array, " D"]]:
    """A LayerNorm's learned scale, one at the start."""
    return Parameter(jnp.ones((size,), jnp.float32), role="gain", fan_in=1)


@dataclass(frozen=True)
class Kind:
    """What the optimizer needs to know of one parameter."""

    role: Role
    rule: Rule


def kinds(config: ModelConfig, state: Any) -> Any:
    """The tree of `Kind`s that mirrors the parameters, read off the variables of an (abstract) NNX state."""
    return jax.tree.map(
        lambda variable: Kind(variable.role, rule(config, variable.role, variable.fan_in)),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
