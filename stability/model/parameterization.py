"""How each kind of weight is initialised and trained: one table, role x size -> multipliers.

A parameter carries its role and its fan-in. Initialisation, optimizer and sharding read those and never match names, so
another parameterization is another table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from stability.config import ModelConfig, Role, Scalar

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


@dataclass(frozen=True)
class Size:
    """A weight's fan-in, and the fan-in that the same weight has at the base width."""

    fan_in: int
    base_fan_in: int

    @property
    def shrinkage(self) -> float:
        """f0/f: exactly 1 at the base width."""
        return self.base_fan_in / self.fan_in


LINEAR: frozenset[Role] = frozenset({"query", "key", "value", "attention_output", "mlp_in", "mlp_out", "head"})
"""The roles of matrix products, whose fan-in grows with the width."""


def standard(role: Role, size: Size) -> Rule:
    """The paper's standard parameterization (arXiv 2309.14322, Section 2.1).

    Embedding normal with std 1/sqrt(width), where its `fan_in` is the width; every other matrix, the head included,
    truncated normal with std 1/sqrt(fan-in) after truncation; gains start at one.
    """
    if role == "gain":
        return Rule(init_std=0.0)
    return Rule(init_std=size.fan_in**-0.5, truncated=role != "embedding")


def mup_simple(role: Role, size: Size) -> Rule:
    """`standard` with the learning rate of linear layers, the head included, times f0/f; their decay as it was.

    Source, here and below: arXiv 2309.14322, Section 3.2.4; after arXiv 2203.03466, Table 8.
    """
    law = standard(role, size)
    return replace(law, learning_rate=size.shrinkage) if role in LINEAR else law


def mup_intermediate(role: Role, size: Size) -> Rule:
    """`mup_simple` with the head's initial std sqrt(f0)/f, that is 1/sqrt(f) x sqrt(f0/f)."""
    law = mup_simple(role, size)
    return replace(law, init_std=law.init_std * size.shrinkage**0.5) if role == "head" else law


def mup_full(role: Role, size: Size) -> Rule:
    """`mup_intermediate` with queries that start at zero; attention divides by the head dim (see the table)."""
    law = mup_intermediate(role, size)
    return replace(law, init_std=0.0) if role == "query" else law


@dataclass(frozen=True)
class Parameterization:
    """A rule for every weight, and by which power of the head dim attention divides its logits."""

    rule: Callable[[Role, Size], Rule]
    attention_scale_exponent: float = 0.5


PARAMETERIZATIONS: dict[str, Parameterization] = {
    "standard": Parameterization(standard),
    "mup_simple": Parameterization(mup_simple),
    "mup_intermediate": Parameterization(mup_intermediate),
    "mup_full": Parameterization(mup_full, attention_scale_exponent=1.0),
}


def rule(config: ModelConfig, role: Role, fan_in: int) -> Rule:
    """The row of the config's table for one weight."""
    # Every fan-in is a whole multiple of the width but a gain's, whose rule does not read it.
    size = Size(fan_in, fan_in * config.base_width // config.width)
    return PARAMETERIZATIONS[config.parameterization].rule(role, size)


def attention_scale(config: ModelConfig) -> Scalar:
    """What multiplies q.k: head_dim^-exponent, the exponent the config's or else the parameterization's."""
    exponent = config.attention_scale_exponent
    if exponent is None:
        exponent = PARAMETERIZATIONS[config.parameterization].attention_scale_exponent
    scale: Scalar = config.head_dim**-exponent
    return scale


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
