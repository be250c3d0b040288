"""Training a plan's runs, group by group: text, programs and journals brought together for the loop."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

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
from stability.tracking.console import counted
from stability.tracking.record import Row
from stability.training.checkpoint import Checkpoints
from stability.training.lanes import Program, Programs
from stability.training.loop import Interrupted, Lane, train
from stability.untrusted.printable import tell


@dataclass(frozen=True)
class Text:
    """What one shape of batch reads: training batches, and validation batches of the same shape."""

    batches: Batches
    validation_MxBxT1: Int[np.ndarray, "M B T+1"]

    def reader(self, config: RunConfig) -> Callable[[int, int, slice], Int[np.ndarray, "C rows T+1"]]:
        """What reads a run's batches: the rows of each from a step on, so many steps."""
        seed = config.data.seed
        assert seed is not None, "resolve(config) fills in the data seed"
        return partial(self.batches.batches, seed)


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
    shares: Mapping[object, int] | None = None,
) -> int:
    """See all of the runs to their ends; returns how many failed.

    Runs that another command has locked are left to it. Those are waited for when nothing else is left to do, and taken
    over where it ends without finishing them.

    Args:
        desk: of the sweep.
        programs: compiled so far.
        runs: unfinished ones.
        parts: the text.
        layout: how lanes lie on devices.
        budget: what memory there is.
        stop: whether to stop.
        shares: of a task of an array: how many runs of a structure it may train together, so that others have some.
            It takes the costliest pack first, so that all end at about the same time, and waits for nobody, because
            its machine would be idle.

    Raises:
        Interrupted: asked to stop; what was under way has been saved.
        OSError: the storage failed; what had been recorded is kept.
    """
    trainer, failed = _Trainer(desk, programs, parts, layout, budget, stop, shares or {}), 0
    while runs:
        elsewhere: list[PlannedRun] = []
        packs = pack_runs(runs)
        if shares is not None:
            packs = tuple(sorted(packs, key=lambda pack: max(run.cost for run in pack.runs), reverse=True))
        for pack in packs:
            failed += trainer.train_pack(pack, elsewhere)
        runs = elsewhere
        if runs and shares is None:
            _wait(desk, runs, stop)
        elif all(desk.locks.is_held(run.folder_name) for run in runs):
            break
    return failed


WAIT_S = 2.0
"""How often to look whether another command has finished a run."""


def _wait(desk: Desk, runs: Sequence[PlannedRun], stop: Callable[[], bool]) -> None:
    """Until one of the runs that other commands have locked is free again."""
    holders = {str(holder) for run in runs if (holder := desk.locks.holder(run.folder_name))}
    who = " and ".join(sorted(holders)) or "another command"
    desk.console.say(f"Waiting for {counted(len(runs), 'run')} of {who}.")
    while all(desk.locks.is_held(run.folder_name) for run in runs):
        if stop():
            raise Interrupted
        time.sleep(WAIT_S)


