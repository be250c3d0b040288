"""How runs of one structure share one compiled program: each alone in turn, or all at once as lanes of a `vmap`.

Every strategy wraps the same pure functions of `stability.training.step` and speaks of R lanes, so the loop does not
know which one it drives. Shapes: R lanes, C steps in one dispatch, B batch, T time, M validation batches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from stability.config import RunConfig, to_leaves
from stability.model.observation import Observations
from stability.training.step import StepMetrics, TrainState, advance, evaluate, initial_state

Strategy = Literal["sequential", "vmap"]
STEPS_PER_DISPATCH = 10
"""Steps at most in one call of the program: enough to hide Python, few enough to stop soon after Ctrl-C."""


@dataclass(frozen=True)
class Program:
    """The compiled functions of one structure for R lanes; None lanes is the solo program, without a lane axis."""

    lanes: int | None
    start: Any
    advance: Any
    evaluate: Any
    compile_seconds: float

    def place(self, configs: Sequence[RunConfig]) -> RunConfig:
        """The configs' leaves as this program takes them: [R] arrays, or scalars for the solo program."""
        joined: RunConfig = self.join([to_leaves(config) for config in configs])
        return joined

    def join(self, trees: Sequence[Any]) -> Any:
        """One tree for all lanes from one for each."""
        if self.lanes is None:
            (tree,) = trees
            return tree
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def lane(self, tree: Any, index: int) -> Any:
        """One lane's part of a tree for all lanes."""
        return tree if self.lanes is None else jax.tree.map(lambda leaf: leaf[index], tree)

    def step(
        self,
        config: RunConfig,
        state: TrainState,
        tokens_RxCxBxT1: Int[np.ndarray, "R C B T+1"],
        count: int,
        observe: bool,
    ) -> tuple[TrainState, StepMetrics, Observations]:
        """Advance all lanes by `count` steps; the state passed in is given up (its memory is used again)."""
        tokens = tokens_RxCxBxT1[0] if self.lanes is None else tokens_RxCxBxT1
        return self.advance(config, state, tokens, np.int32(count), np.bool_(observe))  # type: ignore[no-any-return]

    def loss(
        self, config: RunConfig, state: TrainState, tokens_MxBxT1: Int[np.ndarray, "M B T+1"]
    ) -> Float[np.ndarray, " R"]:
        """Validation loss of each lane, nats per token; waits for it."""
        return np.atleast_1d(np.asarray(self.evaluate(config, state.parameters, tokens_MxBxT1)))


@dataclass
class Programs:
    """Every program compiled in this process, by structure and lanes: each is compiled once."""

    compiled: dict[Any, Program] = field(default_factory=dict)

    def get(self, config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...]) -> Program:
        """The program for a config's structure, compiled now if need be."""
        key = (jax.tree.structure(config), lanes, validation_shape)
        if key not in self.compiled:
            self.compiled[key] = compile_program(config, lanes, validation_shape)
        return self.compiled[key]


def compile_program(config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...]) -> Program:
    """Trace and compile the functions of one structure.

    Config and batches are never donated; the state is. Where the precision is float32, products are float32 too:
    unasked, JAX would take TensorFloat-32 on recent GPUs.
    """
    began = time.perf_counter()
    training = config.training
    axes = () if lanes is None else (lanes,)
    leaves = jax.tree.map(lambda leaf: _shape(axes + leaf.shape, leaf.dtype), to_leaves(config))
    tokens = _shape((*axes, STEPS_PER_DISPATCH, training.batch_size, training.sequence_length + 1))
    start, forward, measure = initial_state, advance, evaluate
    if lanes is not None:
        start = jax.vmap(initial_state)
        forward = jax.vmap(advance, in_axes=(0, 0, 0, None, None))
        measure = jax.vmap(evaluate, in_axes=(0, 0, None))
    state = jax.eval_shape(start, leaves)
    count, observe = _shape(()), _shape((), np.bool_)
    with jax.default_matmul_precision("highest" if training.precision == "float32" else None):
        return Program(
            lanes,
            jax.jit(start).lower(leaves).compile(),
            jax.jit(forward, donate_argnums=1).lower(leaves, state, tokens, count, observe).compile(),
            jax.jit(measure).lower(leaves, state.parameters, _shape(validation_shape)).compile(),
            time.perf_counter() - began,
        )


def _shape(shape: tuple[int, ...], dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
