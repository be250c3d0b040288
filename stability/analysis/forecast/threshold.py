"""Beyond which value of a quantity do runs fail? Given (1e4, Adam's epsilon), or estimated from the runs' verdicts.

    P(unstable | q, N) = lapse / 2 + (1 - lapse) Phi( sign (ln q - t - g ln(N / reference)) / w )

a probit with an uncertain threshold t, width w and drift g: nothing says that the loss suffers from the same value at
all sizes. The posterior is computed on a grid; the priors are the constants below. The lapse keeps a single odd run
from ruling a threshold out.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtr

from stability.analysis.forecast.data import Observations
from stability.analysis.forecast.predictive import Predictive
from stability.analysis.uncertainty import INTERVAL_LEVEL, Interval

WIDTH_MEDIAN, WIDTH_SPREAD = 0.5, 1.0
"""Ours: log-normal prior of w, in ln q."""

DRIFT_SD = 0.3
"""Ours: prior of g, Normal(0, this), ln q per ln N: over a factor of 100 in N the threshold moves by a factor of 4."""

LAPSE = 0.02
"""Ours: runs whose verdict has another cause than the quantity."""

_POINTS = {"t": 61, "w": 13, "g": 17}
_KEPT = 200
_PREDICTIVE_POINTS = 31


@dataclass(frozen=True, eq=False)
class Threshold:
    """Where runs fail, as equally weighted draws of (t, w, g); a given threshold is one draw without width or drift.

    Attributes:
        estimated: from the verdicts, not given.
        sign: 1 where large values are the danger, -1 where small ones are.
        reference: ln N at which t is the threshold.
        location: t, ln q.
        width: w.
        drift: g, ln q per ln N.
    """

    estimated: bool
    sign: int
    reference: float
    location: Float[np.ndarray, " D"]
    width: Float[np.ndarray, " D"]
    drift: Float[np.ndarray, " D"]

    @property
    def value(self) -> float:
        """The threshold at the reference size (posterior median), as a value of the quantity."""
        return math.exp(float(np.median(self.location)))

    def interval(self, log_size: float | None = None, level: float = INTERVAL_LEVEL) -> Interval | None:
        """Of the threshold at a size; None where it is given."""
        if not self.estimated:
            return None
        at = self.location + self.drift * ((self.reference if log_size is None else log_size) - self.reference)
        low, high = np.quantile(at, [(1 - level) / 2, (1 + level) / 2])
        return math.exp(low), math.exp(high)

    def probability(self, forecast: Predictive, log_size: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """P(beyond the threshold), or P(unstable) where it is estimated, of runs whose ln q has these distributions."""
        if not self.estimated:
            below = forecast.cdf(np.full(len(log_size), self.location[0]))
            return 1 - below if self.sign > 0 else below
        shares = (np.arange(_PREDICTIVE_POINTS) + 0.5) / _PREDICTIVE_POINTS
        values = _quantiles(forecast, shares)
        limit = self.location + np.outer(log_size - self.reference, self.drift)
        z = self.sign * (values.T[:, :, None] - limit[:, None, :]) / self.width
        return np.asarray(LAPSE / 2 + (1 - LAPSE) * ndtr(z).mean(axis=(1, 2)))


def _quantiles(forecast: Predictive, shares: Float[np.ndarray, " P"]) -> Float[np.ndarray, "P M"]:
    """Many quantiles of every forecast at once, by interpolating its cdf."""
    low, high = forecast.quantile(shares[0]), forecast.quantile(shares[-1])
    grid = low + np.linspace(0, 1, 40)[:, None] * (high - low)
    cumulative = np.stack([forecast.cdf(row) for row in grid])
    found = [np.interp(shares, cumulative[:, m], grid[:, m]) for m in range(grid.shape[1])]
    return np.stack(found, axis=1)


def given(value: float, sign: int) -> Threshold:
    """A threshold that is known."""
    return Threshold(False, sign, 0.0, np.array([math.log(value)]), np.array([0.0]), np.array([0.0]))


def estimated(data: Observations) -> Threshold | None:
    """The threshold by the runs' verdicts; None where all runs have the same, which bounds it on one side only."""
    if data.unstable.all() or not data.unstable.any():
        return None
    reference = float(data.log_sizes.mean())
    middle = _separating(data.value, data.unstable)
    spread = max(float(np.ptp(data.value)) / 2, 1.0)
    t = middle + spread * np.linspace(-1, 1, _POINTS["t"])
    w = WIDTH_MEDIAN * np.exp(WIDTH_SPREAD * np.linspace(-2.5, 2, _POINTS["w"]))
    g = DRIFT_SD * np.linspace(-2.5, 2.5, _POINTS["g"])
    # Twice: a coarse grid, and one about where its mass lies.
    for _ in range(2):
        mass = _posterior(data, reference, t, w, g)
        of_t = mass.sum(axis=(1, 2))
        centre = float(of_t @ t)
        sd = math.sqrt(float(of_t @ (t - centre) ** 2)) + (t[1] - t[0])
        fine = t
        t = centre + 4 * sd * np.linspace(-1, 1, _POINTS["t"])
    grid = np.stack(np.meshgrid(fine, w, g, indexing="ij"), axis=-1).reshape(-1, 3)
    cumulative = np.cumsum(mass.ravel())
    places = np.searchsorted(cumulative, (np.arange(_KEPT) + 0.5) / _KEPT * cumulative[-1]).clip(max=len(grid) - 1)
    kept = grid[places]
    return Threshold(True, data.sign, reference, kept[:, 0], kept[:, 1], kept[:, 2])


