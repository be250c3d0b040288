"""Claim by claim: what it measures, and what that decides.

Every claim comes down to numbers with intervals and a bound that they must keep. It *holds* when every interval lies on
the right side of the bound, *fails* when one lies on the wrong side, and is *undecided* in between or without an
interval. Intervals are two-sided at 90 %, so a claim whose truth lies on the bound holds in at most 5 % of studies.
Where a claim is about several scales, it fails by one of them only at that one's share of the error (Bonferroni), so
that many chances to fail make failing no likelier. Pairs (same seed, same learning rate) are compared as pairs.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.stats import beta

from stability.analysis.best_learning_rate import (
    best_learning_rate_noise_sd,
    best_log_learning_rate_per_seed,
)
from stability.analysis.cells import Cell
from stability.analysis.claims.results import (
    LOSS,
    SENSITIVITY,
    Box,
    Replica,
    Results,
    Unanswerable,
    at_learning_rates,
    at_seeds,
    within,
)
from stability.analysis.claims.vocabulary import (
    Axis,
    BestLearningRateStays,
    BestLearningRateTrend,
    Claim,
    Curve,
    ExceedsOnlyIn,
    GrowsFaster,
    QuantityBelow,
    QuantityTrend,
    QuantityWithin,
    Range,
    SensitivityAlike,
    SensitivityBelow,
    SetByLearningRate,
    StableEdgeFalls,
    TrainsAtEveryLearningRate,
)
from stability.analysis.edge_fit import fit_stable_edge
from stability.analysis.scaling import fit_slope
from stability.analysis.sensitivity import Estimator, sensitivity_noise_sd, sensitivity_of
from stability.analysis.stable_edge import stable_edge_brackets
from stability.analysis.uncertainty import INTERVAL_LEVEL, Basis, Estimate, Interval, over_seeds
from stability.errors import InputError

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim.

    Attributes:
        effect: the number that decides, in the unit that `evidence` names; of several scales the least favourable.
        interval: 90 %, None where there is none.
        n: seeds (for shares: runs) behind it.
        evidence: the numbers in words, or why there are none.
    """

    verdict: Outcome
    effect: float | None
    interval: Interval | None
    n: int
    evidence: str


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
        return _judge(claim, results)
    except Unanswerable as reason:
        return Verdict("undecided", None, None, 0, f"{reason}.")


@singledispatch
def _judge(claim: Any, results: Results) -> Verdict:
    raise TypeError(f"no test for {type(claim).__name__}")


def _decide(parts: Sequence[Part], bound: Bound, what: str) -> Verdict:
    """Holds when every part keeps the bound, fails when one breaks it even at its share of the level."""
    estimates = [part.estimate for part in parts]
    strict = 1 - (1 - INTERVAL_LEVEL) / len(parts)
    kept = [e.interval is not None and bound.kept(e.interval) for e in estimates]
    broken = [(i := part.at(strict).interval) is not None and bound.broken(i) for part in parts]
    outcome: Outcome = "holds" if all(kept) else "fails" if any(broken) else "undecided"
    worst = min(estimates, key=lambda e: -math.inf if e.value is None else bound.room(e.value))
    numbers = "; ".join(f"{part.where}{_text(e)}" for part, e in zip(parts, estimates, strict=True))
    reason = _thin(estimates) if outcome == "undecided" else ""
    n = min(e.n for e in estimates)
    return Verdict(outcome, worst.value, worst.interval, n, f"{what}: {numbers}; claimed {bound}{reason}.")


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unknown"
    if estimate.interval is None:
        return f"{estimate.value:.3g}, no interval"
    low, high = estimate.interval
    return f"{estimate.value:.3g} [{low:.3g}, {high:.3g}]"


def _thin(estimates: Sequence[Estimate]) -> str:
    if any(e.interval is None and e.n == 1 for e in estimates):
        return "; one seed says nothing of its own uncertainty, so train more"
    return "; more seeds would tell" if any(e.interval for e in estimates) else ""


