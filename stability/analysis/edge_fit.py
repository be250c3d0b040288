"""How the highest stable LR moves with model size: fits of interval-censored edges on ln N, and what they forecast.

The model, its priors and their integration are in `edge_posterior`. Every interval is of the posterior; a forecast is
predictive, and averages a straight line and a parabola, for a few scales cannot tell that there is no curvature.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.edge_posterior import (
    SLOPE_SD,
    Boxes,
    Curve,
    Posterior,
    averaged,
    distinct_sizes,
    linear_probability,
    log_likelihood,
    normal_scores,
    posterior,
)
from stability.analysis.stable_edge import UNSTABLE_EXCESS, max_stable_learning_rate, stable_edge_brackets
from stability.analysis.uncertainty import INTERVAL_LEVEL, Interval
from stability.errors import InputError

Form = Literal["linear", "quadratic", "averaged"]
CURVES: tuple[Curve, ...] = get_args(Curve)
Agreement = Literal["agree", "differ", "undecided"]

SPREAD_SCALE = 0.3
"""Ours: prior of the standard deviation of the arms' slopes around their common one, half-normal."""

SAME_SLOPE = 0.2
"""Ours: slopes that differ by less are the same in practice: over a factor of 10 in N the edges part by 1.6 times."""

FAR = 100.0
"""Ours: a forecast further than this factor of N from the data says so."""

SCALES_OF_QUADRATIC = 4
"""Ours: three for the parabola and one to tell whether it forecasts better than the straight line."""

CLEARLY_BETTER = 0.1
"""Ours: nats of log score by which a quadratic must forecast better, more than the integration's rounding."""


