"""Claims about the learning rate itself: where training is stable, and where it is best."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.best_learning_rate import best_learning_rate_noise_sd, best_log_learning_rate_per_seed
from stability.analysis.claims.results import LOSS, Replica, Results, Unanswerable, slope_weights
from stability.analysis.claims.verdicts import Bound, Part, Verdict, decide, judgement, mean_part, share
from stability.analysis.claims.vocabulary import (
    BestLearningRateStays,
    BestLearningRateTrend,
    StableEdgeFalls,
    TrainsAtEveryLearningRate,
)
from stability.analysis.edge_fit import fit_stable_edge
from stability.analysis.stable_edge import stable_edge_brackets
from stability.analysis.uncertainty import Estimate
from stability.errors import InputError


@judgement.register
def _(claim: StableEdgeFalls, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    brackets = stable_edge_brackets(results.table.filter(pl.col("arm") == arm), results.unstable_excess)
    try:
        fit = fit_stable_edge(brackets, "averaged")
    except InputError as error:
        raise Unanswerable(f"arm {arm!r}: {error.problem}") from None
    slope = float(np.median(fit.slope))
    part = Part("", lambda level: Estimate(slope, fit.slope_interval(level), fit.n_seeds, "seeds"))
    return decide([part], Bound(high=0.0), f"slope of ln(highest stable LR) of {arm!r} on ln N")


@judgement.register
def _(claim: TrainsAtEveryLearningRate, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    runs = results.values(LOSS, arm, results.scales(arm, claim.scales))
    return share(runs["unstable"].to_numpy(), claim.tolerance, f"share of the runs of {arm!r} that are unstable")


@judgement.register
def _(claim: BestLearningRateStays, results: Results) -> Verdict:
    arm = results.arm(claim.arm)
    best = _best(results, arm, results.scales(arm, claim.scales))
    if len(best) < 2:
        raise Unanswerable(f"arm {arm!r} has one scale, and nothing to compare it with")
    parts = [_apart(f"{a} to {b} ", best[b], best[a]) for a, b in itertools.combinations(best, 2)]
    return decide(parts, Bound(-claim.within, claim.within), f"move of the best LR of {arm!r}, in steps of the grid")


@judgement.register
def _(claim: BestLearningRateTrend, results: Results) -> Verdict:
    rises = claim.kind == "best_learning_rate_rises"
    bound = Bound(low=0.0) if rises else Bound(high=0.0)
    if claim.arms:
        arms = [results.arm(arm) for arm in claim.arms]
        first, last = (_best(results, arm, results.common_scales(arms, claim.scales)) for arm in (arms[0], arms[-1]))
        parts = [_apart(f"{scale} ", last[scale], first[scale]) for scale in first]
        return decide(parts, bound, f"best LR of {arms[-1]!r} over that of {arms[0]!r}, in steps of the grid")
    arm = results.arm(claim.arm)
    best = _best(results, arm, results.scales(arm, claim.scales))
    if len(best) < 2:
        raise Unanswerable(f"arm {arm!r} has one scale, and no trend")
    return decide([_trend(best)], bound, f"slope of ln(best LR) of {arm!r} on ln N")


@dataclass(frozen=True)
class _Best:
    """The best LR of one cell: its logarithm for each seed (NaN at the grid's edge), its noise, and the grid's step."""

    n_params: int
    seeds: tuple[Replica, ...]
    log_rates: Float[np.ndarray, " Z"]
    noise_sd: float | None
    grid_step: float

    def of(self, seeds: Sequence[Replica]) -> Float[np.ndarray, " Z"]:
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
    return mean_part(where, (a.of(shared) - b.of(shared)) / step, noise)


def _trend(best: dict[str, _Best]) -> Part:
    """Least-squares slope of ln(best LR) on ln N, for each seed that all the scales have."""
    shared = [seed for seed in next(iter(best.values())).seeds if all(seed in one.seeds for one in best.values())]
    if not shared:
        raise Unanswerable("the scales share no seed")
    weights = slope_weights([one.n_params for one in best.values()])
    noises = [one.noise_sd for one in best.values()]
    noise = (
        None
        if None in noises
        else float(np.sqrt(sum((w * (sd or 0)) ** 2 for w, sd in zip(weights, noises, strict=True))))
    )
    return mean_part("", np.stack([one.of(shared) for one in best.values()], axis=1) @ weights, noise)
