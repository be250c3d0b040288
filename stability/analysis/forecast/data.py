"""What a forecast is made from: ln q of the runs of one arm, cell by cell, and what became of those without a value.

A quantity must be positive, for it is fitted in its logarithm. A run that diverged and has no finite value counts as
*beyond* what could be seen: a bound (`censored`), not a missing value, for leaving it out would favour the runs that
went well. A finished run without a value, or with one that is 0 or below, is left out, and counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from scipy.special import digamma, ndtr, polygamma

from stability.analysis.cells import cells
from stability.analysis.stable_edge import UNSTABLE_EXCESS, unstable
from stability.analysis.uncertainty import INTERVAL_LEVEL
from stability.errors import InputError

Direction = Literal["above", "below"]

_RUN = ("scale", "n_params", "learning_rate", "seed", "data_seed")
_STEPS_OF_IMPUTATION = 12
_MOST_DEGREES = 60.0
"""Prior degrees of freedom of the seeds' variances: as many as say that all cells have one variance."""
_LEAST_DEGREES = 2.5
"""... and as few as leave every cell its own."""


@dataclass(frozen=True, eq=False)
class Observations:
    """R runs of one arm.

    Attributes:
        arm: its label.
        direction: on which side of the threshold the danger lies.
        log_size: ln N.
        log_rate: ln LR.
        value: ln q; of a censored run the bound beyond which it lies.
        censored: the run diverged, and its value is only known to lie beyond `value`.
        unstable: the run's verdict (`stability.analysis.stable_edge.unstable`).
        left_out: runs without a positive value that did not diverge.
    """

    arm: str
    direction: Direction
    log_size: Float[np.ndarray, " R"]
    log_rate: Float[np.ndarray, " R"]
    value: Float[np.ndarray, " R"]
    censored: Bool[np.ndarray, " R"]
    unstable: Bool[np.ndarray, " R"]
    left_out: int = 0

    @property
    def sign(self) -> int:
        """1 where large values are the danger, -1 where small ones are."""
        return 1 if self.direction == "above" else -1

    @cached_property
    def log_sizes(self) -> Float[np.ndarray, " S"]:
        """The distinct ln N, ascending."""
        return np.unique(self.log_size)

    @cached_property
    def log_rates(self) -> Float[np.ndarray, " K"]:
        """The distinct ln LR, ascending."""
        return np.unique(self.log_rate)

    def subset(self, keep: Bool[np.ndarray, " R"]) -> "Observations":
        """Some of the runs."""
        names = ("log_size", "log_rate", "value", "censored", "unstable")
        parts = {name: getattr(self, name)[keep] for name in names}
        return Observations(self.arm, self.direction, **parts, left_out=self.left_out)

    def up_to(self, count: int) -> "Observations":
        """The runs of the `count` smallest sizes."""
        return self.subset(self.log_size <= self.log_sizes[count - 1])

    @cached_property
    def cells(self) -> "CellMeans":
        """The runs cell by cell, censored ones imputed from these runs alone."""
        return _cell_means(self.log_size, self.log_rate, imputed(self))


