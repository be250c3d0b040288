"""Where the stable edge is, found with few runs: which points of a grid of learning rates to train next.

A searched axis is a grid of its own making, evenly spaced in ln LR. A *round* trains some of its points in every cell
(an arm at a scale, with all its seeds), and what their records say decides on the next. What is stable is said by
`stability.analysis.max_stable_learning_rate` alone, on the points trained so far. A cell's rounds are

1. the quarters of its grid, the last only if nothing below it is unstable: the best LR must be known about, since
   unstable means worse than the best;
2. the middle of the bracket, until its two ends are neighbours on the grid;
3. only where the bracket hinges on how good the best LR is: the middles beside the best LR, until its neighbours are
   known. Then 2 again, since a lower best loss makes more LRs unstable.

Every decision is a function of the records of the runs asked for so far. So the same command, started again, asks the
same questions, finds them answered, and goes on where it stood.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import polars as pl

from stability.analysis import UNSTABLE_EXCESS, cells, max_stable_learning_rate
from stability.analysis.stable_edge import best_position
from stability.analysis.terminal import edge_text
from stability.launching.plan import PlannedRun
from stability.tracking.console import counted
from stability.tracking.record import TERMINAL

BEST_LOSS_DOUBT = 0.1
"""Ours: nats per token by which the loss between the points trained may lie below the best one seen. Without doubt
up to a fifth of made-up cells got another bracket than their grid; 0.2 costs a tenth more runs and mends hardly more
(docs/lab_notebook.md)."""

MANY_POINTS = 17
"""From so many points on, the first round halves the range twice rather than cut it into three."""


# --- one cell -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What the points trained so far say of a cell's edge: its bracket, and whether a better best LR would move it."""

    lower: float | None
    upper: float | None
    best: float | None
    doubtful: bool


def known(table: pl.DataFrame) -> Known:
    """The edge of the one cell that a table holds, by `max_stable_learning_rate`.

    Args:
        table: as for `max_stable_learning_rate`; finished and diverged runs only.
    """
    (cell,) = cells(table)
    bracket, other = (_bracket(table, UNSTABLE_EXCESS - less) for less in (0.0, BEST_LOSS_DOUBT))
    position = best_position(cell)
    return Known(*bracket, None if position is None else float(cell.learning_rates[position]), other != bracket)


def _bracket(table: pl.DataFrame, unstable_excess: float) -> tuple[float | None, float | None]:
    row = max_stable_learning_rate(table, unstable_excess).row(0, named=True)
    return row["lower"], row["upper"]


def first_rates(rates: Sequence[float]) -> list[float]:
    """What to train before anything is known: the range in quarters (of few points: thirds), without its top.

    Args:
        rates: the grid, ascending.
    """
    parts, last = 4 if len(rates) >= MANY_POINTS else 3, len(rates) - 1
    return [rates[i] for i in sorted({round(part * last / parts) for part in range(parts)})]


def next_rates(rates: Sequence[float], trained: Iterable[float], edge: Known) -> list[float]:
    """What to train next; empty when the edge is known as closely as the grid can tell.

    Args:
        rates: the grid, ascending.
        trained: those of it that have results, `first_rates` among them.
        edge: what these say.
    """
    done = set(trained)
    if edge.upper is None and rates[-1] not in done:
        return [rates[-1]]
    if edge.upper is not None and edge.lower is None:
        return []  # the lowest LR of all is unstable
    inside = [] if edge.lower is None or edge.upper is None else _middle(rates, done, edge.lower, edge.upper)
    if inside:
        return inside
    return _beside(rates, done, edge.best) if edge.doubtful and edge.best is not None else []


