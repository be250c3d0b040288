"""Training a plan's runs, group by group: text, programs and journals brought together for the loop."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from stability.config import RunConfig
from stability.data.batches import Batches, validation_windows
from stability.data.sequence import Split
from stability.launching.folder import SweepFolder
from stability.launching.journal import Desk, RunJournal
from stability.launching.plan import PlannedRun, pack_runs
from stability.training.checkpoint import Checkpoints, latest_step
from stability.training.lanes import Program, Programs, Strategy
from stability.training.loop import Interrupted, Lane, train


@dataclass(frozen=True)
class Text:
    """What one shape of batch reads: training batches, and validation batches of the same shape."""

    batches: Batches
    validation_MxBxT1: Int[np.ndarray, "M B T+1"]


def text_of(parts: Split, config: RunConfig) -> Text:
    """The batches of a config; raises InputError where the corpus is too short for its sequences."""
    training = config.training
    windows = validation_windows(parts.validation, training.sequence_length, training.validation_sequences)
    rows = min(training.batch_size, len(windows))
    whole = len(windows) // rows * rows
    return Text(
        Batches(parts.train, training.sequence_length, training.batch_size),
        windows[:whole].reshape(-1, rows, windows.shape[1]),
    )


def train_runs(
    desk: Desk,
    programs: Programs,
    runs: Sequence[PlannedRun],
    parts: Split,
    strategy: Strategy,
    stop: Callable[[], bool],
) -> int:
    """Train all of the runs to their ends; returns how many failed.

    Raises:
        Interrupted: asked to stop; what was under way has been saved.
    """
    failed = 0
    for pack in pack_runs(runs):
        text = text_of(parts, pack.config)
        for group in groups_of(pack.runs, desk.folder, strategy):
            if stop():
                raise Interrupted
            lanes = None if strategy == "sequential" else len(group.runs)
            desk.console.started([run.fingerprint for run in group.runs])
            known = len(programs.compiled)
            program = programs.get(pack.config, lanes, text.validation_MxBxT1.shape)
            if len(programs.compiled) > known:
                desk.console.compiled(program.compile_seconds)
            failed += _train_group(desk, program, text, group, stop)
    return failed


@dataclass(frozen=True)
class Group:
    """Runs that train together from the same step."""

    runs: tuple[PlannedRun, ...]
    start: int


def groups_of(runs: tuple[PlannedRun, ...], folder: SweepFolder, strategy: Strategy) -> list[Group]:
    """One run at a time, or all that stand at the same step."""
    starts = {run: latest_step(folder.run(run).checkpoints) for run in runs}
    if strategy == "sequential":
        return [Group((run,), start) for run, start in starts.items()]
    return [Group(tuple(r for r in runs if starts[r] == step), step) for step in sorted(set(starts.values()))]


def _train_group(desk: Desk, program: Program, text: Text, group: Group, stop: Callable[[], bool]) -> int:
    """Train a group to its end; returns how many of its runs failed. Raises Interrupted when asked to stop."""
    journals = [RunJournal(desk, run, desk.folder.run(run).cut(group.start)) for run in group.runs]
    lanes = [_lane(journal, text) for journal in journals]
    for journal in journals:
        journal.start()
    try:
        train(program, lanes, text.validation_MxBxT1, group.start, stop)
    except Interrupted:
        raise
    except Exception:
        # Whatever broke, the other runs of the sweep are still worth having; the traceback is kept.
        unended = [journal for journal in journals if not journal.is_over]
        for journal in unended:
            journal.failed(traceback.format_exc())
        return len(unended)
    return 0


def _lane(journal: RunJournal, text: Text) -> Lane:
    config, folder = journal.run.config, journal.folder
    seed = config.data.seed
    assert seed is not None, "resolve(config) fills in the data seed"
    return Lane(
        config,
        lambda start, count: text.batches.batches(seed, start, count),
        journal,
        lambda: Checkpoints(folder.checkpoints),
    )