def _part(where: str, values: Float[np.ndarray, " Z"], one_seed_sd: float | None = None) -> Part:
    """A part whose number is a mean over seeds; seeds without one are left out."""
    known = values[np.isfinite(values)]
    return Part(where, lambda level: over_seeds(known, one_seed_sd, level))


# --- sensitivity ----------------------------------------------------------------------------------------------------


@_judge.register
def _(claim: SensitivityBelow, results: Results) -> Verdict:
    arm, than = results.arm(claim.arm), results.arm(claim.than)
    parts = []
    for scale in results.common_scales([arm, than], claim.scales):
        upper = results.cell(than, scale)
        if claim.than_ranges:
            upper, lower = _best_range(upper, claim.than_ranges, claim.estimator), results.cell(arm, scale)
        else:
            lower, upper = _on_common_rates([results.cell(arm, scale), upper])
        parts.append(_difference(f"{scale} ", upper, lower, claim.estimator, results.loss_noise))
    what = f"sensitivity ({claim.estimator}) of {than!r} minus that of {arm!r}, nats per token"
    return _decide(parts, Bound(low=claim.margin), what)


@_judge.register
def _(claim: SensitivityAlike, results: Results) -> Verdict:
    arms = [results.arm(arm) for arm in claim.arms]
    parts = []
    for scale in results.common_scales(arms, claim.scales):
        members = dict(zip(arms, _on_common_rates([results.cell(arm, scale) for arm in arms]), strict=True))
        for a, b in itertools.combinations(arms, 2):
            where = f"{scale} {a!r} minus {b!r} "
            parts.append(_difference(where, members[a], members[b], claim.estimator, results.loss_noise))
    what = f"difference in sensitivity ({claim.estimator}), nats per token"
    return _decide(parts, Bound(-claim.within, claim.within), what)


def _on_common_rates(members: Sequence[Cell]) -> list[Cell]:
    """Cells cut to the learning rates that all of them have."""
    common = sorted(set.intersection(*(set(cell.learning_rates.tolist()) for cell in members)))
    if len(common) < 2:
        names = " and ".join(map(str, members))
        raise Unanswerable(f"{names} share {len(common)} learning rates, and sensitivity needs two")
    return [at_learning_rates(cell, common) for cell in members]


def _best_range(cell: Cell, ranges: Sequence[Range], estimator: Estimator) -> Cell:
    """The cell on the one of the ranges where its mean sensitivity is lowest."""
    candidates = [at_learning_rates(cell, [r for r in cell.learning_rates if within(r, bounds)]) for bounds in ranges]
    whole = [one for one in candidates if len(one.learning_rates) > 1]
    if not whole:
        raise Unanswerable(f"{cell} has fewer than two learning rates in each of the ranges")
    return min(whole, key=lambda one: float(np.mean(_per_seed(one, estimator))))


def _per_seed(cell: Cell, estimator: Estimator) -> Float[np.ndarray, " Z"]:
    """Sensitivity of each seed, NaN where it is unknown."""
    values = [sensitivity_of(cell.learning_rates, losses)[estimator] for losses in cell.losses]
    return np.array([math.nan if value is None else value for value in values])


def _difference(where: str, a: Cell, b: Cell, estimator: Estimator, noise: float) -> Part:
    """Sensitivity of `a` minus that of `b`, by pairs of seeds, or of means where they share no seed."""
    noises = [sensitivity_noise_sd(cell, estimator, noise) for cell in (a, b)]
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if shared:
        values = _per_seed(at_seeds(a, shared), estimator) - _per_seed(at_seeds(b, shared), estimator)
        return _part(where, values, None if None in noises else math.hypot(*filter(None, noises)))
    parts = [_part("", _per_seed(cell, estimator), sd) for cell, sd in zip((a, b), noises, strict=True)]
    return Part(where, lambda level: _minus(*(part.at(level) for part in parts)))


