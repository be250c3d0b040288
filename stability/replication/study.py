"""One experiment on one ladder: what it plans, what its folder holds of that, and what that has cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stability.launching.folder import SweepFolder, check_folder
from stability.launching.grid import Request
from stability.launching.launch import planned
from stability.launching.plan import PlannedRun
from stability.tracking.record import MANIFEST


@dataclass(frozen=True)
class Study:
    """One experiment on one ladder.

    Attributes:
        name: the sweep's.
        request: composed from the sweep file and the ladder.
        command: what trains it and nothing else.
        folder: where its results are, or will be.
    """

    name: str
    request: Request
    command: str
    folder: Path

    @cached_property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Every run that it asks for.

        Raises:
            InputError: one of them cannot be.
        """
        return planned(self.request)

    def results(self) -> dict[str, Mapping[str, Any]]:
        """Fingerprint -> the run's summary, of those of its runs that have a result."""
        if not (self.folder / MANIFEST).is_file():
            return {}
        folder = SweepFolder(self.folder, "")
        return {run.fingerprint: folder.run(run).read_summary() or {} for run in self.runs if folder.is_finished(run)}

    @property
    def is_complete(self) -> bool:
        """Every run has a result."""
        return len(self.results()) == len(self.runs)

    def check(self) -> None:
        """Refuse a folder that its runs may not be recorded in.

        Raises:
            InputError: see `check_folder`.
        """
        check_folder(self.folder, self.name, self.runs, self.request.ladder.scales)


@dataclass(frozen=True)
class Cost:
    """What runs come to: how many they are, their FLOPs (estimated: `PlannedRun.flops`), and recorded seconds."""

    runs: int
    flops: float
    seconds: float


def cost_of(study: Study, seconds: Mapping[str, float]) -> Cost:
    """What runs of an experiment cost together.

    Args:
        study: whose runs.
        seconds: fingerprint -> recorded seconds, of those to be counted.
    """
    flops = [run.flops for run in study.runs if run.fingerprint in seconds]
    return Cost(len(flops), sum(flops), round(sum(seconds.values()), 1))


@dataclass(frozen=True)
class AllRuns:
    """How far all experiments are together; a run that several share counts once.

    Attributes:
        total: runs.
        done: those with a result.
        work_left: of the others, in units of `PlannedRun.cost`.
        work_per_second: of the runs with results, by their recorded seconds; 0 where there are none.
    """

    total: int
    done: int
    work_left: float
    work_per_second: float

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far, None before anything has a result."""
        return self.work_left / self.work_per_second if self.work_per_second else None


def progress_of(studies: Sequence[Study]) -> AllRuns:
    """How far they are: read from their folders."""
    work = {run.fingerprint: run.cost for study in studies for run in study.runs}
    seconds = {name: float(one.get("seconds") or 0.0) for study in studies for name, one in study.results().items()}
    spent = sum(seconds.values())
    return AllRuns(
        total=len(work),
        done=len(seconds),
        work_left=sum(cost for name, cost in work.items() if name not in seconds),
        work_per_second=sum(work[name] for name in seconds) / spent if spent else 0.0,
    )
