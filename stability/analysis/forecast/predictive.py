"""Predictive distributions of ln q: weighted mixtures of Student-t's, in which every model here says its forecast."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, ndtr, stdtr, stdtrit

NORMAL_DEGREES = 1e6
"""Of freedom from which a Student-t counts as normal."""

_SERIES_FROM = 2.5

_BISECTIONS = 26
"""Of the widest component's range: what is left is 1e-7 of it."""


@dataclass(frozen=True, eq=False)
class Predictive:
    """Of M values of ln q, each a mixture of C Student-t's with common weights.

    Attributes:
        location: of every component.
        scale: of every component, positive.
        degrees: of freedom.
        weights: sum to 1.
    """

    location: Float[np.ndarray, "C M"]
    scale: Float[np.ndarray, "C M"]
    degrees: Float[np.ndarray, "C M"]
    weights: Float[np.ndarray, " C"]

    def cdf(self, value: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """P(ln q <= value), one value for each."""
        z = (value - self.location) / self.scale
        return np.asarray(self.weights @ student_cdf(z, self.degrees))

    def log_density(self, value: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """ln of the density of ln q at one value for each."""
        f, z = self.degrees, (value - self.location) / self.scale
        constant = gammaln((f + 1) / 2) - gammaln(f / 2) - np.log(f * math.pi) / 2 - np.log(self.scale)
        logs = constant - (f + 1) / 2 * np.log1p(z**2 / f) + np.log(self.weights)[:, None]
        return np.asarray(np.logaddexp.reduce(logs, axis=0))

    def quantile(self, probability: float) -> Float[np.ndarray, " M"]:
        """The value below which ln q lies with this probability."""
        ends = self.location + self.scale * stdtrit(self.degrees, probability)
        low, high = ends.min(axis=0), ends.max(axis=0)
        if len(self.weights) == 1:
            return np.asarray(low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2)

    def interval(self, level: float) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
        """The ends of the central interval."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def widened(self, factor: float) -> "Predictive":
        """The same medians, every distance from them `factor` times as large."""
        if factor == 1:
            return self
        median = self.quantile(0.5)
        return replace(self, location=median + factor * (self.location - median), scale=factor * self.scale)

    def at(self, index: Sequence[int] | np.ndarray) -> "Predictive":
        """Of some of the values only."""
        parts = {name: getattr(self, name)[:, index] for name in ("location", "scale", "degrees")}
        return replace(self, **parts)


def student_cdf(z: Float[np.ndarray, "*any"], degrees: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """P(Student-t <= z), within 5e-5; `scipy.special.stdtr` takes most of a forecast's time.

    From 2.5 degrees of freedom on the normal expansion of Hill (1970, Communications of the ACM 13(10), 617-619).
    """
    a = np.maximum(degrees, _SERIES_FROM) - 0.5
    b = 48 * a**2
    y = np.sqrt(a * np.log1p(z**2 / np.maximum(degrees, _SERIES_FROM)))
    cubic = y**2 * y
    tail = cubic * ((4 * y**2 + 33) * y**2 + 240) + 855 * y
    u = y + (cubic + 3 * y) / b - tail / (10 * b * (b + 0.8 * y**4 + 100))
    found = ndtr(np.copysign(u, z))
    heavy = degrees < _SERIES_FROM
    if heavy.any():
        found[heavy] = stdtr(degrees[heavy], z[heavy])
    return np.asarray(found)


def student(
    location: Float[np.ndarray, " M"], scale: Float[np.ndarray, " M"], degrees: Float[np.ndarray, " M"] | float
) -> Predictive:
    """One Student-t for each value."""
    shape = (1, len(location))
    return Predictive(
        location.reshape(shape),
        np.maximum(scale, 1e-9).reshape(shape),
        np.broadcast_to(np.asarray(degrees, float), shape).copy(),
        np.ones(1),
    )


def mixed(parts: Sequence[Predictive], weights: Sequence[float]) -> Predictive:
    """The mixture of several forecasts of the same values."""
    total = math.fsum(weights)
    location, scale, degrees = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("location", "scale", "degrees")
    )
    shares = [part.weights * weight / total for part, weight in zip(parts, weights, strict=True)]
    return Predictive(location, scale, degrees, np.concatenate(shares))