def _posterior(
    data: Observations,
    reference: float,
    t: Float[np.ndarray, " T"],
    w: Float[np.ndarray, " W"],
    g: Float[np.ndarray, " G"],
) -> Float[np.ndarray, "T W G"]:
    x = data.log_size - reference
    log_prior = -((np.log(w / WIDTH_MEDIAN) / WIDTH_SPREAD) ** 2)[:, None] / 2 - (g / DRIFT_SD) ** 2 / 2
    logs = np.zeros((len(t), len(w), len(g))) + log_prior
    for value, shift, failed in zip(data.value, x, data.unstable, strict=True):
        apart = data.sign * (value - t[:, None] - shift * g)
        p = LAPSE / 2 + (1 - LAPSE) * ndtr(apart[:, None, :] / w[:, None])
        logs += np.log(p if failed else 1 - p)
    mass = np.exp(logs - logs.max())
    return np.asarray(mass / mass.sum())


def _separating(value: Float[np.ndarray, " R"], failed: Bool[np.ndarray, " R"]) -> float:
    """Between the runs that failed and those that did not."""
    return float((np.median(value[failed]) + np.median(value[~failed])) / 2)


def verdict_scores(
    data: Observations, forecasts: Any, prefixes: list[int], threshold: float | None
) -> list[dict[str, Any]]:
    """Back-tests of P(unstable): the held-out runs' verdicts from the smaller sizes, against rivals.

    `estimated`: the estimated threshold on the forecast quantity. `given`: the nominal one. `persistence`: the share of
    unstable runs at the same learning rate of the largest size fitted, (n + 1/2) of (all + 1).

    Args:
        data: the runs.
        forecasts: k -> a model fitted on the k smallest sizes, or None.
        prefixes: the k.
        threshold: the nominal threshold, None where there is none.
    """
    logs: dict[str, list[float]] = {}
    brier: dict[str, list[float]] = {}
    for k in prefixes:
        training, model = data.up_to(k), forecasts(k)
        held = data.subset((data.log_size > training.log_sizes[-1]) & np.isin(data.log_rate, training.log_rates))
        if model is None or not len(held.value):
            continue
        places, where = np.unique(np.stack([held.log_size, held.log_rate], axis=1), axis=0, return_inverse=True)
        forecast = model.predict(places[:, 0], places[:, 1])
        if forecast is None:
            continue
        found = {"persistence": _persisting(training, held)}
        if (own := estimated(training)) is not None:
            found["estimated"] = own.probability(forecast, places[:, 0])[where.reshape(-1)]
        if threshold is not None:
            found["given"] = given(threshold, data.sign).probability(forecast, places[:, 0])[where.reshape(-1)]
        for name, p in found.items():
            p = np.clip(p, 1e-3, 1 - 1e-3)
            logs.setdefault(name, []).append(float(np.log(np.where(held.unstable, p, 1 - p)).mean()))
            brier.setdefault(name, []).append(float(((p - held.unstable) ** 2).mean()))
    return [
        {"rival": name, "log_score": float(np.mean(own)), "brier": float(np.mean(brier[name])), "n": len(own)}
        for name, own in logs.items()
    ]


def _persisting(training: Observations, held: Observations) -> Float[np.ndarray, " R"]:
    shares = {}
    for rate in np.unique(held.log_rate):
        at = training.log_rate == rate
        last = at & (training.log_size == training.log_size[at].max())
        shares[rate] = (training.unstable[last].sum() + 0.5) / (last.sum() + 1)
    return np.array([shares[rate] for rate in held.log_rate])
