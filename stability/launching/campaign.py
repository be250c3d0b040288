"""Rounds of training, each told to the console, until a search (if there is one) has its answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.data.sequence import Split
from stability.errors import EXIT_FAILED, EXIT_INTERRUPTED
from stability.launching.devices import Layout
from stability.launching.folder import SearchState, SweepFolder, plan_round
from stability.launching.grid import Request
from stability.launching.journal import Desk
from stability.launching.memory import Budget
from stability.launching.orders import Orders
from stability.launching.plan import PlannedRun, pack_runs
from stability.launching.provenance import device_description, provenance
from stability.launching.reuse import reuse
from stability.launching.search import Search
from stability.launching.signals import stop_flag
from stability.launching.slurm import plan_array
from stability.launching.work import train_runs
from stability.tracking.console import counted, duration
from stability.tracking.live import RunFacts, console_for
from stability.tracking.locks import Locks
from stability.tracking.slurm import tasks_of_array
from stability.tracking.tracker import Background
from stability.training.lanes import Programs
from stability.training.loop import Interrupted
from stability.untrusted.printable import tell


@dataclass(frozen=True)
class Campaign:
    """What all rounds of a launch share; `shared`: other tasks of an array train what this one does not."""

    request: Request
    sweep: str
    folder: SweepFolder
    parts: Split
    tracker: Background
    lender: Path | None
    programs: Programs
    layout: Layout
    budget: Budget
    locks: Locks
    orders: Orders
    shared: bool = False


def train_rounds(campaign: Campaign, search: Search) -> int:
    """Train round after round until the search asks for no more (without a search there is one round); an exit code.

    What a round asks for follows from the records of those before it: a command started again goes through the
    finished ones without training, and on where it was.
    """
    folder, runs, code, number = campaign.folder, search.first(), 0, 0
    asked: frozenset[str] = frozenset()
    told = [campaign.request.question] if campaign.request.question else []
    while runs:
        number += 1
        asked |= {run.fingerprint for run in runs}
        if search.active:
            plan_round(folder, campaign.locks, runs, SearchState(number, finished=False))
        if campaign.lender:
            copied = reuse(folder, campaign.locks, unfinished_runs(folder, runs), campaign.lender)
            tell(f"Took over {counted(copied, 'result')} from {campaign.lender}.")
        name = f"{campaign.sweep}, round {number}" if search.active else campaign.sweep
        code = max(code, _train_all(campaign, name, runs, told))
        if code == EXIT_INTERRUPTED:
            return code
        results = _results(folder, search.runs, asked)
        runs, told = search.next(asked, results), search.so_far(asked, results)
    if search.active:
        plan_round(folder, campaign.locks, (), SearchState(number, finished=code == 0))
        tell("\n" + search.found(asked, results))
    return code


def _results(folder: SweepFolder, runs: Sequence[PlannedRun], asked: frozenset[str]) -> dict[str, Mapping[str, Any]]:
    """The summaries of the runs asked for, by fingerprint."""
    return {run.fingerprint: folder.run(run).read_summary() or {} for run in runs if run.fingerprint in asked}


def unfinished_runs(folder: SweepFolder, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that have no result yet, or one whose record is damaged."""
    return [run for run in runs if not folder.is_finished(run)]


def _train_all(campaign: Campaign, name: str, runs: Sequence[PlannedRun], told: Sequence[str]) -> int:
    """Train every run that has no result yet, and say how it went; an exit code.

    Args:
        campaign: what it is part of.
        name: of the sweep, or of the round.
        runs: to train.
        told: lines to say before.
    """
    request, folder, programs = campaign.request, campaign.folder, campaign.programs
    unfinished = unfinished_runs(folder, runs)
    packs = pack_runs(unfinished)
    layout = campaign.layout
    console = console_for(
        request.execution.progress,
        {run.fingerprint: _facts(run) for pack in packs for run in pack.runs},
        work={run.fingerprint: run.cost for run in unfinished},
        kinds={run.fingerprint: i for i, pack in enumerate(packs) for run in pack.runs},
        done=len(runs) - len(unfinished),
    )
    for line in told:
        console.say(line)
    todo = f"{counted(len(runs), 'run')}, {console.done} already done, {counted(len(packs), 'program')}"
    console.say(f"{name}: {todo}; {folder.path}")
    if not unfinished:
        return 0
    console.say(f"device: {device_description()}; lanes: {layout.strategy} ({layout.why})")
    began, known = time.perf_counter(), len(programs.compiled)
    campaign.tracker.warn_with(console.say)
    start = provenance(request.execution, layout.strategy, request.command)
    desk = Desk(campaign.sweep, folder, console, campaign.tracker, start, campaign.locks, campaign.orders)
    shares = _shares(request, runs) if campaign.shared else None
    try:
        with stop_flag(console.say) as asked:
            stop = campaign.orders.stop_of_any(asked, console.say)
            failed = train_runs(desk, programs, unfinished, campaign.parts, layout, campaign.budget, stop, shares)
    except Interrupted:
        console.close()
        console.say(f"Stopped; nothing is lost. To go on, run the same command again:\n  {request.command}")
        return EXIT_INTERRUPTED
    finally:
        console.close()
    compiled = [program.compile_seconds for program in programs.compiled.values()][known:]
    console.say(
        f"Trained {counted(len(unfinished) - failed, 'run')} in {duration(time.perf_counter() - began)}, of it "
        f"{sum(compiled):.0f} s compiling {counted(len(compiled), 'program')}."
    )
    if failed:
        console.say(
            f"{counted(failed, 'run')} failed; the same command tries them again. See error.txt in their folders."
        )
    return EXIT_FAILED if failed else 0


def _shares(request: Request, runs: Sequence[PlannedRun]) -> Mapping[object, int]:
    """How many runs of a structure a task of an array may train together."""
    return plan_array(request.execution.slurm, pack_runs(runs), tasks_of_array()).lanes


def _facts(run: PlannedRun) -> RunFacts:
    return RunFacts(run.arm, run.scale, run.config.optimizer.learning_rate, run.config.seed)