@dataclass
class _Trainer:
    """Trains pack after pack; learns from compiled programs how far the estimate of memory is off."""

    desk: Desk
    programs: Programs
    parts: Split
    layout: Layout
    budget: Budget
    stop: Callable[[], bool]
    shares: Mapping[object, int]
    correction: float = 1.0

    def train_pack(self, pack: Pack, elsewhere: list[PlannedRun]) -> int:
        """Train what of a pack is free, group by group; returns how many failed.

        A group whose own program turns out to need more memory than there is is halved, and compiled again, before it
        trains.

        Args:
            pack: unfinished runs.
            elsewhere: where to put those that other commands have locked.
        """
        desk, layout, config = self.desk, self.layout, pack.config
        text, waiting, failed = text_of(self.parts, config), list(pack.runs), 0
        most = layout.most_lanes(config, self.budget.limit / self.correction)
        most = min(most, self.shares.get(pack.structure, most))
        largest = max(group_sizes(len(waiting), most))
        while waiting:
            if self.stop():
                raise Interrupted
            with _taken(desk, waiting, most, elsewhere) as group:
                if not group.runs:
                    continue
                desk.console.started([run.fingerprint for run in group.runs])
                program, needed = self._program(config, len(group.runs), largest, text)
                size = layout.program_size(len(group.runs), largest)
                if needed is not None and needed > self.budget.limit and size > 1:
                    desk.console.say(
                        f"{size} lanes of {pack.runs[0].scale} need {amount(needed)}, more than there is "
                        f"({self.budget}): half of them at a time."
                    )
                    most = size // 2
                    waiting = [*group.runs, *waiting]
                    largest = max(group_sizes(len(waiting), most))
                    continue
                failed += _train_group(desk, program, text, group, self.stop)
        return failed

    def _program(self, config: RunConfig, runs: int, largest: int, text: Text) -> tuple[Program, int | None]:
        """The compiled program for a group, and the bytes that it needs by its own analysis, which are remembered."""
        layout, known = self.layout, len(self.programs.compiled)
        size = layout.program_size(runs, largest)
        program = self.programs.get(config, layout.seats(size), text.validation_MxBxT1.shape, layout.mesh(size))
        if len(self.programs.compiled) > known:
            self.desk.console.compiled(program.compile_seconds)
        needed = layout.compiled_memory(program, size)
        if needed is not None:
            self.correction = needed / layout.memory(config, size)
        return program, needed


@dataclass(frozen=True)
class Group:
    """Runs that train together from the same step, locked, and the rows that each has so far."""

    runs: tuple[PlannedRun, ...]
    start: int
    rows: tuple[list[Row], ...]


@contextmanager
def _taken(desk: Desk, waiting: list[PlannedRun], most: int, elsewhere: list[PlannedRun]) -> Iterator[Group]:
    """The next group of a pack, its runs locked until the end of the `with` statement.

    Args:
        desk: of the sweep.
        waiting: runs that nobody has looked at yet; those looked at are taken out.
        most: lanes that fit together, at least 1.
        elsewhere: where to put runs that other commands have locked.
    """
    size = group_sizes(len(waiting), most)[0]
    runs: list[PlannedRun] = []
    rows: list[list[Row]] = []
    start: int | None = None
    try:
        for run in list(waiting):
            if len(runs) == size:
                break
            if not desk.locks.take(run.folder_name):
                waiting.remove(run)
                elsewhere.append(run)
            elif desk.folder.is_finished(run):  # another command was faster
                desk.locks.release(run.folder_name)
                waiting.remove(run)
                desk.console.ended_elsewhere(run.fingerprint, run.title)
            elif start is not None and desk.folder.step_of(run) != start:
                desk.locks.release(run.folder_name)  # for a later group
            else:
                runs.append(run)
                waiting.remove(run)
                start, its_rows = desk.folder.take_up(run, desk.console.say)
                rows.append(its_rows)
        yield Group(tuple(runs), start or 0, tuple(rows))
    finally:
        for run in runs:
            desk.locks.release(run.folder_name)


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
    """Train a group to its end; returns how many of its runs failed.

    Raises:
        Interrupted: asked to stop.
        OSError: the storage failed, which is no bug of a run's, and would fail all others too.
        OutOfStep: something else broke, and there are other processes, which may have gone on.
    """
    journals = [RunJournal(desk, run, group.start, rows) for run, rows in zip(group.runs, group.rows, strict=True)]
    lanes = [_lane(journal, text) for journal in journals]
    for journal in journals:
        journal.start()
    stop = desk.orders.train([run.fingerprint for run in group.runs], group.start, program.lanes, stop)
    try:
        train(program, lanes, text.validation_MxBxT1, group.start, stop)
    except (Interrupted, OSError):
        raise
    except Exception:
        desk.orders.out_of_step()
        # Whatever broke, the other runs of the sweep are still worth having; the traceback is kept.
        unended = [journal for journal in journals if not journal.is_over]
        for journal in unended:
            journal.failed(traceback.format_exc())
        return len(unended)
    return 0


def _lane(journal: RunJournal, text: Text) -> Lane:
    config, folder = journal.run.config, journal.folder
    return Lane(config, text.reader(config), journal, lambda: Checkpoints(folder.checkpoints))
