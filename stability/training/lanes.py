"""How runs of one structure share one compiled program: each alone in turn, all at once, or spread over devices.

`sequential`  the program of a single run, one run after the other
`vmap`        all runs as lanes of one `vmap`, on one device
`sharded`     lanes on an axis of a mesh of devices (`stability.training.mesh`), as many on each of them; a device with
              one lane executes what the program of a single run does

Every strategy wraps the same pure functions of `stability.training.step` and speaks of lanes, so the loop does not know
which one it drives. Seats beyond the runs at hand repeat the last one, and nobody reads what they do. A mesh may be
*spread* over several processes (`stability.training.processes`), which then all call the same methods in one order.
Shapes: R runs, L lanes (R and the seats beyond), C steps in one dispatch, B batch, T time, M validation batches.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from stability.config import RunConfig, to_leaves
from stability.data.batches import ALL_ROWS
from stability.model.axes import LANES
from stability.model.observation import Observations
from stability.training import processes
from stability.training.mesh import batch_sharding, copied, over_lanes, state_sharding
from stability.training.step import StepMetrics, TrainState, advance, evaluate, initial_state

Strategy = Literal["sequential", "vmap", "sharded"]
STEPS_PER_DISPATCH = 10
"""Steps at most in one call of the program: enough to hide Python, few enough to stop soon after Ctrl-C."""


@dataclass(frozen=True)
class Program:
    """The compiled functions of one structure for L lanes; None lanes is the solo program, without a lane axis."""

    lanes: int | None
    start: Any
    advance: Any
    evaluate: Any
    compile_seconds: float
    state_sharding: TrainState | None = None
    spread: "Spread | None" = None

    def place(self, configs: Sequence[RunConfig]) -> RunConfig:
        """The leaves of R configs as this program takes them: [L] arrays, or scalars for the solo program."""
        joined: RunConfig = self._join([to_leaves(config) for config in configs], np.stack)
        if self.spread is not None:
            joined = processes.same_in_each(joined, over_lanes(self.spread.mesh))
        return joined

    def tokens(self, lanes: Sequence[Callable[[slice], Int[np.ndarray, "C rows T+1"]]]) -> Any:
        """The batches of R runs for one dispatch, as `step` takes them.

        Args:
            lanes: for each run what reads these rows of its batches. On a spread mesh each process reads those that lie
                on its devices, and no others.
        """
        if self.spread is None:
            return np.stack([read(ALL_ROWS) for read in lanes])
        seats = range(self.spread.tokens_shape[0])

        def part(index: processes.Index) -> np.ndarray:
            return np.stack([lanes[min(seat, len(lanes) - 1)](index[2]) for seat in seats[index[0]]])

        return processes.from_each(self.spread.tokens_shape, batch_sharding(self.spread.mesh), part)

    def resume(self, states: Sequence[TrainState]) -> TrainState:
        """The states of R runs, whose arrays may be on any device or host, as this program takes them."""
        joined: TrainState
        if self.state_sharding is None:
            joined = self._join(states, jnp.stack)
        elif self.spread is None:
            joined = jax.device_put(self._join(jax.device_get(states), np.stack), self.state_sharding)
        else:
            joined = processes.as_process_0_has(self._join(states, np.stack), self.state_sharding)
        return joined

    def blank(self, state: TrainState, runs: int) -> list[TrainState]:
        """For each of R runs a state of the shapes and types of a state for all lanes, whatever its numbers."""
        if self.state_sharding is None:
            return self.split(state, runs)
        return [jax.tree.map(lambda leaf: np.empty(leaf.shape[1:], leaf.dtype), state)] * runs

    def _join(self, trees: Sequence[Any], stack: Callable[..., Any]) -> Any:
        if self.lanes is None:
            (tree,) = trees
            return tree
        beyond = [trees[-1]] * (self.lanes - len(trees))
        return jax.tree.map(lambda *leaves: stack(leaves), *trees, *beyond)

    def copy(self, state: TrainState) -> TrainState:
        """The same state in memory of its own, where the state is."""
        if self.spread is not None:
            return processes.copy(state)  # type: ignore[no-any-return]
        return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding, may_alias=False), state)  # type: ignore[no-any-return]

    def split(self, tree: Any, runs: int) -> list[Any]:
        """The parts of `runs` runs of a tree for all lanes; what lies on several devices is fetched to the host.

        On a spread mesh process 0 has them, and the others zeros in their place.
        """
        if self.spread is not None:
            tree = processes.at_process_0(tree)
        elif self.state_sharding is not None:
            tree = jax.device_get(tree)
        return [self.lane(tree, index) for index in range(runs)]

    def lane(self, tree: Any, index: int) -> Any:
        """One lane's part of a tree for all lanes."""
        return tree if self.lanes is None else jax.tree.map(lambda leaf: leaf[index, ...], tree)

    def step(
        self,
        config: RunConfig,
        state: TrainState,
        tokens_RxCxBxT1: Any,
        count: int,
        observe: bool,
    ) -> tuple[TrainState, StepMetrics, Observations]:
        """Advance all lanes by `count` steps of batches from `tokens`, int32 [R, C, B, T+1].

        The state passed in is given up (its memory is used again).
        """
        how: tuple[Any, ...] = (np.int32(count), np.bool_(observe))
        if self.spread is None:
            tokens = self._join(list(tokens_RxCxBxT1), np.stack)
        else:
            tokens, how = tokens_RxCxBxT1, processes.same_in_each(how, copied(self.spread.mesh))
        return self.advance(config, state, tokens, *how)  # type: ignore[no-any-return]

    def loss(
        self, config: RunConfig, state: TrainState, tokens_MxBxT1: Int[np.ndarray, "M B T+1"]
    ) -> Float[np.ndarray, " L"]:
        """Validation loss of each lane, nats per token; waits for it."""
        if self.spread is not None:
            tokens_MxBxT1 = processes.same_in_each(tokens_MxBxT1, copied(self.spread.mesh))
        return np.atleast_1d(np.asarray(self.evaluate(config, state.parameters, tokens_MxBxT1)))


