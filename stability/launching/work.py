"""Training a plan's runs, group by group: text, programs and journals brought together for the loop."""

import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from stability.config import RunConfig
from stability.data.batches import Batches, validation_windows
from stability.data.sequence import Split
from stability.errors import InputError
from stability.launching.devices import Layout
from stability.launching.journal import Desk, RunJournal
from stability.launching.memory import Budget, amount, state_bytes
from stability.launching.plan import Pack, PlannedRun, group_sizes, pack_runs
from stability.training.checkpoint import Checkpoints, latest_step
from stability.training.lanes import Program, Programs
from stability.training.loop import Interrupted, Lane, train
from stability.untrusted.printable import tell


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
    layout: Layout,
    budget: Budget,
    stop: Callable[[], bool],
) -> int:
    """Train all of the runs to their ends; returns how many failed.

    What a compiled program says of its memory corrects the estimate for those that come after it. A group whose own
    program turns out to need more than there is is halved, and compiled again, before it trains.

    Raises:
        Interrupted: asked to stop; what was under way has been saved.
    """
    failed, correction = 0, 1.0
    for pack in pack_runs(runs):
        text = text_of(parts, pack.config)
        starts = {run: latest_step(desk.folder.run(run).checkpoints) for run in pack.runs}
        waiting = groups_of(pack.runs, starts, layout.most_lanes(pack.config, budget.limit / correction))
        largest = max(len(group.runs) for group in waiting)
        while waiting:
            if stop():
                raise Interrupted
            group = waiting.pop(0)
            desk.console.started([run.fingerprint for run in group.runs])
            known, size = len(programs.compiled), layout.program_size(len(group.runs), largest)
            program = programs.get(pack.config, layout.seats(size), text.validation_MxBxT1.shape, layout.mesh(size))
            if len(programs.compiled) > known:
                desk.console.compiled(program.compile_seconds)
            needed = layout.compiled_memory(program, size)
            if needed is not None:
                correction = needed / layout.memory(pack.config, size)
            if needed is not None and needed > budget.limit and size > 1:
                desk.console.say(
                    f"{size} lanes of {pack.runs[0].scale} need {amount(needed)}, more than there is "
                    f"({budget}): half of them at a time."
                )
                rest = [run for other in (group, *waiting) for run in other.runs]
                waiting = groups_of(rest, starts, size // 2)
                largest = max(len(other.runs) for other in waiting)
                continue
            failed += _train_group(desk, program, text, group, stop)
    return failed


@dataclass(frozen=True)
class Group:
    """Runs that train together from the same step."""

    runs: tuple[PlannedRun, ...]
    start: int


def groups_of(runs: Sequence[PlannedRun], starts: Mapping[PlannedRun, int], most: int) -> list[Group]:
    """Those that stand at the same step, in groups of at most `most`, every run once."""
    groups = []
    for start in dict.fromkeys(starts[run] for run in runs):
        alike = [run for run in runs if starts[run] == start]
        ends = list(itertools.accumulate(group_sizes(len(alike), most)))
        groups += [Group(tuple(alike[a:b]), start) for a, b in itertools.pairwise([0, *ends])]
    return groups


DOUBTFUL = 1.5
"""Where so many times the estimate is more than there is, a lone run's program is compiled before anything trains."""


def refuse_what_does_not_fit(
    runs: Sequence[PlannedRun], programs: Programs, parts: Split, layout: Layout, budget: Budget
) -> None:
    """Refuse runs that no splitting helps, before anything trains.

    Where the state alone is too large, nothing is compiled. Where the estimate only makes it doubtful, the program is
    compiled, largest first, and its own analysis decides; it is kept for the training.

    Raises:
        InputError: names the run, what it needs, what there is, and the ways out.
    """
    packs = sorted(pack_runs(runs), key=lambda pack: layout.memory(pack.config, 1), reverse=True)
    for pack in packs:
        _refuse_above(budget, pack, state_bytes(pack.config) // layout.fsdp, "for parameters and optimizer alone")
    for pack in packs:
        if DOUBTFUL * layout.memory(pack.config, 1) > budget.limit:
            tell(f"{pack.runs[0].title}: about as much memory as there is ({budget}); compiling it to know.")
            shape = text_of(parts, pack.config).validation_MxBxT1.shape
            program = programs.get(pack.config, layout.seats(1), shape, layout.mesh(1))
            _refuse_above(
                budget, pack, layout.compiled_memory(program, 1) or 0, "by its compiled program's own analysis"
            )


def _refuse_above(budget: Budget, pack: Pack, needed: int, source: str) -> None:
    if needed <= budget.limit:
        return
    raise InputError(
        "memory_limit",
        f"{amount(budget.limit)} ({budget.basis})",
        f"a single run of {pack.runs[0].arm} {pack.runs[0].scale} needs {amount(needed)} {source}",
        "Take a smaller scale, training.batch_size or training.sequence_length, or "
        + ("raise memory_limit." if budget.asked else "a device with more memory."),
    )


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
