"""Claims about LR sensitivity: one arm against another."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stability.analysis.cells import Cell
from stability.analysis.claims.results import Results, Unanswerable, at_learning_rates, at_seeds, within
from stability.analysis.claims.verdicts import Bound, Part, Verdict, decide, judgement, mean_part
from stability.analysis.claims.vocabulary import Range, SensitivityAlike, SensitivityBelow
from stability.analysis.sensitivity import Estimator, sensitivity_noise_sd, sensitivity_of
from stability.analysis.uncertainty import Estimate


@judgement.register
def _(claim: SensitivityBelow, results: Results) -> Verdict:
    arm, than = results.arm(claim.arm), results.arm(claim.than)
    parts = []
    for scale in results.common_scales([arm, than], claim.scales):
        upper = results.cell(than, scale)
        if claim.than_ranges:
            upper, lower = _best_range(upper, claim.than_ranges, claim.estimator), results.cell(arm, scale)
        else:
            lower, upper = on_common_rates([results.cell(arm, scale), upper])
        parts.append(_difference(f"{scale} ", upper, lower, claim.estimator, results.loss_noise))
    what = f"sensitivity ({claim.estimator}) of {than!r} minus that of {arm!r}, nats per token"
    return decide(parts, Bound(low=claim.margin), what)


@judgement.register
def _(claim: SensitivityAlike, results: Results) -> Verdict:
    arms = [results.arm(arm) for arm in claim.arms]
    parts = []
    for scale in results.common_scales(arms, claim.scales):
        members = dict(zip(arms, on_common_rates([results.cell(arm, scale) for arm in arms]), strict=True))
        for a, b in itertools.combinations(arms, 2):
            where = f"{scale} {a!r} minus {b!r} "
            parts.append(_difference(where, members[a], members[b], claim.estimator, results.loss_noise))
    what = f"difference in sensitivity ({claim.estimator}), nats per token"
    return decide(parts, Bound(-claim.within, claim.within), what)


def on_common_rates(members: Sequence[Cell]) -> list[Cell]:
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
    return min(whole, key=lambda one: float(np.mean(per_seed(one, estimator))))


def per_seed(cell: Cell, estimator: Estimator) -> Float[np.ndarray, " Z"]:
    """Sensitivity of each seed, NaN where it is unknown."""
    values = [sensitivity_of(cell.learning_rates, losses)[estimator] for losses in cell.losses]
    return np.array([math.nan if value is None else value for value in values])


def _difference(where: str, a: Cell, b: Cell, estimator: Estimator, noise: float) -> Part:
    """Sensitivity of `a` minus that of `b`, by pairs of seeds, or of means where they share no seed."""
    noises = [sensitivity_noise_sd(cell, estimator, noise) for cell in (a, b)]
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if shared:
        values = per_seed(at_seeds(a, shared), estimator) - per_seed(at_seeds(b, shared), estimator)
        return mean_part(where, values, None if None in noises else math.hypot(*filter(None, noises)))
    parts = [mean_part("", per_seed(cell, estimator), sd) for cell, sd in zip((a, b), noises, strict=True)]
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
