"""The axes of a mesh of devices, one over lanes and two inside a lane, and how parameters are cut along them.

`lanes`   a run's seat: nothing passes between lanes
`data`    each device takes its part of a lane's batch; parameters are copied
`fsdp`    as `data`, and parameters and optimizer state are cut too (fully sharded data parallelism, arXiv 2304.11277)
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from stability.config import Role

LANES, DATA, FSDP = AXES = ("lanes", "data", "fsdp")

WIDTH_DIMENSION: dict[Role, int | None] = {
    "embedding": 1,
    "query": 0,
    "key": 0,
    "value": 0,
    "attention_output": 1,
    "mlp_in": 0,
    "mlp_out": 1,
    "head": 0,
    "gain": None,
}
"""Which dimension of a role's matrix is as long as the model is wide: `fsdp` cuts that one. Gains are copied."""


def parameter_spec(role: Role) -> tuple[str | None, ...]:
    """Along which axis each dimension of a parameter is cut, as `PartitionSpec` takes them."""
    dimension = WIDTH_DIMENSION[role]
    return () if dimension is None else (*(None,) * dimension, FSDP)


def cut_as_parameters(kinds: Any, tree: Any) -> Any:
    """Arrays of the shapes of parameters, such as gradients, cut among a lane's devices as those are.

    Args:
        kinds: `stability.model.transformer.parameter_kinds`, or a part of it.
        tree: arrays like it.
    """
    return jax.tree.map(lambda kind, array: _constrained(array, *parameter_spec(kind.role)), kinds, tree)


def cut_by_rows(x: Shaped[Array, "S ..."]) -> Shaped[Array, "S ..."]:
    """Activations with each device of a lane holding its own rows.

    Left to itself the compiler cuts them along the width, as parameters are, and sums every product over all devices.
    """
    return _constrained(x, (DATA, FSDP))


def whole(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """A parameter as it is used: all of it on every device of a lane."""
    return _constrained(x)


def sharers() -> int:
    """How many devices share a lane's batch, where this is traced."""
    shape: Mapping[str, int] = jax.sharding.get_abstract_mesh().shape
    return shape.get(DATA, 1) * shape.get(FSDP, 1)


def _constrained(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
    """An array laid out as said where devices share a lane, and as it is elsewhere."""
    if sharers() == 1:
        return x
    laid: Array = jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))  # type: ignore[no-untyped-call]
    return laid
