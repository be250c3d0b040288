"""Where the lanes of a program lie: the devices as a mesh (`stability.model.axes`), and states and batches on them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stability.config import RunConfig
from stability.model.axes import AXES, DATA, FSDP, LANES, parameter_spec
from stability.model.parameterization import Kind
from stability.model.transformer import parameter_kinds
from stability.training.optimizer import direction
from stability.training.step import TrainState


def lane_mesh(devices: Sequence[jax.Device], data: int = 1, fsdp: int = 1) -> Mesh:
    """The devices as a mesh of lanes x data x fsdp.

    Args:
        devices: at least data x fsdp of them; those of one lane lie next to each other. What is over stays idle.
        data: devices among which a lane's batch is divided.
        fsdp: devices among which a lane's parameters, optimizer state and batch are divided.
    """
    lanes = len(devices) // (data * fsdp)
    grid = np.asarray(devices[: lanes * data * fsdp]).reshape(lanes, data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _spec(*axes: str | tuple[str, ...] | None) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def over_lanes(mesh: Mesh) -> NamedSharding:
    """An array whose first dimension is lanes; inside a lane every device has it whole."""
    return NamedSharding(mesh, _spec(LANES))


def copied(mesh: Mesh) -> NamedSharding:
    """An array that every device has whole."""
    return NamedSharding(mesh, _spec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Tokens [lanes, C, B, T+1], the B rows of a lane divided among its devices."""
    return NamedSharding(mesh, _spec(LANES, None, (DATA, FSDP)))


def state_sharding(config: RunConfig, mesh: Mesh, state: TrainState) -> TrainState:
    """The sharding of every array of a train state: lanes first, matrices and their moments cut along the width.

    Args:
        config: of the structure.
        mesh: from `lane_mesh`.
        state: of all lanes, abstract or real.
    """

    def of(kind: Kind) -> NamedSharding:
        if mesh.shape[FSDP] == 1:
            return over_lanes(mesh)
        return NamedSharding(mesh, _spec(LANES, *parameter_spec(kind.role)))

    parameters = jax.tree.map(of, parameter_kinds(config))
    lane = over_lanes(mesh)
    optimizer = _like_parameters(config, state.optimizer, parameters, lane)
    return TrainState(lane, parameters, optimizer, lane)  # type: ignore[arg-type]


def _like_parameters(config: RunConfig, optimizer: Any, parameters: Any, other: NamedSharding) -> Any:
    """The optimizer's state with each moment's parameter's sharding in its place, and `other` everywhere else."""
    return optax.tree.map_params(
        direction(config.optimizer),
        lambda _, sharding: sharding,
        optimizer,
        parameters,
        transform_non_params=lambda _: other,
    )