class Spread(NamedTuple):
    """Of a program whose mesh has devices of several processes: the mesh, and the shape of all lanes' tokens."""

    mesh: Mesh
    tokens_shape: tuple[int, ...]


@dataclass
class Programs:
    """Every program compiled in this process, by structure, lanes and devices: each is compiled once."""

    compiled: dict[Any, Program] = field(default_factory=dict)

    def get(
        self, config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...], mesh: Mesh | None = None
    ) -> Program:
        """The program for a config's structure, compiled now if need be."""
        key = (jax.tree.structure(config), lanes, validation_shape, mesh)
        if key not in self.compiled:
            self.compiled[key] = compile_program(config, lanes, validation_shape, mesh)
        return self.compiled[key]


def compile_program(
    config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...], mesh: Mesh | None = None
) -> Program:
    """Trace and compile the functions of one structure.

    Config and batches are never donated; the state is. Where the precision is float32, products are float32 too:
    unasked, JAX would take TensorFloat-32 on recent GPUs.

    Args:
        config: any of the structure.
        lanes: how many; None for the solo program. On a mesh a multiple of its lanes.
        validation_shape: M, B, T+1.
        mesh: over which devices the lanes are spread; None is one device.
    """
    began = time.perf_counter()
    training = config.training
    axes = () if lanes is None else (lanes,)
    leaves = jax.tree.map(lambda leaf: _shape(axes + leaf.shape, leaf.dtype), to_leaves(config))
    tokens = _shape((*axes, STEPS_PER_DISPATCH, training.batch_size, training.sequence_length + 1))
    validation = _shape(validation_shape)
    start = _over_lanes(initial_state, (0,), lanes, mesh)
    forward = _over_lanes(advance, (0, 0, 0, None, None), lanes, mesh)
    measure = _over_lanes(evaluate, (0, 0, None), lanes, mesh)
    state = jax.eval_shape(start, leaves)
    count, observe = _shape(()), _shape((), np.bool_)
    states, place, spread = None, _Placement({}, {}, {}), None
    if mesh is not None:
        states = state_sharding(config, mesh, state)
        place = _placement(mesh, states)
        if processes.is_spread(mesh):
            spread, forward, measure = Spread(mesh, tokens.shape), _told(forward, mesh), _told(measure, mesh)
    with jax.default_matmul_precision("highest" if training.precision == "float32" else None):
        return Program(
            lanes,
            jax.jit(start, **place.start).lower(leaves).compile(),
            jax.jit(forward, donate_argnums=1, **place.advance).lower(leaves, state, tokens, count, observe).compile(),
            jax.jit(measure, **place.evaluate).lower(leaves, state.parameters, validation).compile(),
            time.perf_counter() - began,
            states,
            spread,
        )


class _Placement(NamedTuple):
    """Where arguments and results of a program's functions lie, as `jax.jit` wants it said."""

    start: dict[str, Any]
    advance: dict[str, Any]
    evaluate: dict[str, Any]


def _placement(mesh: Mesh, states: TrainState) -> _Placement:
    lane, whole, tokens = over_lanes(mesh), copied(mesh), batch_sharding(mesh)
    seen = whole if processes.is_spread(mesh) else lane
    return _Placement(
        {"in_shardings": lane, "out_shardings": states},
        {"in_shardings": (lane, states, tokens, whole, whole), "out_shardings": (states, seen, seen)},
        {"in_shardings": (lane, states.parameters, whole), "out_shardings": seen},
    )


def _told(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function on a spread mesh, with all but its new state told to every process: each decides by all numbers."""

    @wraps(function)
    def telling(*arguments: Any) -> Any:
        results = function(*arguments)
        if isinstance(results, tuple):
            return results[0], *processes.told_to_all(results[1:], mesh)
        return processes.told_to_all(results, mesh)

    return telling


def _over_lanes(
    function: Callable[..., Any], in_axes: tuple[int | None, ...], lanes: int | None, mesh: Mesh | None
) -> Callable[..., Any]:
    """A function of one run as a function of L lanes, on each device of the mesh for its own."""
    if lanes is None:
        return function
    if mesh is None:
        return jax.vmap(function, in_axes)
    here = _alone(function, in_axes) if lanes == mesh.shape[LANES] else jax.vmap(function, in_axes)
    whole, lane = copied(mesh).spec, over_lanes(mesh).spec
    specs = tuple(whole if axis is None else lane for axis in in_axes)
    return jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=lane, axis_names={LANES}, check_vma=False)


def _alone(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """A function of one run for a lane axis of length one: no batched products, so as fast as the solo program."""

    def one(*arguments: Any) -> Any:
        inner = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*inner))

    return one


def _shape(shape: tuple[int, ...], dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