def _middle(rates: Sequence[float], done: set[float], low: float, high: float) -> list[float]:
    """The middle one of the grid's points between two that are trained."""
    inside = [rate for rate in rates if low < rate < high and rate not in done]
    return inside[len(inside) // 2 :][:1]


def _beside(rates: Sequence[float], done: set[float], best: float) -> list[float]:
    """The middles of the gaps on both sides of the best LR."""
    below, above = max((r for r in done if r < best), default=best), min((r for r in done if r > best), default=best)
    return [*_middle(rates, done, below, best), *_middle(rates, done, best, above)]


def visited(rates: Sequence[float], look: Callable[[Sequence[float]], Known]) -> list[float]:
    """Every rate that a search trains, in the order of its rounds.

    Args:
        rates: the grid, ascending.
        look: what is known once some of it is trained.
    """
    done: list[float] = []
    asked = first_rates(rates)
    while asked:
        done += asked
        asked = next_rates(rates, done, look(done))
    return done


@dataclass(frozen=True)
class Cost:
    """Points of a grid that a search trains, over all places where best LR and edge can be.

    Attributes:
        least: on average, where the bracket never hinges on the best LR.
        more: on average, where it always does.
    """

    least: float
    more: float


def cost(count: int) -> Cost:
    """What a search costs on a grid of so many points, by playing through every case."""
    positions = [float(i) for i in range(count)]
    counts: dict[bool, list[int]] = {
        doubtful: [
            len(visited(positions, _ideal(best, edge, doubtful)))
            for edge in range(1, count + 1)
            for best in range(edge)
        ]
        for doubtful in (False, True)
    }
    return Cost(mean(counts[False]), mean(counts[True]))


def _ideal(best: int, edge: int, doubtful: bool) -> Callable[[Sequence[float]], Known]:
    """A cell whose loss falls up to `best`, rises from there, and is unstable from `edge` on."""

    def look(done: Sequence[float]) -> Known:
        upper = min((i for i in done if i >= edge), default=None)
        stable = [i for i in done if i < edge]
        return Known(max(stable), upper, min(stable, key=lambda i: (abs(i - best), i)), doubtful)

    return look


# --- all cells of a sweep -------------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[str, Any]]
"""Fingerprint -> the run's summary, of runs that have one."""


@dataclass(frozen=True)
class CellSearch:
    """One cell: the runs of each point of its grid, and runs that are trained in any case."""

    arm: str
    scale: str
    points: Mapping[float, tuple[PlannedRun, ...]]
    listed: tuple[PlannedRun, ...]

    @property
    def rates(self) -> list[float]:
        """The grid, ascending."""
        return sorted(self.points)

    def next(self, asked: frozenset[str], results: Results) -> list[PlannedRun]:
        """The runs of the next round; none when the edge is known, or when a run asked for has no result."""
        if not self.points:
            return []
        edge = self.known(asked, results)
        if edge is None:
            return []
        return [run for rate in next_rates(self.rates, self._trained(asked), edge) for run in self.points[rate]]

    def known(self, asked: frozenset[str], results: Results) -> Known | None:
        """What the runs asked for say; None while one of them has no result."""
        mine = [run for run in self.runs if run.fingerprint in asked]
        rows = [_row(run, results.get(run.fingerprint, {})) for run in mine]
        if not all(row["status"] in TERMINAL for row in rows):
            return None
        return known(pl.DataFrame(rows, schema=_SCHEMA))

    def _trained(self, asked: frozenset[str]) -> list[float]:
        return [rate for rate, runs in self.points.items() if all(run.fingerprint in asked for run in runs)]

    @property
    def runs(self) -> list[PlannedRun]:
        """All of them, asked for or not."""
        return [*self.listed, *(run for runs in self.points.values() for run in runs)]


_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "arm": pl.String,
    "scale": pl.String,
    "n_params": pl.Int64,
    "learning_rate": pl.Float64,
    "seed": pl.Int64,
    "data_seed": pl.Int64,
    "status": pl.String,
    "loss_initial": pl.Float64,
    "loss_validation": pl.Float64,
}


def _row(run: PlannedRun, summary: Mapping[str, Any]) -> dict[str, Any]:
    config = run.config
    return {
        "arm": run.arm,
        "scale": run.scale,
        "n_params": config.model.n_params,
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "data_seed": config.data.seed,
        **{key: summary.get(key) for key in ("status", "loss_initial", "loss_validation")},
    }