def _minus(a: Estimate, b: Estimate) -> Estimate:
    """The difference of two independent means; their intervals' arms add in quadrature."""
    n = min(a.n, b.n)
    if a.value is None or b.value is None:
        return Estimate(None, None, n, None)
    value = a.value - b.value
    if a.interval is None or b.interval is None:
        return Estimate(value, None, n, None)
    low = math.hypot(a.value - a.interval[0], b.interval[1] - b.value)
    high = math.hypot(a.interval[1] - a.value, b.value - b.interval[0])
    return Estimate(value, (value - low, value + high), n, a.basis)


# --- stability and the best learning rate ---------------------------------------------------------------------------


@_judge.register
def _(claim: StableEdgeFalls, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    brackets = stable_edge_brackets(results.table.filter(pl.col("arm") == arm), results.unstable_excess)
    try:
        fit = fit_stable_edge(brackets, "averaged")
    except InputError as error:
        raise Unanswerable(f"arm {arm!r}: {error.problem}") from None
    slope = float(np.median(fit.slope))
    part = Part("", lambda level: Estimate(slope, fit.slope_interval(level), fit.n_seeds, "seeds"))
    return _decide([part], Bound(high=0.0), f"slope of ln(highest stable LR) of {arm!r} on ln N")


@_judge.register
def _(claim: TrainsAtEveryLearningRate, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    runs = results.values(LOSS, arm, results.scales(arm, claim.scales))
    return _share(runs["unstable"].to_numpy(), claim.tolerance, f"share of the runs of {arm!r} that are unstable")


@_judge.register
def _(claim: BestLearningRateStays, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    best = _best(results, arm, results.scales(arm, claim.scales))
    if len(best) < 2:
        raise Unanswerable(f"arm {arm!r} has one scale, and nothing to compare it with")
    parts = [_apart(f"{a} to {b} ", best[b], best[a]) for a, b in itertools.combinations(best, 2)]
    return _decide(parts, Bound(-claim.within, claim.within), f"move of the best LR of {arm!r}, in steps of the grid")


@_judge.register
def _(claim: BestLearningRateTrend, results: Results) -> Verdict:
    rises = claim.kind == "best_learning_rate_rises"
    bound = Bound(low=0.0) if rises else Bound(high=0.0)
    if claim.arms:
        arms = [results.arm(arm) for arm in claim.arms]
        first, last = (_best(results, arm, results.common_scales(arms, claim.scales)) for arm in (arms[0], arms[-1]))
        parts = [_apart(f"{scale} ", last[scale], first[scale]) for scale in first]
        return _decide(parts, bound, f"best LR of {arms[-1]!r} over that of {arms[0]!r}, in steps of the grid")
    arm = results.arm(claim.arm)
    best = _best(results, arm, results.scales(arm, claim.scales))
    if len(best) < 2:
        raise Unanswerable(f"arm {arm!r} has one scale, and no trend")
    return _decide([_trend(best)], bound, f"slope of ln(best LR) of {arm!r} on ln N")


@dataclass(frozen=True)
class _Best:
    """The best LR of one cell: its logarithm for each seed (NaN at the grid's edge), its noise, and the grid's step."""

    n_params: int
    seeds: tuple[Any, ...]
    log_rates: Float[np.ndarray, " Z"]
    noise_sd: float | None
    grid_step: float

    def of(self, seeds: Sequence[Any]) -> Float[np.ndarray, " Z"]:
        """The logarithms of some seeds, in the order given."""
        return self.log_rates[[self.seeds.index(seed) for seed in seeds]]


def _best(results: Results, arm: str, scales: Sequence[str]) -> dict[str, _Best]:
    found = {}
    for scale in scales:
        cell = results.cell(arm, scale)
        log_rates = best_log_learning_rate_per_seed(cell, results.loss_noise)
        step = float(np.median(np.diff(np.log(cell.learning_rates)))) if len(cell.learning_rates) > 1 else math.nan
        noise = best_learning_rate_noise_sd(cell, results.loss_noise)
        found[scale] = _Best(cell.n_params, cell.seeds, log_rates, noise, step)
    if all(np.isnan(best.log_rates).all() for best in found.values()):
        raise Unanswerable(f"the best LR of {arm!r} lies at the edge of the grid at every scale")
    return found


def _apart(where: str, a: _Best, b: _Best) -> Part:
    """How far best LR `a` lies above `b`, in steps of the grid."""
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        raise Unanswerable("the runs to compare share no seed")
    step = (a.grid_step + b.grid_step) / 2
    noise = None if a.noise_sd is None or b.noise_sd is None else math.hypot(a.noise_sd, b.noise_sd) / step
    return _part(where, (a.of(shared) - b.of(shared)) / step, noise)


def _trend(best: dict[str, _Best]) -> Part:
    """Least-squares slope of ln(best LR) on ln N, for each seed that all the scales have."""
    shared = [seed for seed in next(iter(best.values())).seeds if all(seed in one.seeds for one in best.values())]
    if not shared:
        raise Unanswerable("the scales share no seed")
    weights = _slope_weights([one.n_params for one in best.values()])
    noises = [one.noise_sd for one in best.values()]
    noise = (
        None
        if None in noises
        else float(np.sqrt(sum((w * (sd or 0)) ** 2 for w, sd in zip(weights, noises, strict=True))))
    )
    return _part("", np.stack([one.of(shared) for one in best.values()], axis=1) @ weights, noise)


def _slope_weights(x: Sequence[float] | Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
    """What to multiply values with to get their least-squares slope on ln x."""
    centred = np.log(np.asarray(x, float))
    centred = centred - centred.mean()
    total = float(np.sum(centred**2))
    if total == 0:
        raise Unanswerable("all scales have the same N")
    return np.asarray(centred / total)


# --- quantities -----------------------------------------------------------------------------------------------------


@_judge.register
def _(claim: ExceedsOnlyIn, results: Results) -> Verdict:
    arms = [results.arm(claim.arm)] if claim.arm else results.arms
    if not arms:
        raise Unanswerable("the table has no runs")
    runs = [results.values(claim.quantity, arm, results.scales(arm, claim.scales)) for arm in arms]
    beyond = [np.asarray(one.filter(one["value"] > claim.threshold)[claim.runs]) for one in runs]
    others = ~np.concatenate(beyond).astype(bool)
    what = f"share of the runs with {claim.quantity} above {claim.threshold:g} that are not {claim.runs}"
    if not len(others):
        raise Unanswerable(f"no run has {claim.quantity} above {claim.threshold:g}")
    return _share(others, claim.tolerance, what)


@_judge.register
def _(claim: QuantityWithin, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    runs = results.values(claim.quantity, arm, results.scales(arm, claim.scales), claim.learning_rates)
    values = runs["value"].drop_nulls().to_numpy()
    if not len(values):
        raise Unanswerable(f"no run of {arm!r} has {claim.quantity!r}")
    low = -math.inf if claim.at_least is None else claim.at_least
    high = math.inf if claim.at_most is None else claim.at_most
    outside = (values < low) | (values > high)
    seen = f"seen: {values.min():.3g} to {values.max():.3g}"
    what = f"share of the runs of {arm!r} with {claim.quantity} outside [{low:g}, {high:g}] ({seen})"
    return _share(outside, claim.tolerance, what)


def _share(flags: Any, tolerance: float, what: str) -> Verdict:
    """A share of runs with its exact interval (Clopper and Pearson 1934), against the share that is tolerated."""
    n, k = len(flags), int(np.sum(flags))
    tail = (1 - INTERVAL_LEVEL) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    outcome: Outcome = "holds" if high < tolerance else "fails" if low > tolerance else "undecided"
    more = "; more runs would tell" if outcome == "undecided" else ""
    numbers = f"{what}: {k} of {n}, {k / n:.2g} [{low:.2g}, {high:.2g}]; claimed below {tolerance:g}{more}."
    return Verdict(outcome, k / n, (low, high), n, numbers)


@_judge.register
def _(claim: QuantityBelow, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    than, other = results.arm(claim.than) if claim.than else arm, claim.than_quantity or claim.quantity
    parts = []
    for scale in results.common_scales([arm, than], claim.scales):
        a = results.box(claim.quantity, arm, [scale], claim.learning_rates)
        b = results.box(other, than, [scale], claim.learning_rates)
        parts.append(_below(scale, a, b, results.loss_noise if claim.quantity == other == LOSS else None))
    return _decide(
        parts, Bound(low=claim.margin), f"{other} of {than!r} minus {claim.quantity} of {arm!r}, mean over LRs"
    )


def _below(scale: str, a: Box, b: Box, noise: float | None) -> Part:
    """By how much the second box lies above the first: the mean over the learning rates that both have, by seeds."""
    seeds = [seed for seed in a.seeds if seed in b.seeds]
    rates = np.intersect1d(a.learning_rates, b.learning_rates)
    if not seeds or not len(rates):
        raise Unanswerable(f"the arms share no {'seed' if not seeds else 'learning rate'} at {scale}")
    means = [
        box.values[[box.seeds.index(seed) for seed in seeds]][:, 0][:, np.isin(box.learning_rates, rates)].mean(axis=1)
        for box in (a, b)
    ]
    return _part(f"{scale} ", means[1] - means[0], None if noise is None else noise * math.sqrt(2 / len(rates)))


@_judge.register
def _(claim: QuantityTrend, results: Results) -> Verdict:
    curve = Curve(quantity=claim.quantity, arm=claim.arm, scales=claim.scales)
    growth = _growth(curve, claim.along, claim.learning_rates, results)
    bound = Bound(low=claim.slope) if claim.kind == "quantity_rises" else Bound(high=-claim.slope)
    what = f"slope of ln({claim.quantity}) of {results.arm(claim.arm)!r} on ln {_SYMBOL[claim.along]}"
    part = growth.over_sizes() if claim.along == "n_params" else _part("", growth.slopes, growth.noise_sd)
    return _decide([part], bound, what)


@_judge.register
def _(claim: GrowsFaster, results: Results) -> Verdict:
    a, b = (_growth(side, claim.along, claim.learning_rates, results) for side in (claim.curve, claim.than))
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        raise Unanswerable("the two curves share no seed")
    noise = None if a.noise_sd is None or b.noise_sd is None else math.hypot(a.noise_sd, b.noise_sd)
    slopes = f"{np.mean(a.slopes):.3g} against {np.mean(b.slopes):.3g}"
    what = f"difference of log-log slopes on {_SYMBOL[claim.along]} ({slopes})"
    return _decide([_part("", a.of(shared) - b.of(shared), noise)], Bound(low=0.0), what)


_SYMBOL = {"n_params": "N", "learning_rate": "LR"}


@dataclass(frozen=True)
class _Growth:
    """A quantity's logarithm along an axis, mean over the other one.

    Attributes:
        x: positions on the axis, N or LR.
        logs: of each seed at each position.
        noise_sds: what the declared noise of single runs makes of one value at each position, where that is known.
    """

    seeds: tuple[Replica, ...]
    x: Float[np.ndarray, " X"]
    logs: Float[np.ndarray, "Z X"]
    noise_sds: Float[np.ndarray, " X"] | None = None

    @property
    def slopes(self) -> Float[np.ndarray, " Z"]:
        """The least-squares slope on ln x of each seed."""
        return np.asarray(self.logs @ _slope_weights(self.x))

    @property
    def noise_sd(self) -> float | None:
        """What the declared noise makes of one slope."""
        return None if self.noise_sds is None else math.hypot(*(self.noise_sds * _slope_weights(self.x)))

    def of(self, seeds: Sequence[Replica]) -> Float[np.ndarray, " Z"]:
        """The slopes of some seeds, in the order given."""
        return self.slopes[[self.seeds.index(seed) for seed in seeds]]

    def over_sizes(self) -> Part:
        """The slope on ln N as a law for further sizes: the scales' scatter about the line counts, as in `scaling`."""
        _slope_weights(self.x)  # refuses scales of one N
        noise_square = None if self.noise_sds is None else float(np.mean(self.noise_sds**2))
        slope, half, basis = fit_slope(np.log(self.x).tolist(), list(self.logs.T), noise_square)
        interval = None if half is None else (slope - half, slope + half)
        known: Basis | None = "noise_floor" if basis == "noise_floor" else None if basis is None else "seeds"
        return Part("", lambda level: Estimate(slope, interval, len(self.seeds), known))


def _growth(curve: Curve, along: Axis, learning_rates: Range | None, results: Results) -> _Growth:
    arm = results.arm(curve.arm)
    scales = results.scales(arm, curve.scales)
    if curve.quantity != SENSITIVITY:
        return _growth_of_quantity(results.box(curve.quantity, arm, scales, learning_rates), along, curve.quantity)
    if along != "n_params":
        raise Unanswerable("sensitivity is taken over learning rates, so it has no growth along them")
    members = _on_common_rates([results.cell(arm, scale, learning_rates) for scale in scales])
    seeds = tuple(seed for seed in members[0].seeds if all(seed in cell.seeds for cell in members))
    if len(members) < 2 or not seeds:
        raise Unanswerable(f"arm {arm!r} has {len(members)} scales with {len(seeds)} seeds in common")
    values = np.stack([_per_seed(at_seeds(cell, seeds), "mean") for cell in members], axis=1)
    logs = _logarithm(values, SENSITIVITY)
    noises = [sensitivity_noise_sd(cell, "mean", results.loss_noise) for cell in members]
    # d ln S = dS / S
    relative = [sd / s for sd, s in zip(noises, values.mean(axis=0), strict=True) if sd is not None]
    sizes = np.array([cell.n_params for cell in members], float)
    return _Growth(seeds, sizes, logs, np.array(relative) if len(relative) == len(members) else None)


def _growth_of_quantity(box: Box, along: Axis, quantity: str) -> _Growth:
    x, other = (box.n_params, 2) if along == "n_params" else (box.learning_rates, 1)
    if len(x) < 2:
        raise Unanswerable(f"{quantity!r} is known at one {'scale' if along == 'n_params' else 'learning rate'} only")
    return _Growth(box.seeds, x, _logarithm(box.values, quantity).mean(axis=other))


def _logarithm(values: Float[np.ndarray, "..."], quantity: str) -> Float[np.ndarray, "..."]:
    if not (values > 0).all():
        raise Unanswerable(
            f"{quantity!r} is not positive everywhere (least {values.min():.3g}), so it has no log slope"
        )
    return np.asarray(np.log(values))


def _lost(box: Box) -> str:
    rates = ", ".join(f"{rate:g}" for rate in box.left_out)
    return f" (without LR {rates}, where some run has none)" if rates else ""


@_judge.register
def _(claim: SetByLearningRate, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    box = results.box(claim.quantity, arm, results.scales(arm, claim.scales), claim.learning_rates)
    if len(box.scales) < 2 or len(box.learning_rates) < 2:
        raise Unanswerable(f"{claim.quantity!r} needs two scales and two learning rates")
    logs = _logarithm(box.values, claim.quantity)
    over_scales, over_rates = np.ptp(logs.mean(axis=2), axis=1), np.ptp(logs.mean(axis=1), axis=1)
    if not (over_rates > 0).all():
        raise Unanswerable(f"{claim.quantity!r} does not change with the learning rate at all")
    what = f"change of ln({claim.quantity}) of {arm!r} over scales, as a share of its change over LRs{_lost(box)}"
    return _decide([_part("", over_scales / over_rates)], Bound(high=claim.at_most), what)
