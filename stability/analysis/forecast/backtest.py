"""Rolling back-tests: every model forecasts the largest one, two and three sizes from the smaller ones, and is scored.

From S sizes those of the k smallest are fitted, k = S - 1, S - 2, S - 3 and at least 2, and every larger size is
forecast, run by run. Nothing of a size that is held out is seen by the fit: not its values, verdicts, learning rates,
nor the spread of its seeds. The same holds of `averaged`, the mixture of all models but persistence: its weights and
its widening at k come from back-tests within the k smallest sizes.

Scores are proper (Gneiting & Raftery 2007, Journal of the American Statistical Association 102, 359-378): the log
score, nats a run, larger being better; and the interval score (their equation 43) of the 90 % interval of ln q, smaller
being better. Runs of one size are not independent, so a score is first averaged over the runs of a size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from stability.analysis.forecast.data import Observations
from stability.analysis.forecast.models import BASELINE, MODELS, Model
from stability.analysis.forecast.predictive import Predictive, mixed
from stability.analysis.uncertainty import INTERVAL_LEVEL

AVERAGED = "averaged"
MOST_HELD_OUT = 3
FEWEST_FITTED = 2
_FLOOR = -20.0
"""Nats: one run cannot cost more, lest a single one decide everything."""


@dataclass(frozen=True)
class Score:
    """One model's back-tests.

    Attributes:
        model: its name.
        held_out: the largest so many sizes; None: all of them together.
        n_sizes: size forecasts behind it, n_runs: runs.
        log_score: mean over the sizes of the mean over runs of ln p(value).
        interval_score: the same of the 90 % interval of ln q.
        coverage: share of runs inside their 90 % interval.
        error: mean absolute error of the median, in ln q.
        gain: log score minus that of persistence on the same sizes; None for persistence itself.
    """

    model: str
    held_out: int | None
    n_sizes: int
    n_runs: int
    log_score: float
    interval_score: float
    coverage: float
    error: float
    gain: float | None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One model's forecast of one size from the k smallest.

    Attributes:
        model: its name.
        fitted: k.
        held_out: how many sizes were.
        log_size: of the size forecast.
        log_rate: of its runs.
        value: of its runs, as observed.
        inside: their 90 % interval.
        low, middle, high: 5 %, 50 % and 95 % quantile.
        log_score, interval_score: means over the runs.
        z: normal scores of the runs' values in their predictive distributions.
    """

    model: str
    fitted: int
    held_out: int
    log_size: float
    log_rate: Float[np.ndarray, " R"]
    value: Float[np.ndarray, " R"]
    inside: Bool[np.ndarray, " R"]
    low: Float[np.ndarray, " R"]
    middle: Float[np.ndarray, " R"]
    high: Float[np.ndarray, " R"]
    log_score: float
    interval_score: float
    z: Float[np.ndarray, " R"]


def at_places(
    model: Model, log_size: Float[np.ndarray, " R"], log_rate: Float[np.ndarray, " R"]
) -> tuple[Predictive, Int[np.ndarray, " R"]] | None:
    """A model's forecasts of the distinct places, and which of them each run is at."""
    places, where = np.unique(np.stack([log_size, log_rate], axis=1), axis=0, return_inverse=True)
    found = model.predict(places[:, 0], places[:, 1])
    return None if found is None else (found, where.reshape(-1))


@dataclass(frozen=True, eq=False)
class Averaged:
    """A mixture of models, its distances from the median widened by what the back-tests say is needed."""

    members: Mapping[str, Model]
    weights: Mapping[str, float]
    widening: float = 1.0

    def predict(self, log_size: Float[np.ndarray, " M"], log_rate: Float[np.ndarray, " M"]) -> Predictive | None:
        """See `stability.analysis.forecast.models.Model`."""
        forecasts = {name: model.predict(log_size, log_rate) for name, model in self.members.items()}
        known = {name: one for name, one in forecasts.items() if one is not None and self.weights[name] > 1e-3}
        if not known:
            return None
        return mixed(list(known.values()), [self.weights[name] for name in known]).widened(self.widening)


