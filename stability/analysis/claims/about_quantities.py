"""Claims about quantities: what the runs were observed to do, and how it grows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stability.analysis.claims.about_sensitivity import on_common_rates, per_seed
from stability.analysis.claims.results import (
    LOSS,
    SENSITIVITY,
    Box,
    Replica,
    Results,
    Unanswerable,
    at_seeds,
    slope_weights,
)
from stability.analysis.claims.verdicts import Bound, Part, Verdict, decide, judgement, mean_part, share
from stability.analysis.claims.vocabulary import (
    Axis,
    Curve,
    ExceedsOnlyIn,
    GrowsFaster,
    QuantityBelow,
    QuantityTrend,
    QuantityWithin,
    Range,
    SetByLearningRate,
)
from stability.analysis.scaling import fit_slope
from stability.analysis.sensitivity import sensitivity_noise_sd
from stability.analysis.uncertainty import Basis, Estimate


@judgement.register
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
    return share(others, claim.tolerance, what)


@judgement.register
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
    return share(outside, claim.tolerance, what)


@judgement.register
def _(claim: QuantityBelow, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    than, other = results.arm(claim.than) if claim.than else arm, claim.than_quantity or claim.quantity
    parts = []
    for scale in results.common_scales([arm, than], claim.scales):
        a = results.box(claim.quantity, arm, [scale], claim.learning_rates)
        b = results.box(other, than, [scale], claim.learning_rates)
        parts.append(_below(scale, a, b, results.loss_noise if claim.quantity == other == LOSS else None))
    return decide(
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
    return mean_part(f"{scale} ", means[1] - means[0], None if noise is None else noise * math.sqrt(2 / len(rates)))


@judgement.register
def _(claim: QuantityTrend, results: Results) -> Verdict:
    curve = Curve(quantity=claim.quantity, arm=claim.arm, scales=claim.scales)
    growth = _growth(curve, claim.along, claim.learning_rates, results)
    bound = Bound(low=claim.slope) if claim.kind == "quantity_rises" else Bound(high=-claim.slope)
    what = f"slope of ln({claim.quantity}) of {results.arm(claim.arm)!r} on ln {_SYMBOL[claim.along]}"
    part = growth.over_sizes() if claim.along == "n_params" else mean_part("", growth.slopes, growth.noise_sd)
    return decide([part], bound, what)


@judgement.register
def _(claim: GrowsFaster, results: Results) -> Verdict:
    a, b = (_growth(side, claim.along, claim.learning_rates, results) for side in (claim.curve, claim.than))
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        raise Unanswerable("the two curves share no seed")
    noise = None if a.noise_sd is None or b.noise_sd is None else math.hypot(a.noise_sd, b.noise_sd)
    slopes = f"{np.mean(a.slopes):.3g} against {np.mean(b.slopes):.3g}"
    what = f"difference of log-log slopes on {_SYMBOL[claim.along]} ({slopes})"
    return decide([mean_part("", a.of(shared) - b.of(shared), noise)], Bound(low=0.0), what)


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
        return np.asarray(self.logs @ slope_weights(self.x))

    @property
    def noise_sd(self) -> float | None:
        """What the declared noise makes of one slope."""
        return None if self.noise_sds is None else math.hypot(*(self.noise_sds * slope_weights(self.x)))

    def of(self, seeds: Sequence[Replica]) -> Float[np.ndarray, " Z"]:
        """The slopes of some seeds, in the order given."""
        return self.slopes[[self.seeds.index(seed) for seed in seeds]]

    def over_sizes(self) -> Part:
        """The slope on ln N as a law for further sizes: the scales' scatter about the line counts, as in `scaling`."""
        slope_weights(self.x)  # refuses scales of one N
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
    members = on_common_rates([results.cell(arm, scale, learning_rates) for scale in scales])
    seeds = tuple(seed for seed in members[0].seeds if all(seed in cell.seeds for cell in members))
    if len(members) < 2 or not seeds:
        raise Unanswerable(f"arm {arm!r} has {len(members)} scales with {len(seeds)} seeds in common")
    values = np.stack([per_seed(at_seeds(cell, seeds), "mean") for cell in members], axis=1)
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


@judgement.register
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
    return decide([mean_part("", over_scales / over_rates)], Bound(high=claim.at_most), what)