@dataclass(frozen=True, eq=False)
class CellMeans:
    """C cells, each a size at a learning rate, by their means over seeds.

    Attributes:
        log_size: ln N.
        log_rate: ln LR.
        mean: of ln q.
        count: runs.
        variance: of ln q over seeds, shrunk (`shrunk_variances`); 0 where no cell has two runs.
        noise_sd: standard deviation over seeds of a further run at each ln LR of `noise_rates`.
        noise_degrees: of freedom of that.
    """

    log_size: Float[np.ndarray, " C"]
    log_rate: Float[np.ndarray, " C"]
    mean: Float[np.ndarray, " C"]
    count: Int[np.ndarray, " C"]
    variance: Float[np.ndarray, " C"]
    noise_rates: Float[np.ndarray, " K"]
    noise_sd: Float[np.ndarray, " K"]
    noise_degrees: float

    def noise(self, log_rate: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Standard deviation over seeds of a further run, interpolated over the learning rates."""
        return np.asarray(np.interp(log_rate, self.noise_rates, self.noise_sd))


def observations(
    table: pl.DataFrame,
    quantity: str,
    direction: Direction = "above",
    threshold: float | None = None,
    unstable_excess: float = UNSTABLE_EXCESS,
) -> dict[str, Observations]:
    """The runs of every arm that has any with a value.

    Args:
        table: one row a run, as for `stability.max_stable_learning_rate`, and the quantity as a column.
        quantity: its name.
        direction: on which side of a threshold the danger lies.
        threshold: a run that diverged without a value counts as beyond it, and beyond every value seen at its LR.
        unstable_excess: nats per token, positive.

    Raises:
        InputError: the table is bad, or has no such numeric column.
    """
    if quantity not in table.columns or not table.schema[quantity].is_numeric():
        known = [name for name, kind in table.schema.items() if kind.is_numeric()]
        problem = "is no number that the runs have" if quantity in table.columns else "is no column of the table"
        raise InputError("quantity", quantity, problem, f"Choose one of: {', '.join(known)}.")
    if "data_seed" not in table.columns:
        table = table.with_columns(pl.lit(None, pl.Int64).alias("data_seed"))
    found = {}
    for arm in sorted(table["arm"].unique().to_list()):
        runs = _of_arm(table.filter(pl.col("arm") == arm), quantity, unstable_excess)
        if one := _observations(arm, runs, direction, threshold):
            found[arm] = one
    return found


def _of_arm(table: pl.DataFrame, quantity: str, unstable_excess: float) -> list[Mapping[str, Any]]:
    """The finished and diverged runs, with `value` and verdict."""
    flags = {}
    for cell in cells(table):
        verdicts = unstable(cell, unstable_excess)
        for row, (seed, data_seed) in enumerate(cell.seeds):
            for column, rate in enumerate(cell.learning_rates.tolist()):
                key = (cell.scale, cell.n_params, rate, seed, data_seed)
                flags[key] = bool(verdicts[row, column]), bool(cell.diverged[row, column])
    rows: list[Mapping[str, Any]] = []
    for run in table.select(*dict.fromkeys((*_RUN, quantity))).iter_rows(named=True):
        key = tuple(run[name] for name in _RUN)
        if key in flags:
            rows.append({**run, "value": run[quantity], "unstable": flags[key][0], "diverged": flags[key][1]})
    return rows


def _observations(
    arm: str, runs: list[Mapping[str, Any]], direction: Direction, threshold: float | None
) -> Observations | None:
    sign = 1 if direction == "above" else -1
    usable = [run["value"] is not None and np.isfinite(run["value"]) and run["value"] > 0 for run in runs]
    if not any(usable):
        return None
    logs = [float(np.log(run["value"])) if ok else np.nan for run, ok in zip(runs, usable, strict=True)]
    kept, values, censored = [], [], []
    for run, log in zip(runs, logs, strict=True):
        if np.isnan(log) and not run["diverged"]:
            continue
        if np.isnan(log):
            same_rate = [
                v for o, v in zip(runs, logs, strict=True) if o["learning_rate"] == run["learning_rate"] and v == v
            ]
            limits = [*same_rate, *([] if threshold is None else [float(np.log(threshold))])] or [
                v for v in logs if v == v
            ]
            values.append(sign * max(sign * limit for limit in limits))
        else:
            values.append(log)
        kept.append(run)
        censored.append(bool(np.isnan(log)))
    return Observations(
        arm,
        direction,
        np.log(np.array([run["n_params"] for run in kept], float)),
        np.log(np.array([run["learning_rate"] for run in kept], float)),
        np.array(values, float),
        np.array(censored, bool),
        np.array([run["unstable"] for run in kept], bool),
        left_out=len(runs) - len(kept),
    )


def imputed(data: Observations) -> Float[np.ndarray, " R"]:
    """ln q of every run, that of censored ones being what a plane in (ln N, ln LR) expects beyond their bound.

    The Tobit expectation of Amemiya (1984, Journal of Econometrics 24, 3-61): E[y | y > c] = m + s phi(h) / Phi(-h),
    h = (c - m) / s, iterated to its fixed point.
    """
    if not data.censored.any():
        return data.value
    design = np.stack(
        [np.ones(len(data.value)), data.log_size - data.log_size.mean(), data.log_rate - data.log_rate.mean()], axis=1
    )
    values = data.value.copy()
    for _ in range(_STEPS_OF_IMPUTATION):
        mean = design @ np.linalg.lstsq(design, values, rcond=None)[0]
        sd = max(float(np.std((values - mean)[~data.censored])), 1e-3)
        h = data.sign * (data.value - mean) / sd
        density = np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi)
        # Far out the ratio of density and tail tends to h + 1/h; the floor keeps it from dividing nothing by nothing.
        mills = np.where(h > 30, h + 1 / np.maximum(h, 1), density / np.maximum(ndtr(-h), 1e-200))
        values = np.where(data.censored, mean + data.sign * sd * mills, data.value)
    return values


def _cell_means(
    log_size: Float[np.ndarray, " R"], log_rate: Float[np.ndarray, " R"], value: Float[np.ndarray, " R"]
) -> CellMeans:
    places, inverse = np.unique(np.stack([log_size, log_rate], axis=1), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    count = np.bincount(inverse)
    mean = np.bincount(inverse, value) / count
    squares = np.bincount(inverse, (value - mean[inverse]) ** 2)
    sizes, at_rates = places[:, 0], places[:, 1]
    rates = np.unique(at_rates)
    if not (count > 1).any():
        return CellMeans(sizes, at_rates, mean, count, np.zeros(len(mean)), rates, np.zeros(len(rates)), np.inf)
    variance, prior_degrees = shrunk_variances(squares, count - 1)
    spread = [float(np.exp(np.log(variance[at_rates == rate]).mean() / 2)) for rate in rates]
    return CellMeans(sizes, at_rates, mean, count, variance, rates, np.array(spread), prior_degrees)


def shrunk_variances(
    squares: Float[np.ndarray, " C"], degrees: Int[np.ndarray, " C"]
) -> tuple[Float[np.ndarray, " C"], float]:
    """Every cell's variance over seeds, drawn towards the common one as far as the cells are alike.

    Empirical Bayes with an inverse-gamma prior, whose two parameters are the moments of the log variances: Smyth (2004,
    Statistical Applications in Genetics and Molecular Biology 3(1), 3), equations 6 to 8.

    Args:
        squares: sum of squares about each cell's mean.
        degrees: of freedom of each, 0 for a cell of one run; one of them positive.

    Returns:
        The variances, and the prior's degrees of freedom.
    """
    known = degrees > 0
    f = degrees[known].astype(float)
    floor = max(float(np.median(squares[known] / f)) * 1e-4, 1e-12)  # seeds that agree by chance, or by rounding
    logs = np.log(np.maximum(squares[known] / f, floor)) - digamma(f / 2) + np.log(f / 2)
    excess = float(np.var(logs, ddof=1) - polygamma(1, f / 2).mean()) if len(logs) > 1 else 0.0
    prior = _MOST_DEGREES
    if excess > 0:
        grid = np.geomspace(_LEAST_DEGREES, _MOST_DEGREES, 200)
        prior = float(grid[np.argmin(np.abs(polygamma(1, grid / 2) - excess))])
    common = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
    return (prior * common + squares) / (prior + degrees), prior


__all__ = ["INTERVAL_LEVEL", "CellMeans", "Direction", "Observations", "imputed", "observations", "shrunk_variances"]
