"""How LR sensitivity grows with size: the exponent b of a power law S = exp(a) N^b.

Least squares of ln S on ln N, each seed at each scale a point. How uncertain b is shows in the scatter of the points,
which has two sources (pure error and lack of fit: Draper & Smith, Applied Regression Analysis, 3rd ed., ch. 2): seeds
about the mean of their scale, and those means about the line. No power law holds exactly, so the larger of the two mean
squares counts, with its own degrees of freedom, in Student's interval of the slope. With one seed there is only the
second, which takes three scales; with two scales only the first. Where seeds do not differ, the declared noise floor
stands in for them, carried over to ln S as sd(S) / S. The seeds of one scale count as independent of those of another:
what they share (the order of the data) cancels from a slope.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import stdtrit

from stability.analysis.cells import Cell, cells
from stability.analysis.sensitivity import ESTIMATORS, Estimator, sensitivity_noise_sd, sensitivity_per_seed
from stability.analysis.uncertainty import INTERVAL_LEVEL, LOSS_NOISE, check_loss_noise
from stability.errors import InputError


def sensitivity_scaling(
    table: pl.DataFrame,
    estimator: Estimator = "mean",
    learning_rate_min: float | None = None,
    learning_rate_max: float | None = None,
    loss_noise: float = LOSS_NOISE,
) -> pl.DataFrame:
    """How LR sensitivity S grows with size: the exponent b of S = exp(a) N^b for every arm (docs/statistics.md).

    Args:
        table: as for `sensitivity`.
        estimator: one of ESTIMATORS.
        learning_rate_min: as for `sensitivity`.
        learning_rate_max: as for `sensitivity`.
        loss_noise: as for `sensitivity`.

    Returns:
        One row for each arm, with the columns

        - `arm`, `estimator`;
        - `exponent`: b; null with fewer than two sizes, or where the sensitivity of a seed is 0 and has no logarithm;
        - `interval_low`, `interval_high`: the 90 % interval;
        - `basis`: `seeds`, `scatter` (of the scales about the line), `noise_floor`, or null without interval;
        - `n_scales`, `n_seeds`: scales behind it, and the fewest seeds that one of them has;
        - `reason`: why there is no exponent or no interval, or which scales it leaves out; null where all is said.

    Raises:
        InputError: as `sensitivity`, or there is no such estimator.
    """
    check_loss_noise(loss_noise)
    if estimator not in ESTIMATORS:
        raise InputError("estimator", estimator, "is not an estimator", f"Give one of {', '.join(ESTIMATORS)}.")
    schema = {
        "arm": pl.String,
        "estimator": pl.String,
        "exponent": pl.Float64,
        "interval_low": pl.Float64,
        "interval_high": pl.Float64,
        "basis": pl.String,
        "n_scales": pl.Int64,
        "n_seeds": pl.Int64,
        "reason": pl.String,
    }
    found = groupby(cells(table, learning_rate_min, learning_rate_max), key=lambda cell: cell.arm)
    rows = [{"arm": arm, "estimator": estimator, **_scaling(list(of), estimator, loss_noise)} for arm, of in found]
    return pl.DataFrame(rows, schema=schema)


def _scaling(arm: Sequence[Cell], estimator: Estimator, loss_noise: float) -> dict[str, Any]:
    per_seed = [(cell, sensitivity_per_seed(cell)[estimator]) for cell in arm]
    known = [(cell, values) for cell, values in per_seed if values is not None]
    left_out = [cell.scale for cell, values in per_seed if values is None]
    found = {"n_scales": len(known), "n_seeds": min((len(values) for _, values in known), default=0)}
    if reason := _no_exponent(known):
        return {**found, "reason": reason}
    sizes, logs = [math.log(cell.n_params) for cell, _ in known], [np.log(values) for _, values in known]
    exponent, half, basis = fit_slope(sizes, logs, _noise_square(known, estimator, loss_noise))
    if half is None:
        reason = "two scales of one seed each, with a scale where every run diverged, say nothing of the uncertainty"
    elif left_out:
        reason = f"without {', '.join(left_out)}, where there is no sensitivity"
    return {
        **found,
        "exponent": exponent,
        "interval_low": None if half is None else exponent - half,
        "interval_high": None if half is None else exponent + half,
        "basis": basis,
        "reason": reason,
    }


_Known = Sequence[tuple[Cell, Float[np.ndarray, " S"]]]


def _no_exponent(known: _Known) -> str | None:
    if len({cell.n_params for cell, _ in known}) < 2:
        return f"an exponent takes scales of two sizes; {len(known)} with a sensitivity, of fewer sizes, are here"
    if zero := [cell.scale for cell, values in known if not (values > 0).all()]:
        return f"the sensitivity of a seed is 0 at {', '.join(zero)}, and has no logarithm"
    return None


def _noise_square(known: _Known, estimator: Estimator, loss_noise: float) -> float | None:
    """Variance of ln S of one seed that the noise floor makes, averaged over the scales."""
    sds = [sensitivity_noise_sd(cell, estimator, loss_noise) for cell, _ in known]
    relative = [sd / float(values.mean()) for sd, (_, values) in zip(sds, known, strict=True) if sd is not None]
    return float(np.mean(np.square(relative))) if len(relative) == len(known) else None


def fit_slope(
    xs: Sequence[float], ys: Sequence[Float[np.ndarray, " seeds"]], noise_square: float | None
) -> tuple[float, float | None, str | None]:
    """Slope of y on x with several y at each x, by the method of the module.

    Args:
        xs: at least two different ones.
        ys: the values at each of them, one per seed.
        noise_square: variance of one y about its mean that is known beforehand; counts where no x has y that differ.

    Returns:
        The slope; half the width of its interval of level INTERVAL_LEVEL, None where nothing is known about it; and
        what that rests on: "seeds", "scatter", "noise_floor" or None.
    """
    counts = np.array([len(y) for y in ys])
    means = np.array([y.mean() for y in ys])
    x = np.array(xs) - np.average(xs, weights=counts)
    spread = float((counts * x**2).sum())
    slope = float((counts * x * means).sum() / spread)
    residuals = means - np.average(means, weights=counts) - slope * x
    pure_error = sum(float(((y - y.mean()) ** 2).sum()) for y in ys)
    errors = [
        ("seeds", pure_error, int(counts.sum()) - len(ys)),
        ("scatter", float((counts * residuals**2).sum()), len(ys) - 2),
    ]
    squares: list[tuple[float, float, str]] = [
        (square / freedom, freedom, basis) for basis, square, freedom in errors if freedom > 0 and square > 0
    ]
    if noise_square is not None and pure_error == 0:
        squares.append((noise_square, math.inf, "noise_floor"))
    if not squares:
        return slope, None, None
    square, freedom, basis = max(squares)
    quantile = float(stdtrit(freedom, (1 + INTERVAL_LEVEL) / 2))  # Student's; the normal one for infinitely many
    return slope, quantile * math.sqrt(square / spread), basis
