"""The loop: dispatch, look, save, stop. It knows nothing of files, W&B, clusters or interventions.

It drives R lanes that stand at the same step through one `Program`, and tells each lane's `Journal` what it saw.
The next dispatch leaves before the last one's numbers are read, so a quiet step never waits for the host.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Int

from stability.config import RunConfig, TrainingConfig
from stability.data.batches import ALL_ROWS
from stability.training.diagnosis import first_bad_observations
from stability.training.journal import Journal, training_row
from stability.training.lanes import STEPS_PER_DISPATCH, Program
from stability.training.step import StepMetrics, TrainState


class Interrupted(Exception):
    """The user or the system asked to stop; all lanes are saved where they stood."""


class Store(Protocol):
    """Where a run's states are kept (`stability.training.checkpoint.Checkpoints`)."""

    def save(self, step: int, state: TrainState) -> None:
        """Keep the state before `step`."""

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state kept, of the shapes and types of `like`."""
        ...

    def close(self) -> None:
        """Let go of it."""


@dataclass
class Lane:
    """One run on its way: its config, batches (start, count, rows -> tokens), journal, and where its states go."""

    config: RunConfig
    batches: Callable[[int, int, slice], Int[np.ndarray, "C rows T+1"]]
    journal: Journal
    open_checkpoints: Callable[[], Store]
    alive: bool = True


@dataclass(frozen=True)
class Dispatch:
    """Steps `start` to `start + count - 1` in one call, the last of them observed or not."""

    start: int
    count: int
    observe: bool


class Pending(NamedTuple):
    """A dispatch under way, and what it will have measured in all lanes."""

    dispatch: Dispatch
    metrics: StepMetrics
    observations: dict[str, Any]


def next_dispatch(training: TrainingConfig, start: int) -> Dispatch:
    """The longest dispatch from `start` that ends where something is due, on a grid that a resumed run shares.

    Steps 0, multiples of `observe_every` and the last step are observed; a dispatch ends after an observed step, before
    a multiple of `evaluate_every` or `checkpoint_every`, and after `STEPS_PER_DISPATCH` steps.
    """
    last = training.steps - 1
    observed = min(-(-start // training.observe_every) * training.observe_every, last)
    ends = [observed + 1, training.steps, start + STEPS_PER_DISPATCH]
    ends += [(start // every + 1) * every for every in (training.evaluate_every, training.checkpoint_every) if every]
    end = min(ends)
    return Dispatch(start, end - start, end == observed + 1)


def train(
    program: Program,
    lanes: Sequence[Lane],
    validation: Int[np.ndarray, "M B T+1"],
    start: int,
    stop: Callable[[], bool],
) -> None:
    """Train lanes of one structure from step `start` (0: from their seeds, else from their checkpoints) to the end.

    Raises:
        Interrupted: `stop()` became true; every live lane has been saved.
    """
    training = lanes[0].config.training
    config = program.place([lane.config for lane in lanes])
    state = program.start(config)
    if start:
        state = _restore(program, lanes, state, start)
    step, pending, clock = start, None, time.perf_counter()
    while step < training.steps and any(lane.alive for lane in lanes):
        if step == 0 or (training.evaluate_every and step % training.evaluate_every == 0):
            if pending is not None:  # rows ascend in step
                (clock, state), pending = _report(program, config, state, lanes, pending, clock), None
            _evaluate(program, config, state, validation, lanes, step)
        dispatch = next_dispatch(training, step)
        tokens = program.tokens([partial(_batches, lane, dispatch) for lane in lanes])
        state, metrics, observations = program.step(config, state, tokens, dispatch.count, dispatch.observe)
        if pending is not None:
            clock, state = _report(program, config, state, lanes, pending, clock)
        pending = Pending(dispatch, metrics, observations)
        step += dispatch.count
        stopping = stop() and step < training.steps
        if stopping or (step < training.steps and step % training.checkpoint_every == 0):
            (clock, state), pending = _report(program, config, state, lanes, pending, clock), None
            _save(program, lanes, state, step)
        if stopping:
            raise Interrupted
    if pending is not None:
        _, state = _report(program, config, state, lanes, pending, clock)
    if training.keep_checkpoint and step > start:
        _save(program, lanes, state, step)
    if any(lane.alive for lane in lanes):
        _evaluate(program, config, state, validation, lanes, step)
    for lane in lanes:
        if lane.alive:
            lane.journal.ended(diverged_at=None)


def _restore(program: Program, lanes: Sequence[Lane], fresh: TrainState, step: int) -> TrainState:
    """The lanes' states at `step`, from each lane's own checkpoints; `fresh` gives shapes and types."""
    states = []
    for lane, like in zip(lanes, program.blank(fresh, len(lanes)), strict=True):
        checkpoints = lane.open_checkpoints()
        states.append(checkpoints.restore(step, like))
        checkpoints.close()
    return program.resume(states)


def _save(program: Program, lanes: Sequence[Lane], state: TrainState, step: int) -> None:
    """Save every live lane; nothing of the state is in use any more when this returns."""
    for lane, its_state in zip(lanes, program.split(state, len(lanes)), strict=True):
        if lane.alive:
            checkpoints = lane.open_checkpoints()
            checkpoints.save(step, its_state)
            checkpoints.close()
            lane.journal.saved(step)


def _batches(lane: Lane, dispatch: Dispatch, rows: slice) -> Int[np.ndarray, "C rows T+1"]:
    """Rows of a lane's batches, those of a short dispatch filled up to the program's shape with zeros never read."""
    tokens, missing = lane.batches(dispatch.start, dispatch.count, rows), STEPS_PER_DISPATCH - dispatch.count
    return np.pad(tokens, [(0, missing), (0, 0), (0, 0)]) if missing else tokens


def _evaluate(program: Program, config: Any, state: Any, validation: Any, lanes: Sequence[Lane], step: int) -> None:
    """Write each live lane's validation loss, in nats per token, as a row."""
    for lane, loss in zip(lanes, program.loss(config, state, validation), strict=False):  # seats may be more
        if lane.alive:
            tokens = step * lane.config.training.tokens_per_step
            lane.journal.row({"step": step, "tokens": tokens, "loss/validation": float(loss)})