@dataclass(frozen=True)
class Search:
    """A sweep as a sequence of rounds. One without a searched axis has one round, of all its runs.

    Attributes:
        runs: of the whole grid, in their order.
        searched: fingerprints of those that are trained only when the search asks for them.
    """

    runs: tuple[PlannedRun, ...]
    searched: frozenset[str]
    cells: tuple[CellSearch, ...] = field(init=False)

    def __post_init__(self) -> None:
        members: dict[tuple[str, str, int], list[PlannedRun]] = {}
        for run in self.runs:
            members.setdefault((run.arm, run.scale, run.config.model.n_params), []).append(run)
        found = (self._cell(arm, scale, those) for (arm, scale, _), those in members.items())
        object.__setattr__(self, "cells", tuple(found))

    def _cell(self, arm: str, scale: str, runs: Sequence[PlannedRun]) -> CellSearch:
        points: dict[float, list[PlannedRun]] = {}
        for run in runs:
            if run.fingerprint in self.searched:
                points.setdefault(run.config.optimizer.learning_rate, []).append(run)
        listed = tuple(run for run in runs if run.fingerprint not in self.searched)
        return CellSearch(arm, scale, {rate: tuple(those) for rate, those in points.items()}, listed)

    @property
    def active(self) -> bool:
        """Whether anything is searched."""
        return bool(self.searched)

    @property
    def open_cells(self) -> tuple[CellSearch, ...]:
        """The cells with a searched axis."""
        return tuple(cell for cell in self.cells if cell.points)

    def first(self) -> tuple[PlannedRun, ...]:
        """The runs of the first round."""
        wanted = {run.fingerprint for cell in self.cells for run in cell.listed}
        for cell in self.open_cells:
            wanted |= {run.fingerprint for rate in first_rates(cell.rates) for run in cell.points[rate]}
        return self._in_order(wanted)

    def next(self, asked: frozenset[str], results: Results) -> tuple[PlannedRun, ...]:
        """The runs of the next round, of all cells together; empty at the end.

        Args:
            asked: fingerprints of the runs of all rounds before.
            results: what became of them.
        """
        return self._in_order({run.fingerprint for cell in self.open_cells for run in cell.next(asked, results)})

    def _in_order(self, wanted: set[str]) -> tuple[PlannedRun, ...]:
        return tuple(run for run in self.runs if run.fingerprint in wanted)

    def so_far(self, asked: frozenset[str], results: Results) -> list[str]:
        """What is known of each cell that another round is for, a line each."""
        lines = []
        for cell in self.open_cells:
            edge = cell.known(asked, results)
            more = cell.next(asked, results) if edge else []
            if edge and more:
                rates = ", ".join(f"{rate:g}" for rate in sorted({r.config.optimizer.learning_rate for r in more}))
                lines.append(f"{cell.scale} {cell.arm}: {_between(edge)}; next {rates}")
        return lines

    def plan(self) -> str:
        """What a dry run tells of the search."""
        first = self.first()
        costs = {len(cell.rates): cost(len(cell.rates)) for cell in self.open_cells}
        totals = {key: [0.0, 0.0] for key in ("least", "more")}
        for cell in self.cells:
            for key, total in totals.items():
                runs, flops = len(cell.listed), sum(run.flops for run in cell.listed)
                if cell.points:
                    share = getattr(costs[len(cell.rates)], key) / len(cell.rates)
                    those = [run for point in cell.points.values() for run in point]
                    runs, flops = runs + share * len(those), flops + share * sum(run.flops for run in those)
                total[0] += runs
                total[1] += flops
        whole = sum(run.flops for run in self.runs)
        least, more = ((round(runs), flops / whole) for runs, flops in totals.values())
        return (
            f"The table is the full grid; the search trains part of it. Round 1: {counted(len(first), 'run')}. "
            f"Expected in all: {least[0]} to {more[0]} of {len(self.runs)} runs, "
            f"{least[1]:.0%} to {more[1]:.0%} of the FLOPs."
        )

    def found(self, asked: frozenset[str], results: Results) -> str:
        """The bracket of each cell and what it cost, as a table."""
        wide = max(30, *(len(cell.arm) for cell in self.open_cells)) + 2
        lines = [f"{'scale':<14}{'arm':<{wide}}{'highest stable learning rate':<34}{'runs':>6}{'of the grid':>13}"]
        for cell in self.open_cells:
            edge = cell.known(asked, results)
            text = "not known yet" if edge is None else edge_text(edge.lower, edge.upper)
            runs = [run.fingerprint for run in cell.runs]
            trained = sum(one in asked for one in runs)
            lines.append(f"{cell.scale:<14}{cell.arm:<{wide}}{text:<34}{trained:>6}{len(runs):>13}")
        flops, whole = sum(run.flops for run in self.runs if run.fingerprint in asked), sum(r.flops for r in self.runs)
        lines.append(f"{len(asked)} of the grid's {counted(len(self.runs), 'run')}, {flops / whole:.0%} of its FLOPs")
        return "\n".join(lines)


def _between(edge: Known) -> str:
    if edge.upper is None:
        return f"stable up to {edge.lower:g}"
    return f"unstable from {edge.upper:g}" if edge.lower is None else f"between {edge.lower:g} and {edge.upper:g}"
