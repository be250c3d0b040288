"""How often alarms are right: false alarms, misses and lead time, measured on the records of finished sweeps.

Two things can be foretold, and a *case* is one chance to foretell it:

    unstable   a case is a run. It goes wrong when it ends unstable (`stability.max_stable_learning_rate`). Only the
               rows of its first half count; the lead is until its end.
    spike      a case is a window of 10 rows. It goes wrong when the row after it is a loss spike: the robust score of
               the training loss passes 7, and did not in the window. The others are the windows without a spike in them
               or in the 10 rows after. The lead is until the spike.

A case that goes wrong without an alarm is a *miss*, one that goes right with an alarm a *false alarm*. A threshold is
chosen on some of the sweeps and measured on the others; a run that both have counts for choosing only. Where one side
has no case that goes wrong, thresholds are chosen on the lowest seed of every sweep and measured on the other seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaincinv

from stability.analysis.alarms.alarms import ALARMS, WATCHED, Alarm
from stability.analysis.alarms.scores import loss_spike
from stability.analysis.alarms.trace import trace_of
from stability.analysis.cells import cells
from stability.analysis.load import read
from stability.analysis.stable_edge import unstable
from stability.analysis.uncertainty import INTERVAL_LEVEL
from stability.errors import InputError
from stability.tracking.record import RunFolder, read_rows

Outcome = Literal["unstable", "spike"]
OUTCOMES: tuple[Outcome, ...] = ("unstable", "spike")
SPIKE = 7.0
EARLY = 0.5
"""Share of a run in which an alarm must fire to have foretold how it ends."""
AHEAD = 10
"""Rows within which a spike is foretold."""


@dataclass(frozen=True)
class Case:
    """One chance to foretell something.

    Attributes:
        steps: of the rows in which an alarm counts.
        scores: alarm -> its scores in those rows, -inf where there is none.
        end: the step that the lead counts to.
        of_run: updates that the whole run makes.
        is_bad: it went wrong.
    """

    steps: Int[np.ndarray, " rows"]
    scores: Mapping[str, Float[np.ndarray, " rows"]]
    end: int
    of_run: int
    is_bad: bool

    def peak(self, alarm: str) -> float:
        """The largest score."""
        return float(self.scores[alarm].max(initial=-np.inf))

    def lead(self, alarm: str, threshold: float) -> int | None:
        """Steps from the alarm to the end, None without alarm."""
        fired = np.flatnonzero(self.scores[alarm] > threshold)
        return self.end - int(self.steps[fired[0]]) if len(fired) else None


@dataclass(frozen=True)
class Example:
    """One finished run.

    Attributes:
        seed: of its initialisation.
        steps: updates made.
        row_steps: of its training rows.
        scores: alarm -> its scores, -inf where there is none.
        unstable: how it ended.
        spikes: which rows are loss spikes.
    """

    seed: int
    steps: int
    row_steps: Int[np.ndarray, " rows"]
    scores: Mapping[str, Float[np.ndarray, " rows"]]
    unstable: bool
    spikes: Bool[np.ndarray, " rows"]

    def cases(self, outcome: Outcome) -> list[Case]:
        """See the module."""
        if outcome == "unstable":
            half = int(np.searchsorted(self.row_steps, EARLY * self.steps, side="right"))
            return [self._case(0, half, self.steps, self.unstable)]
        rows = len(self.row_steps)
        starts = [
            at for at in np.flatnonzero(self.spikes).tolist() if at >= AHEAD and not self.spikes[at - AHEAD : at].any()
        ]
        quiet = [at for at in range(AHEAD, rows, AHEAD) if not self.spikes[at - AHEAD : at + AHEAD].any()]
        bad = [self._case(at - AHEAD, at, int(self.row_steps[at]), True) for at in starts]
        return bad + [self._case(at - AHEAD, at, int(self.row_steps[at]), False) for at in quiet]

    def _case(self, begin: int, end: int, end_step: int, is_bad: bool) -> Case:
        part = slice(begin, end)
        scores = {name: values[part] for name, values in self.scores.items()}
        return Case(self.row_steps[part], scores, end_step, self.steps, is_bad)


def examples(source: Path) -> dict[str, Example]:
    """Fingerprint -> example, of the finished and diverged runs of a results folder.

    Runs at learning rates that not all seeds have are left out: whether they are unstable is not defined.

    Raises:
        InputError: as `load`.
    """
    found = read(source)
    seat = ("arm", "scale", "n_params", "learning_rate", "seed", "data_seed")
    names = {tuple(row[key] for key in seat): row for row in found.table.iter_rows(named=True)}
    result = {}
    for cell in cells(found.table):
        bad = unstable(cell)
        for (s, replica), (k, rate) in (
            (a, b) for a in enumerate(cell.seeds) for b in enumerate(cell.learning_rates.tolist())
        ):
            row = names[(cell.arm, cell.scale, cell.n_params, rate, *replica)]
            folder = RunFolder(found.records[row["fingerprint"]])
            is_bad = bool(bad[s, k] | cell.diverged[s, k])
            result[row["fingerprint"]] = _example(folder, row["seed"], row["steps"], is_bad)
    return result


def _example(folder: RunFolder, seed: int, steps: int, is_unstable: bool) -> Example:
    trace = trace_of(read_rows(folder.metrics), WATCHED)
    scores = {name: np.nan_to_num(alarm.score(trace), nan=-np.inf, posinf=np.inf) for name, alarm in ALARMS.items()}
    return Example(seed, steps, trace.steps, scores, is_unstable, loss_spike(trace) > SPIKE)


def evaluate(sweeps: Mapping[str, Mapping[str, Example]], chosen_on: Sequence[str]) -> dict[str, Any]:
    """Choose every alarm's threshold on some sweeps and measure it on the others.

    Args:
        sweeps: sweep -> its examples.
        chosen_on: the sweeps to choose on.

    Raises:
        InputError: there is no such sweep, or none is left to measure on.
    """
    for name in chosen_on:
        if name not in sweeps:
            raise InputError("choose", name, "is no sweep among the sources", f"Choose from: {', '.join(sweeps)}.")
    measured_on = [name for name in sweeps if name not in chosen_on]
    if not measured_on or not chosen_on:
        raise InputError("choose", ",".join(chosen_on), "leaves no sweep on one side", "Name some, and not all.")
    choosing = {run: one for name in chosen_on for run, one in sweeps[name].items()}
    measuring = {run: one for name in measured_on for run, one in sweeps[name].items() if run not in choosing}
    sides = [*choosing.values()], [*measuring.values()]
    return {
        "schema_version": 1,
        "kind": "early_warning",
        "chosen_on": list(chosen_on),
        "measured_on": measured_on,
        "interval_level": INTERVAL_LEVEL,
        "outcomes": {outcome: _foretold(outcome, *sides) for outcome in OUTCOMES},
    }


def _foretold(outcome: Outcome, choosing: Sequence[Example], measuring: Sequence[Example]) -> dict[str, Any]:
    sides = [[case for one in side for case in one.cases(outcome)] for side in (choosing, measuring)]
    by_sweeps = all(any(case.is_bad for case in side) for side in sides)
    if not by_sweeps:
        runs = [*choosing, *measuring]
        lowest = min((one.seed for one in runs), default=0)
        sides = [
            [case for one in runs if (one.seed == lowest) == is_lowest for case in one.cases(outcome)]
            for is_lowest in (True, False)
        ]
    return {
        "split_by": "sweeps" if by_sweeps else "seeds",
        **{
            name: {"cases": len(side), "bad": sum(case.is_bad for case in side)}
            for name, side in zip(("chosen_on", "measured_on"), sides, strict=True)
        },
        "alarms": [_measured(alarm, *sides) for alarm in ALARMS.values()],
    }


def _measured(alarm: Alarm, choosing: Sequence[Case], measuring: Sequence[Case]) -> dict[str, Any]:
    threshold = choose(alarm.name, choosing)
    return {
        "alarm": alarm.name,
        "watches": alarm.watches,
        "means": alarm.means,
        "threshold": threshold,
        "chosen": None if threshold is None else rates(alarm.name, threshold, choosing),
        "measured": None if threshold is None else rates(alarm.name, threshold, measuring),
        "default_threshold": alarm.threshold,
        "measured_at_default": rates(alarm.name, alarm.threshold, measuring),
    }


def choose(alarm: str, cases: Sequence[Case]) -> float | None:
    """The threshold with the least sum of miss rate and false-alarm rate (Youden 1950), None without both kinds.

    Of equal ones the highest; it lies halfway between two peaks of cases, so that none decides by a hair.
    """
    bad = np.array([one.is_bad for one in cases], bool)
    if bad.all() or not bad.any():
        return None
    peaks = np.array([one.peak(alarm) for one in cases])
    levels = np.unique(peaks[np.isfinite(peaks)])
    if len(levels) < 2:
        return None
    candidates = (levels[1:] + levels[:-1]) / 2
    miss = np.searchsorted(np.sort(peaks[bad]), candidates, side="right") / bad.sum()
    false = 1 - np.searchsorted(np.sort(peaks[~bad]), candidates, side="right") / (~bad).sum()
    sums = miss + false
    return float(candidates[np.flatnonzero(sums <= sums.min() + 1e-12)[-1]])


def rates(alarm: str, threshold: float, cases: Sequence[Case]) -> dict[str, Any]:
    """Misses, false alarms and lead times of an alarm at a threshold, over some cases."""
    bad = [one for one in cases if one.is_bad]
    good = [one for one in cases if not one.is_bad]
    leads = [(lead, one.of_run) for one in bad if (lead := one.lead(alarm, threshold)) is not None]
    false = sum(one.lead(alarm, threshold) is not None for one in good)
    miss, false_alarm = _share(len(bad) - len(leads), len(bad)), _share(false, len(good))
    ends = [part["interval"][1] for part in (miss, false_alarm) if part["interval"]]
    return {
        "miss": miss,
        "false_alarm": false_alarm,
        "lead_steps": _quartiles([lead for lead, _ in leads]),
        "lead_share_of_run": _quartiles([lead / steps for lead, steps in leads]),
        "better_than_chance": len(ends) == 2 and sum(ends) < 1,
    }


def _share(k: int, n: int) -> dict[str, Any]:
    """A share with its exact interval (Clopper and Pearson 1934)."""
    if not n:
        return {"count": 0, "of": 0, "rate": None, "interval": None}
    tail = (1 - INTERVAL_LEVEL) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return {"count": k, "of": n, "rate": k / n, "interval": [low, high]}


def _quartiles(values: Sequence[float]) -> list[float] | None:
    """First quartile, median, third quartile."""
    return [float(one) for one in np.quantile(values, (0.25, 0.5, 0.75))] if values else None