def _report(
    program: Program, config: RunConfig, state: TrainState, lanes: Sequence[Lane], pending: Pending, clock: float
) -> tuple[float, TrainState]:
    """Read a dispatch's numbers (this waits for it), tell the journals, retire lanes that went non-finite.

    Returns:
        When the numbers were there, and the state to go on with.
    """
    dispatch = pending.dispatch
    metrics, observations = jax.device_get((pending.metrics, pending.observations))
    now = time.perf_counter()
    bad_steps = {}
    for i, lane in enumerate(lanes):
        if not lane.alive:
            continue
        seen = program.lane(metrics, i)
        good = int(np.argmin([*seen.alive[: dispatch.count], False]))  # steps before the first bad one, or all
        lane.alive = good == dispatch.count
        last = min(good, dispatch.count - 1)
        if dispatch.observe or not lane.alive:
            # After a bad step the dispatch ran on with the last good parameters: what it observed is of no step.
            observed = program.lane(observations, i) if lane.alive else None
            seconds = (now - clock) / dispatch.count
            lane.journal.row(training_row(lane.config.training, dispatch.start, last, seen, observed, seconds))
        lane.journal.progress(dispatch.start + last + 1)
        if not lane.alive:
            bad_steps[i] = dispatch.start + last
    if bad_steps:
        batches = {i: lanes[i].batches(step, 1, ALL_ROWS)[0] for i, step in bad_steps.items()}
        others = any(lane.alive for lane in lanes)
        state, names = first_bad_observations(program, config, state, batches, others)
        for i, step in bad_steps.items():
            lanes[i].journal.ended(diverged_at=step, first_bad_observation=names[i])
    return now, state
