"""Intervals over seeds: how far a mean over a handful of runs may be from the truth.

A percentile bootstrap of the mean is the natural interval over seeds, but with few of them it is far too narrow: a 90 %
interval covers 46 % with two seeds, 61 % with three and 78 % with five. Two things are missing (Hesterberg 2015, The
American Statistician 69(4), 371-386): resamples spread less than samples do, by sqrt((n - 1)/n), and the spread itself
is known from n values only. So each resample's deviation d* from the mean counts here as

    d* sqrt(n / (n - 1)) sqrt((n - 1) / X) = d* sqrt(n / X),        X ~ chi-squared with n - 1 degrees of freedom,

which is to the bootstrap what Student's t is to the normal distribution: were d* normal, the interval would be
Student's. Up to six seeds every resample is enumerated, so nothing is random; beyond, the draws are fixed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import gammainc, ndtri

from stability.errors import InputError

INTERVAL_LEVEL = 0.9
"""Probability with which every interval of the analysis is meant to cover."""

LOSS_NOISE = 0.03
"""Declared noise floor: standard deviation over seeds of one run's final loss, in nats per token."""

Interval = tuple[float, float]
Basis = Literal["seeds", "noise_floor"]

_ENUMERATED = 6
"""Largest number of seeds whose resamples are all enumerated: 462 distinct ones."""

_DRAWS = 2000
_SEED = 2309_14322
_EQUAL = 1e-12
"""Values whose range is below this fraction of their size are equal but for rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: None where there are no seeds.
        interval: None where nothing is known about the uncertainty, or where there is no value.
        n: seeds behind it.
        basis: what the interval rests on: the spread of the seeds, or the declared noise floor; None without interval.
    """

    value: float | None
    interval: Interval | None
    n: int
    basis: Basis | None


def over_seeds(
    values: Sequence[float] | Float[np.ndarray, " n"],
    one_seed_sd: float | None = None,
    level: float = INTERVAL_LEVEL,
) -> Estimate:
    """Mean over seeds with an interval: the bootstrap over seeds, corrected for how few they are (see the module).

    One seed says nothing about its own uncertainty, and neither do seeds that are all equal: a spread of zero is a
    sign of a bound that all of them hit (every run diverged), not of certainty. Then the interval is the normal one of
    `one_seed_sd / sqrt(n)`, and there is none without `one_seed_sd`.

    Args:
        values: one per seed, finite, in any order (or paired differences, one per seed).
        one_seed_sd: standard deviation over seeds of one value, where it is known beforehand.
        level: the probability with which the interval covers the mean over all seeds there might be.

    Raises:
        InputError: a value is not finite, `one_seed_sd` is negative or not finite, or `level` is not between 0 and 1.
    """
    sample = np.sort(np.asarray(values, float))
    _check(sample, one_seed_sd, level)
    if not len(sample):
        return Estimate(None, None, 0, None)
    mean = float(sample.mean())
    tail = (1 - level) / 2
    if not without_spread(sample):
        deviations = sample - mean
        low, high = -_upper_deviation(-deviations, tail), _upper_deviation(deviations, tail)
        return Estimate(mean, (mean + low, mean + high), len(sample), "seeds")
    if one_seed_sd is None:
        return Estimate(mean, None, len(sample), None)
    half = float(-ndtri(tail)) * one_seed_sd / math.sqrt(len(sample))
    return Estimate(mean, (mean - half, mean + half), len(sample), "noise_floor")


def _check(sample: Float[np.ndarray, " n"], one_seed_sd: float | None, level: float) -> None:
    if sample.ndim != 1 or not np.isfinite(sample).all():
        raise InputError("values", sample.tolist(), "is not a list of finite numbers", "Give one per seed.")
    if one_seed_sd is not None and not 0 <= one_seed_sd < math.inf:
        raise InputError("one_seed_sd", one_seed_sd, "is not a standard deviation", "Give a number from 0 on, or None.")
    if not 0 < level < 1:
        raise InputError("level", level, "is not between 0 and 1", "Give a probability, such as 0.9.")


def without_spread(values: Sequence[float] | Float[np.ndarray, " n"]) -> bool:
    """There is one value at most, or all are equal but for rounding: they do not tell how uncertain they are."""
    sample = np.asarray(values, float)
    return len(sample) < 2 or bool(np.ptp(sample) <= _EQUAL * np.abs(sample).max())


def _upper_deviation(deviations: Float[np.ndarray, " n"], tail: float) -> float:
    """The deviation of the mean that the corrected bootstrap distribution exceeds with probability `tail`."""
    n, unit = len(deviations), float(np.abs(deviations).max())
    if unit == 0:
        return 0.0
    weights, probabilities = _resamples(n)
    means = weights @ (deviations / unit)  # in this unit nothing underflows
    # Resamples whose mean is 0 but for rounding count as 0, so that negating the values negates the interval.
    positive = means > 1e-9
    means, probabilities = means[positive], probabilities[positive]
    if probabilities.sum() <= tail:
        return 0.0

    def excess_probability(log_x: float) -> float:
        # P(d* sqrt(n / X) > x) = P(X < n (d* / x)^2), X chi-squared with n - 1 degrees of freedom.
        below = gammainc((n - 1) / 2, n * (means / math.exp(log_x)) ** 2 / 2)
        return float(probabilities @ below) - tail

    largest = math.log(means.max())
    from scipy.optimize import brentq  # here: it takes a while to import

    return unit * math.exp(brentq(excess_probability, largest - 25, largest + 25, xtol=1e-9))


@lru_cache(maxsize=64)
def _resamples(n: int) -> tuple[Float[np.ndarray, "resamples n"], Float[np.ndarray, " resamples"]]:
    """How often each of n values comes in a resample, as a fraction of n, and the probability of that resample."""
    if n > _ENUMERATED:
        counts = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=_DRAWS)
        return counts / n, np.full(_DRAWS, 1 / _DRAWS)
    drawn = combinations_with_replacement(range(n), n)
    counts = np.array([np.bincount(which, minlength=n) for which in drawn])
    ways = [math.factorial(n) / math.prod(math.factorial(count) for count in row) for row in counts.tolist()]
    return counts / n, np.array(ways) / n**n


@lru_cache(maxsize=64)
def standard_noise(n_learning_rates: int) -> Float[np.ndarray, "draws K"]:
    """Standard normal noise for many copies of a loss curve; always the same. Not to be written to."""
    noise = np.random.default_rng(_SEED).normal(size=(_DRAWS, n_learning_rates))
    noise.flags.writeable = False
    return noise


def check_loss_noise(loss_noise: float) -> None:
    """Refuse what is no noise floor.

    Raises:
        InputError: it is not a positive number.
    """
    if not 0 < loss_noise < math.inf:
        raise InputError("loss_noise", loss_noise, "is not a positive number", "Give one, in nats per token.")
