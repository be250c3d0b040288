"""Claim by claim: what it measures, and what that decides.

Every claim comes down to numbers with intervals and a bound that they must keep. It *holds* when every interval lies on
the right side of the bound, *fails* when one lies on the wrong side, and is *undecided* in between or without an
interval. Intervals are two-sided at 90 %, so a claim whose truth lies on the bound holds in at most 5 % of studies.
Where a claim is about several scales, it fails by one of them only at that one's share of the error (Bonferroni), so
that many chances to fail make failing no likelier. Pairs (same seed, same learning rate) are compared as pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from stability.analysis.claims.results import Results, Unanswerable
from stability.analysis.claims.vocabulary import Claim
from stability.analysis.uncertainty import INTERVAL_LEVEL, Estimate, Interval, over_seeds

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim.

    Attributes:
        effect: the number that decides, in the unit that `evidence` names; of several scales the least favourable.
        interval: 90 %, None where there is none.
        n: seeds (for shares: runs) behind it.
        evidence: the numbers in words, or why there are none.
        measured: what `effect` is a number of, its unit included; empty where there is no effect.
    """

    verdict: Outcome
    effect: float | None
    interval: Interval | None
    n: int
    evidence: str
    measured: str = ""


@dataclass(frozen=True)
class Part:
    """One number that a claim needs to be on one side of its bound: where, and its estimate at any level."""

    where: str
    at: Callable[[float], Estimate]

    @property
    def estimate(self) -> Estimate:
        """At the level of all intervals."""
        return self.at(INTERVAL_LEVEL)


@dataclass(frozen=True)
class Bound:
    """Which numbers a claim allows: those above `low` and below `high`."""

    low: float = -math.inf
    high: float = math.inf

    def kept(self, interval: Interval) -> bool:
        """Whether all of an interval is allowed."""
        return self.low < interval[0] and interval[1] < self.high

    def broken(self, interval: Interval) -> bool:
        """Whether none of an interval is allowed."""
        return interval[1] <= self.low or self.high <= interval[0]

    def room(self, value: float) -> float:
        """How far inside the bound a number is; negative outside."""
        return min(value - self.low, self.high - value)

    def __str__(self) -> str:
        sides = ([f"above {self.low:g}"] if self.low > -math.inf else []) + (
            [f"below {self.high:g}"] if self.high < math.inf else []
        )
        return " and ".join(sides)


def judge(claim: Claim, results: Results) -> Verdict:
    """Test a claim on records; undecided, with the reason, where they do not hold what it needs."""
    try:
        return judgement(claim, results)
    except Unanswerable as reason:
        return Verdict("undecided", None, None, 0, f"{reason}.")


@singledispatch
def judgement(claim: Any, results: Results) -> Verdict:
    """The test for a kind of claim; `about_*.py` register one for each."""
    raise TypeError(f"no test for {type(claim).__name__}")


def decide(parts: Sequence[Part], bound: Bound, what: str) -> Verdict:
    """Holds when every part keeps the bound, fails when one breaks it even at its share of the level."""
    estimates = [part.estimate for part in parts]
    strict = 1 - (1 - INTERVAL_LEVEL) / len(parts)
    kept = [e.interval is not None and bound.kept(e.interval) for e in estimates]
    broken = [(i := part.at(strict).interval) is not None and bound.broken(i) for part in parts]
    outcome: Outcome = "holds" if all(kept) else "fails" if any(broken) else "undecided"
    # One known number is enough to fail by; to hold or to stay undecided, the unknown ones are the worst.
    candidates = [e for e in estimates if e.value is not None] if outcome == "fails" else estimates
    worst = min(candidates, key=lambda e: -math.inf if e.value is None else bound.room(e.value))
    numbers = "; ".join(f"{part.where}{_text(e)}" for part, e in zip(parts, estimates, strict=True))
    reason = _thin(estimates) if outcome == "undecided" else ""
    n = min(e.n for e in estimates)
    return Verdict(outcome, worst.value, worst.interval, n, f"{what}: {numbers}; claimed {bound}{reason}.", what)


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unknown for some seed"
    if estimate.interval is None:
        return f"{estimate.value:.3g}, no interval"
    low, high = estimate.interval
    return f"{estimate.value:.3g} [{low:.3g}, {high:.3g}]"


def _thin(estimates: Sequence[Estimate]) -> str:
    if any(e.interval is None and e.n == 1 for e in estimates):
        return "; one seed says nothing of its own uncertainty, so train more"
    return "; more seeds would tell" if any(e.interval for e in estimates) else ""


def mean_part(where: str, values: Float[np.ndarray, " Z"], one_seed_sd: float | None = None) -> Part:
    """A part whose number is a mean over seeds; unknown where a seed has none, for leaving it out would be choosing."""
    if not np.isfinite(values).all():
        return Part(where, lambda level: Estimate(None, None, len(values), None))
    return Part(where, lambda level: over_seeds(values, one_seed_sd, level))


def share(flags: Any, tolerance: float, what: str) -> Verdict:
    """A share of runs with its exact interval (Clopper and Pearson 1934), against the share that is tolerated."""
    n, k = len(flags), int(np.sum(flags))
    tail = (1 - INTERVAL_LEVEL) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    outcome: Outcome = "holds" if high < tolerance else "fails" if low > tolerance else "undecided"
    more = "; more runs would tell" if outcome == "undecided" else ""
    numbers = f"{what}: {k} of {n}, {k / n:.2g} [{low:.2g}, {high:.2g}]; claimed below {tolerance:g}{more}."
    return Verdict(outcome, k / n, (low, high), n, numbers, what)