# --- one fit --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EdgeFit:
    """The posterior of one arm's highest stable LR as a function of N, as equally weighted draws.

    Attributes:
        arm: the arm.
        form: of the curve. The curvature is 0 in all draws of a linear one, and in the linear share of averaged ones.
        n_params_reference: N at x = 0, the geometric mean of the scales' N.
        log_edge: a, ln of the edge at the reference.
        slope: b, ln LR per ln N at the reference.
        curvature: c, ln LR per (ln N)^2.
        noise: sigma, standard deviation of ln edge over the seeds of a scale.
        scatter: omega, standard deviation of ln edge over scales of the same N.
        n_scales: distinct N.
        n_scales_bracketed: those where some seed has both a stable and an unstable LR.
        n_seeds: of the N that has most.
        effective_draws: independent draws that the posterior's precision amounts to.
    """

    arm: str
    form: Form
    n_params_reference: float
    log_edge: Float[np.ndarray, " draws"] = field(repr=False)
    slope: Float[np.ndarray, " draws"] = field(repr=False)
    curvature: Float[np.ndarray, " draws"] = field(repr=False)
    noise: Float[np.ndarray, " draws"] = field(repr=False)
    scatter: Float[np.ndarray, " draws"] = field(repr=False)
    n_scales: int
    n_scales_bracketed: int
    n_seeds: int
    effective_draws: float

    def predict(
        self,
        n_params: Sequence[float] | Float[np.ndarray, " N"],
        level: float = INTERVAL_LEVEL,
        *,
        one_seed: bool = True,
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """The edge at any size: posterior median, and the ends of the central interval, as LRs.

        Args:
            n_params: sizes, 1 or more.
            level: probability that each interval holds.
            one_seed: predict one seed of a further scale, which scatter and noise part from the curve; otherwise the
                curve itself.

        Raises:
            InputError: a size or the level is out of range.
        """
        sizes = _sizes(n_params)
        low, high = _tails(level)
        draws = self._log_edges(sizes)
        if one_seed:
            draws = draws + (np.hypot(self.noise, self.scatter) * normal_scores(len(self.noise)))[:, None]
        ends = np.exp(np.quantile(draws, [low, 0.5, high], axis=0))
        return ends[1], ends[0], ends[2]

    def slope_interval(self, level: float = INTERVAL_LEVEL) -> Interval:
        """Central posterior interval of the slope at the reference, ln LR per ln N."""
        return _interval(self.slope, level)

    @property
    def probability_negative(self) -> float:
        """P(b < 0): that the edge falls with N, at the reference."""
        return float((self.slope < 0).mean())

    def _log_edges(self, sizes: Float[np.ndarray, " N"]) -> Float[np.ndarray, "draws N"]:
        x = np.log(sizes / self.n_params_reference)
        return self.log_edge[:, None] + np.outer(self.slope, x) + np.outer(self.curvature, x**2)

    def _log_score(self, boxes: Boxes) -> float:
        """ln of the posterior predictive probability of brackets that were not fitted."""
        curve = np.stack([self.log_edge, self.slope, self.curvature], axis=1)
        scores = log_likelihood(boxes, self.n_params_reference, curve, self.noise, self.scatter)
        return float(np.logaddexp.reduce(scores) - math.log(len(scores)))


def fit_stable_edge(brackets: pl.DataFrame, form: Form = "linear") -> EdgeFit:
    """Fit one arm's brackets.

    Args:
        brackets: rows as `stable_edge_brackets` returns them, of one arm; a bracket open on both sides does not count.
        form: `linear` (c = 0), `quadratic`, or `averaged`: both, each with its posterior probability.

    Raises:
        InputError: the form is unknown, a learning rate is not positive, the brackets are of several arms, or they do
            not determine an edge: fewer than two distinct N, no LR unstable anywhere, or none stable.
    """
    if form not in get_args(Form):
        raise InputError("form", form, "is not a form of the fit", f"Give one of {', '.join(get_args(Form))}.")
    arms = brackets["arm"].unique().to_list()
    if len(arms) != 1:
        raise InputError("brackets", f"{len(arms)} arms", "are not the brackets of one arm", "Filter them by arm.")
    boxes = _boxes(brackets)
    if obstacle := _obstacle(boxes):
        raise InputError("brackets", arms[0], f"do not determine how the edge moves: {obstacle}", "Add runs.")
    return _fit(arms[0], boxes, form)


def edge_fits(table: pl.DataFrame, unstable_excess: float = UNSTABLE_EXCESS) -> dict[str, EdgeFit]:
    """The averaged fit of every arm whose runs determine one: what the forecasts, figures and claims rest on.

    Args:
        table: as for `max_stable_learning_rate`.
        unstable_excess: nats per token, positive.

    Raises:
        InputError: as `stable_edge_brackets`.
    """
    of_arm = _boxes_of_arms(table, unstable_excess)
    return {arm: _fit(arm, boxes, "averaged") for arm, boxes in of_arm.items() if not _obstacle(boxes)}


def _boxes_of_arms(table: pl.DataFrame, unstable_excess: float) -> dict[str, Boxes]:
    brackets = stable_edge_brackets(table, unstable_excess)
    arms = sorted(table["arm"].unique().to_list())
    return {arm: _boxes(brackets.filter(pl.col("arm") == arm)) for arm in arms}


def _boxes(brackets: pl.DataFrame) -> Boxes:
    ends = brackets.select("n_params", pl.col("lower", "upper").cast(pl.Float64))
    for end in ("lower", "upper"):
        for rate in ends[end].drop_nulls().filter(ends[end].drop_nulls() <= 0):
            raise InputError("learning_rate", rate, "is not positive", "Leave such runs out: their edge has no log.")
    counted = (
        ends.filter(pl.col("lower").is_not_null() | pl.col("upper").is_not_null())
        .with_columns(
            pl.col("n_params").cast(pl.Float64),
            pl.col("lower").log().fill_null(-math.inf),
            pl.col("upper").log().fill_null(math.inf),
        )
        .group_by("n_params", "lower", "upper")
        .len()
        .sort("n_params", "lower", "upper")
    )
    return tuple(counted.iter_rows())


def _obstacle(boxes: Boxes) -> str | None:
    """Why these brackets do not determine an edge as a function of N; None when they do."""
    if not boxes:
        return "no run has a result"
    lows, highs = [low for _, low, _, _ in boxes], [high for _, _, high, _ in boxes]
    if min(highs) == math.inf:
        least = f"{math.exp(min(lows)):g}"
        return f"no learning rate was unstable, so the highest stable one is only known to be {least} or more"
    if max(lows) == -math.inf:
        most = f"{math.exp(max(highs)):g}"
        return f"no learning rate was stable, so the highest stable one is only known to be below {most}"
    if len(distinct_sizes(boxes)) < 2:
        return "only one size has results, and a slope needs two"
    return None


def _fit(arm: str, boxes: Boxes, form: Form) -> EdgeFit:
    found = _posterior(boxes, form)
    seeds = _seeds_of_sizes(boxes)
    return EdgeFit(
        arm=arm,
        form=form,
        n_params_reference=_reference(boxes),
        log_edge=found.draws[:, 0],
        slope=found.draws[:, 1],
        curvature=found.draws[:, 2],
        noise=found.draws[:, 3],
        scatter=found.draws[:, 4],
        n_scales=len(seeds),
        n_scales_bracketed=len(distinct_sizes(box for box in boxes if math.isfinite(box[2] - box[1]))),
        n_seeds=max(seeds),
        effective_draws=found.effective,
    )


def _posterior(boxes: Boxes, form: Form) -> Posterior:
    reference = _reference(boxes)
    return averaged(boxes, reference) if form == "averaged" else posterior(boxes, reference, form)


def _reference(boxes: Boxes) -> float:
    return math.exp(float(np.mean(np.log(distinct_sizes(boxes)))))


def _seeds_of_sizes(boxes: Boxes) -> list[int]:
    return [sum(count for n, *_, count in boxes if n == size) for size in distinct_sizes(boxes)]


# --- the form of the curve ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """A form and why; `scores`: ln predictive probability of the largest scale's brackets, given the others."""

    form: Curve
    reason: str
    scores: Mapping[str, float]


def _choose(boxes: Boxes) -> _Choice:
    """The form that forecasts the largest scale better from the others; the straight line when that cannot be told."""
    smaller, largest = _split(boxes)
    sizes = len(distinct_sizes(boxes))
    if sizes < SCALES_OF_QUADRATIC:
        return _Choice("linear", f"linear because a quadratic needs {SCALES_OF_QUADRATIC} sizes, not {sizes}", {})
    if _obstacle(smaller):
        return _Choice("linear", "linear because the smaller scales do not determine an edge to compare forms by", {})
    scores: dict[str, float] = {form: _fit("", smaller, form)._log_score(largest) for form in CURVES}
    found = f"log score {scores['quadratic']:.2f} against {scores['linear']:.2f}"
    if scores["quadratic"] > scores["linear"] + CLEARLY_BETTER:
        return _Choice("quadratic", f"quadratic because it forecasts the largest scale better ({found})", scores)
    return _Choice("linear", f"linear because a quadratic does not forecast the largest scale better ({found})", scores)


def _split(boxes: Boxes) -> tuple[Boxes, Boxes]:
    """Those of the smaller scales, and those of the largest."""
    largest = max((n for n, *_ in boxes), default=0.0)
    return tuple(box for box in boxes if box[0] < largest), tuple(box for box in boxes if box[0] == largest)


# --- slopes of several arms -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PooledSlope:
    """The common slope mu of several arms, b_arm ~ Normal(mu, tau), from their linear fits.

    Attributes:
        arms: those pooled.
        slope: posterior median of mu, ln LR per ln N.
        interval: of mu.
        probability_negative: P(mu < 0).
        spread: posterior median of tau.
        spread_interval: of tau.
        agreement: `agree` when all pairs differ by less than `SAME_SLOPE` with the interval's probability; otherwise
            `differ` when the interval of some pair's difference, corrected for the number of pairs (Bonferroni), leaves
            out 0; otherwise `undecided`.
    """

    arms: tuple[str, ...]
    slope: float
    interval: Interval
    probability_negative: float
    spread: float
    spread_interval: Interval
    agreement: Agreement


def pool_slopes(fits: Mapping[str, EdgeFit], level: float = INTERVAL_LEVEL) -> PooledSlope:
    """Partial pooling of the slopes of linear fits: Gelman et al., Bayesian Data Analysis (3rd ed.), Section 5.4.

    Arms share nothing but mu and tau, so that each enters by the marginal likelihood of its slope, its posterior over
    its prior; mu ~ Normal(0, `SLOPE_SD`) and tau ~ half-normal(`SPREAD_SCALE`) are integrated on a grid.

    Raises:
        InputError: fewer than two fits, or one that is not linear.
    """
    if len(fits) < 2:
        raise InputError("fits", f"{len(fits)} arms", "are too few to pool", "Give the fits of two arms or more.")
    if any(fit.form != "linear" for fit in fits.values()):
        raise InputError("fits", "quadratic", "has no one slope to pool", "Give linear fits.")
    slopes = [fit.slope for fit in fits.values()]
    grid = np.linspace(min(map(np.min, slopes)) - 0.5, max(map(np.max, slopes)) + 0.5, 401)
    spreads = (np.arange(30) + 0.5) / 30 * 4 * SPREAD_SCALE
    log_joint = _log_joint_of_mean_and_spread(np.stack([_log_marginal(s, grid) for s in slopes], axis=1), grid, spreads)
    joint = np.exp(log_joint - log_joint.max())
    mean, spread = _Tabulated(grid, joint.sum(axis=1)), _Tabulated(spreads, joint.sum(axis=0))
    low, high = _tails(level)
    return PooledSlope(
        arms=tuple(fits),
        slope=mean.quantile(0.5),
        interval=(mean.quantile(low), mean.quantile(high)),
        probability_negative=mean.below(0.0),
        spread=spread.quantile(0.5),
        spread_interval=(spread.quantile(low), spread.quantile(high)),
        agreement=_agreement(slopes, level),
    )


def _log_marginal(slopes: Float[np.ndarray, " draws"], grid: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
    """ln likelihood of a slope, up to a constant: kernel density of its draws over its prior's density."""
    low, high = np.quantile(slopes, [0.1, 0.9])
    width = max((high - low) / 2.56 * len(slopes) ** -0.2, 2 * (grid[1] - grid[0]))
    counts, _ = np.histogram(slopes, np.append(grid, 2 * grid[-1] - grid[-2]) - (grid[1] - grid[0]) / 2)
    kernel = np.exp(-(((grid[:, None] - grid) / width) ** 2) / 2)
    # Beyond the draws the density is unknown but small; the floor keeps its logarithm finite.
    marginal: Float[np.ndarray, " G"] = np.log(kernel @ counts / len(slopes) + 1e-12) + grid**2 / (2 * SLOPE_SD**2)
    return marginal


def _log_joint_of_mean_and_spread(
    log_marginals: Float[np.ndarray, "G arms"], grid: Float[np.ndarray, " G"], spreads: Float[np.ndarray, " T"]
) -> Float[np.ndarray, "G T"]:
    peak = log_marginals.max(axis=0)
    marginals = np.exp(log_marginals - peak)
    columns = []
    for spread in spreads:
        kernel = np.exp(-(((grid[:, None] - grid) / spread) ** 2) / 2) / spread
        columns.append(np.log(kernel @ marginals + 1e-300).sum(axis=1))
    prior = -(grid[:, None] ** 2) / (2 * SLOPE_SD**2) - spreads**2 / (2 * SPREAD_SCALE**2)
    return np.stack(columns, axis=1) + prior


@dataclass(frozen=True, eq=False)
class _Tabulated:
    """A density on an even grid, each value standing for the cell around its point."""

    points: Float[np.ndarray, " G"]
    density: Float[np.ndarray, " G"]

    def quantile(self, probability: float) -> float:
        edges, cumulative = self._cumulative()
        return float(np.interp(probability, cumulative, edges))

    def below(self, value: float) -> float:
        edges, cumulative = self._cumulative()
        return float(np.interp(value, edges, cumulative))

    def _cumulative(self) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
        step = self.points[1] - self.points[0]
        edges = np.append(self.points - step / 2, self.points[-1] + step / 2)
        cumulative = np.append(0.0, np.cumsum(self.density))
        return edges, cumulative / cumulative[-1]


def _agreement(slopes: Sequence[Float[np.ndarray, " draws"]], level: float) -> Agreement:
    # The draws of two arms are independent: one arm's are shuffled, for all fits use the same standard draws.
    generator = np.random.default_rng(0)
    shuffled = np.stack([generator.permutation(draws) for draws in slopes])
    pairs = [shuffled[i] - shuffled[j] for i, j in itertools.combinations(range(len(slopes)), 2)]
    corrected = 1 - (1 - level) / len(pairs)
    if (np.ptp(shuffled, axis=0) < SAME_SLOPE).mean() >= level:
        return "agree"
    apart = any(low > 0 or high < 0 for low, high in (_interval(pair, corrected) for pair in pairs))
    return "differ" if apart else "undecided"


# --- tables ---------------------------------------------------------------------------------------------------------

_FIT_SCHEMA: dict[str, Any] = {
    "arm": pl.String,
    "form": pl.String,
    "chosen": pl.Boolean,
    "probability": pl.Float64,
    "n_params_reference": pl.Float64,
    "learning_rate_reference": pl.Float64,
    "slope": pl.Float64,
    "interval": pl.List(pl.Float64),
    "probability_negative": pl.Float64,
    "curvature": pl.Float64,
    "curvature_interval": pl.List(pl.Float64),
    "noise": pl.Float64,
    "spread": pl.Float64,
    "spread_interval": pl.List(pl.Float64),
    "agreement": pl.String,
    "held_out_log_score": pl.Float64,
    "n_scales": pl.Int64,
    "n_seeds": pl.Int64,
    "reason": pl.String,
}


def stable_edge_fit(
    table: pl.DataFrame, unstable_excess: float = UNSTABLE_EXCESS, level: float = INTERVAL_LEVEL
) -> pl.DataFrame:
    """How each arm's highest stable LR moves with N, and what the arms have in common (docs/statistics.md).

    Args:
        table: as for `max_stable_learning_rate`.
        unstable_excess: nats per token, positive (0.5 unless given).
        level: probability that each interval holds (0.9 unless given).

    Returns:
        One row for each arm and form that could be fitted, one with `slope` null where none could, and, with two arms
        or more, one whose `arm` is null: the common slope of the arms' linear fits. With the columns

        - `arm`, `form`: `linear` or `quadratic` in ln N;
        - `chosen`: it forecasts the arm's largest scale better from the others, by `held_out_log_score`; linear when
          neither clearly does;
        - `probability`: posterior, of the form against the other one;
        - `n_params_reference`, `learning_rate_reference`: where x = ln(N / reference) is 0, and the edge there
          (posterior median of the curve);
        - `slope`, `interval`, `probability_negative`: ln LR per ln N at the reference, posterior median;
        - `curvature`, `curvature_interval`: of a quadratic, ln LR per (ln N)^2;
        - `noise`: standard deviation of ln edge over seeds, posterior median;
        - `spread`, `spread_interval`, `agreement`: of the arms' slopes around the common one, see `PooledSlope`;
        - `held_out_log_score`: ln predictive probability of the largest scale's brackets, given the others;
        - `n_scales`, `n_seeds`: distinct N, and the seeds of the one that has most;
        - `reason`: why there is no slope, or how the form was chosen and what limits the fit.

    Raises:
        InputError: as `max_stable_learning_rate`, or the level is not between 0 and 1.
    """
    _tails(level)
    of_arm = _boxes_of_arms(table, unstable_excess)
    rows = [row for arm, boxes in of_arm.items() for row in _arm_rows(arm, boxes, level)]
    if len(of_arm) > 1:
        rows.append(_pooled_row(of_arm, level))
    return pl.DataFrame(rows, schema=_FIT_SCHEMA)


def _arm_rows(arm: str, boxes: Boxes, level: float) -> list[dict[str, Any]]:
    if obstacle := _obstacle(boxes):
        seeds = _seeds_of_sizes(boxes)
        return [{"arm": arm, "n_scales": len(seeds), "n_seeds": max(seeds, default=0), "reason": obstacle}]
    choice = _choose(boxes)
    tried: tuple[Curve, ...] = CURVES if choice.scores else ("linear",)
    share = linear_probability(boxes, _reference(boxes)) if choice.scores else None
    of_form = {"linear": share, "quadratic": None if share is None else 1 - share}
    return [{**_fit_row(_fit(arm, boxes, form), choice, level), "probability": of_form[form]} for form in tried]


def _fit_row(fit: EdgeFit, choice: _Choice, level: float) -> dict[str, Any]:
    curved = fit.form == "quadratic"
    remarks = [choice.reason if fit.form == choice.form else "", _weakness(fit)]
    return {
        "arm": fit.arm,
        "form": fit.form,
        "chosen": fit.form == choice.form,
        "n_params_reference": fit.n_params_reference,
        "learning_rate_reference": math.exp(float(np.median(fit.log_edge))),
        "slope": float(np.median(fit.slope)),
        "interval": fit.slope_interval(level),
        "probability_negative": fit.probability_negative,
        "curvature": float(np.median(fit.curvature)) if curved else None,
        "curvature_interval": _interval(fit.curvature, level) if curved else None,
        "noise": float(np.median(fit.noise)),
        "held_out_log_score": choice.scores.get(fit.form),
        "n_scales": fit.n_scales,
        "n_seeds": fit.n_seeds,
        "reason": "; ".join(filter(None, remarks)) or None,
    }


def _weakness(fit: EdgeFit) -> str:
    if fit.n_scales_bracketed > 1:
        return ""
    count = "one size has" if fit.n_scales_bracketed else "no size has"
    return f"{count} both a stable and an unstable learning rate, so one end of the interval is the prior's"


def _pooled_row(of_arm: Mapping[str, Boxes], level: float) -> dict[str, Any]:
    fits = {arm: _fit(arm, boxes, "linear") for arm, boxes in of_arm.items() if not _obstacle(boxes)}
    counts = {"n_scales": len(distinct_sizes(itertools.chain(*of_arm.values())))}
    if len(fits) < 2:
        named = "one arm has" if fits else "no arm has"
        return {**counts, "form": "linear", "reason": f"{named} a slope, and pooling needs two"}
    pooled = pool_slopes(fits, level)
    left_out = [arm for arm in of_arm if arm not in fits]
    return {
        **counts,
        "form": "linear",
        "slope": pooled.slope,
        "interval": pooled.interval,
        "probability_negative": pooled.probability_negative,
        "spread": pooled.spread,
        "spread_interval": pooled.spread_interval,
        "agreement": pooled.agreement,
        "n_seeds": max(fit.n_seeds for fit in fits.values()),
        "reason": f"without {'; '.join(left_out)}, whose runs bound the edge only" if left_out else None,
    }


_FORECAST_SCHEMA: dict[str, Any] = {
    "quantity": pl.String,
    "arm": pl.String,
    "n_params": pl.Int64,
    "value": pl.Float64,
    "interval": pl.List(pl.Float64),
    "held_out": pl.Boolean,
    "observed": pl.List(pl.Float64),
    "reason": pl.String,
}


def forecast_stable_edge(
    table: pl.DataFrame,
    n_params: Sequence[float] = (),
    level: float = INTERVAL_LEVEL,
    unstable_excess: float = UNSTABLE_EXCESS,
) -> pl.DataFrame:
    """The highest stable LR at unseen sizes, and for each arm a back-test: its largest scale from the smaller ones.

    Args:
        table: as for `max_stable_learning_rate`.
        n_params: sizes to forecast, parameters without embedding and head.
        level: probability that each interval (0.9 unless given) holds the edge of one further seed at that size.
        unstable_excess: nats per token, positive (0.5 unless given).

    Returns:
        For every arm the held-out row first, then one for each size, with the columns

        - `quantity`: `max_stable_learning_rate`;
        - `arm`, `n_params`;
        - `value`: predictive median of the continuous edge, an LR; the fit averages the straight line and the parabola;
        - `interval`: predictive, [low, high];
        - `held_out`: the arm's largest scale, forecast from the smaller ones;
        - `observed`: [lower, upper] of `max_stable_learning_rate`, either null; null where not held out;
        - `reason`: why there is no value, or what limits it.

    Raises:
        InputError: as `max_stable_learning_rate`, or a size or the level is out of range.
    """
    _tails(level)
    sizes = _sizes(n_params)
    edges = max_stable_learning_rate(table, unstable_excess)
    rows = []
    for arm, boxes in _boxes_of_arms(table, unstable_excess).items():
        rows.append(_back_test(arm, boxes, edges.filter(pl.col("arm") == arm), level))
        rows += [_forecast(arm, boxes, float(size), level) for size in sizes]
    named = [{"quantity": "max_stable_learning_rate", **row} for row in rows]
    return pl.DataFrame(named, schema=_FORECAST_SCHEMA)


def _back_test(arm: str, boxes: Boxes, edges: pl.DataFrame, level: float) -> dict[str, Any]:
    smaller, _ = _split(boxes)
    size = max(distinct_sizes(boxes), default=float(edges["n_params"].max()))  # type: ignore[arg-type]
    observed, remark = _observed(edges.filter(pl.col("n_params") == size))
    if len(distinct_sizes(smaller)) < 2:
        reason = f"{len(distinct_sizes(boxes))} of the arm's scales have results, and a back-test needs 3: 2 to fit"
        return {**_row(arm, size), "held_out": True, "observed": observed, "reason": reason}
    row = _forecast(arm, smaller, size, level)
    return {**row, "held_out": True, "observed": observed, "reason": _joined(row["reason"], remark)}


def _observed(edges: pl.DataFrame) -> tuple[list[float | None] | None, str | None]:
    """The majority's bracket; over all of them where several scales share a size."""
    known = edges.filter(pl.col("lower").is_not_null() | pl.col("upper").is_not_null())
    if not len(known):
        return None, None
    ends = [None if known[name].null_count() else known[name] for name in ("lower", "upper")]
    lower, upper = (None if ends[0] is None else ends[0].min()), (None if ends[1] is None else ends[1].max())
    remark = f"{len(known)} scales have this size; observed covers their brackets" if len(known) > 1 else None
    return [lower, upper], remark  # type: ignore[list-item]


def _forecast(arm: str, boxes: Boxes, size: float, level: float) -> dict[str, Any]:
    if obstacle := _obstacle(boxes):
        return {**_row(arm, size), "reason": obstacle}
    fit = _fit(arm, boxes, "averaged")
    median, low, high = (float(found[0]) for found in fit.predict([size], level))
    sizes = distinct_sizes(boxes)
    return {
        **_row(arm, size),
        "value": median,
        "interval": [low, high],
        "reason": _joined(_far(size, sizes[0], sizes[-1]), _weakness(fit)),
    }


def _row(arm: str, size: float) -> dict[str, Any]:
    return {"arm": arm, "n_params": round(size), "held_out": False}


def _far(size: float, smallest: float, largest: float) -> str | None:
    beyond = max(size / largest, smallest / size)
    if beyond <= FAR:
        return None
    return f"{beyond:.3g} times beyond the scales fitted: the form of the curve is untested so far out"


def _joined(*remarks: str | None) -> str | None:
    return "; ".join(filter(None, remarks)) or None


# --- small things ---------------------------------------------------------------------------------------------------

_LARGEST = 1e18
"""Parameters: what a 64-bit integer holds."""


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError("level", level, "is not a probability between 0 and 1", "Give one, 0.9 for instance.")
    return (1 - level) / 2, (1 + level) / 2


def _interval(draws: Float[np.ndarray, " draws"], level: float) -> Interval:
    low, high = np.quantile(draws, _tails(level))
    return float(low), float(high)


def _sizes(n_params: Sequence[float] | Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    sizes = np.asarray(n_params, float)
    if sizes.ndim != 1 or not ((sizes >= 1) & (sizes < _LARGEST)).all():
        raise InputError("n_params", n_params, "holds what is not a number of parameters", "Give numbers of 1 or more.")
    return sizes