class BackTest:
    """All back-tests of one arm, and the models that they are of, fitted on every prefix of the sizes."""

    def __init__(self, data: Observations) -> None:
        self.data = data
        self.n_sizes = len(data.log_sizes)
        lowest = max(FEWEST_FITTED, self.n_sizes - MOST_HELD_OUT)
        self.prefixes = [k for k in range(lowest, self.n_sizes + 1) if k >= FEWEST_FITTED]
        self._fitted = {k: self._fit(k) for k in self.prefixes}
        self._averaged: dict[int, Averaged] = {}
        self._held_out: dict[tuple[str, int], list[HeldOut]] = {}
        for k in self.prefixes:
            for name, model in self._fitted[k].items():
                self._held_out[name, k] = self._forecast(name, model, k)
            self._averaged[k] = self._average(k)
            self._held_out[AVERAGED, k] = self._forecast(AVERAGED, self._averaged[k], k)

    def model(self, name: str) -> Model:
        """A model fitted to all sizes."""
        return self._averaged[self.n_sizes] if name == AVERAGED else self._fitted[self.n_sizes][name]

    def at_prefix(self, k: int) -> Averaged:
        """The mixture as it was with the k smallest sizes."""
        return self._averaged[k]

    @property
    def averaged(self) -> Averaged:
        """What forecasts rest on."""
        return self._averaged[self.n_sizes]

    @cached_property
    def held_out(self) -> list[HeldOut]:
        """Every forecast of a held-out size by every model."""
        return [one for found in self._held_out.values() for one in found]

    @cached_property
    def scores(self) -> list[Score]:
        """Of every model: over all held-out sizes, then by how many sizes were held out."""
        rows = []
        for name in (*MODELS, AVERAGED):
            for held_out in (None, *range(1, MOST_HELD_OUT + 1)):
                found = [one for one in self._of(name) if held_out in (None, one.held_out)]
                if found:
                    rows.append(self._score(name, held_out, found))
        return rows

    @property
    def largest_ratio(self) -> float:
        """The largest N forecast over the largest N fitted, over all back-tests of the mixture."""
        sizes = self.data.log_sizes
        return max((math.exp(one.log_size - sizes[one.fitted - 1]) for one in self._of(AVERAGED)), default=1.0)

    def _of(self, name: str) -> list[HeldOut]:
        return [one for k in self.prefixes for one in self._held_out.get((name, k), [])]

    def _fit(self, k: int) -> dict[str, Model]:
        training = self.data.up_to(k)
        return {name: fit(training) for name, fit in MODELS.items()}

    def _forecast(self, name: str, model: Model, k: int) -> list[HeldOut]:
        sizes = self.data.log_sizes
        known = self.data.up_to(k).log_rates
        found = []
        for size in sizes[k:]:
            runs = self.data.subset((self.data.log_size == size) & np.isin(self.data.log_rate, known))
            if len(runs.value) and (at := at_places(model, runs.log_size, runs.log_rate)) is not None:
                found.append(_held_out(name, k, self.n_sizes - k, runs, *at))
        return found

    def _average(self, k: int) -> Averaged:
        """Weights and widening from the back-tests within the k smallest sizes."""
        members = {name: model for name, model in self._fitted[k].items() if name != BASELINE}
        limit = self.data.log_sizes[k - 1]
        weights = self._weights(list(members), k, limit)
        past = [one for j in self.prefixes if j < k for one in self._held_out[AVERAGED, j] if one.log_size <= limit]
        # One size is one test, however many runs it has; less than 1 would be luck that few sizes cannot prove.
        squares = [float(np.mean(one.z**2)) for one in past]
        return Averaged(members, weights, max(1.0, math.sqrt(float(np.mean(squares)))) if squares else 1.0)

    def _weights(self, names: Sequence[str], k: int, limit: float) -> dict[str, float]:
        """exp(sum over back-tests of the mean log score): pseudo-Bayesian averaging, Yao et al. 2018.

        A model that could not forecast yet, for want of sizes, gets the score of persistence there: it must earn its
        weight. (Yao et al. 2018, Bayesian Analysis 13(3), 917-1007, Section 3.)
        """
        totals = dict.fromkeys(names, 0.0)
        for j in (j for j in self.prefixes if j < k):
            scores = {name: self._mean_score(name, j, limit) for name in (*names, BASELINE)}
            fallback = scores[BASELINE]
            for name in names:
                own = scores[name]
                totals[name] += own if own is not None else (fallback if fallback is not None else 0.0)
        best = max(totals.values())
        raw = {name: math.exp(total - best) for name, total in totals.items()}
        return {name: one / math.fsum(raw.values()) for name, one in raw.items()}

    def _mean_score(self, name: str, j: int, limit: float) -> float | None:
        found = [one.log_score for one in self._held_out[name, j] if one.log_size <= limit]
        return float(np.mean(found)) if found else None

    def _score(self, name: str, held_out: int | None, found: Sequence[HeldOut]) -> Score:
        same = {(one.fitted, one.log_size): one.log_score for one in self._of(BASELINE)}
        pairs = [(one.log_score, same.get((one.fitted, one.log_size))) for one in found]
        gains = [own - other for own, other in pairs if other is not None]
        return Score(
            model=name,
            held_out=held_out,
            n_sizes=len(found),
            n_runs=sum(len(one.value) for one in found),
            log_score=float(np.mean([one.log_score for one in found])),
            interval_score=float(np.mean([one.interval_score for one in found])),
            coverage=float(np.mean(np.concatenate([one.inside for one in found]))),
            error=float(np.mean([np.abs(one.value - one.middle).mean() for one in found])),
            gain=None if name == BASELINE or not gains else float(np.mean(gains)),
        )


def _held_out(
    name: str, k: int, held_out: int, runs: Observations, forecast: Predictive, where: Int[np.ndarray, " R"]
) -> HeldOut:
    low, high = (end[where] for end in forecast.interval(INTERVAL_LEVEL))
    each = forecast.at(where)
    below = each.cdf(runs.value)
    logs = np.maximum(each.log_density(runs.value), _FLOOR)
    inside = (low <= runs.value) & (runs.value <= high)
    if runs.censored.any():
        # All that is known of these runs is that they lie beyond the bound.
        beyond = 1 - below if runs.sign > 0 else below
        logs = np.where(runs.censored, np.maximum(np.log(np.maximum(beyond, 1e-300)), _FLOOR), logs)
        reached = high >= runs.value if runs.sign > 0 else low <= runs.value
        inside = np.where(runs.censored, reached, inside)
    miss = np.maximum(low - runs.value, 0) + np.maximum(np.where(runs.censored, 0, runs.value - high), 0)
    return HeldOut(
        model=name,
        fitted=k,
        held_out=held_out,
        log_size=float(runs.log_size[0]),
        log_rate=runs.log_rate,
        value=runs.value,
        inside=inside,
        low=low,
        middle=forecast.quantile(0.5)[where],
        high=high,
        log_score=float(logs.mean()),
        interval_score=float(np.mean(high - low + 2 / (1 - INTERVAL_LEVEL) * miss)),
        z=np.where(runs.censored, 0.0, ndtri(below.clip(1e-6, 1 - 1e-6))),
    )
