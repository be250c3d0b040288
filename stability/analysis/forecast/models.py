"""Rivals that forecast ln q(N, LR) one learning rate at a time: persistence, straight lines, the paper's parabolas.

Each is fitted to the runs given and nothing else, and answers with the predictive distribution of *one further run*
(one seed of a size that was not trained), so that all can be scored alike.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float

from stability.analysis.forecast.data import CellMeans, Observations
from stability.analysis.forecast.joint import fit_gaussian_process, fit_pooled
from stability.analysis.forecast.predictive import Predictive, student


class Model(Protocol):
    """A fitted model."""

    def predict(self, log_size: Float[np.ndarray, " M"], log_rate: Float[np.ndarray, " M"]) -> Predictive | None:
        """Of one further run at each place; None where the runs do not determine it."""
        ...


class Persistence:
    """Nothing changes: the value at the largest size trained, and a random walk in ln N without drift around it.

    Steps from size to size have variance r^2 times their length in ln N, r^2 being their mean square over all learning
    rates; those of one learning rate move together with the others', so that there are as many degrees of freedom as
    steps between sizes.
    """

    def __init__(self, data: Observations) -> None:
        cells = data.cells
        self._cells = cells
        self._last = {rate: _largest(cells, rate) for rate in np.unique(cells.log_rate)}
        squares = [
            step**2 / length - cells.noise(np.array([rate]))[0] ** 2 * 2 / float(cells.count.mean()) / length
            for rate in self._last
            for step, length in _steps(cells, rate)
        ]
        self._rate_of_change = max(float(np.mean(squares)), 1e-6) if squares else None
        self._degrees = float(max(len(data.log_sizes) - 1, 1))

    def predict(self, log_size: Float[np.ndarray, " M"], log_rate: Float[np.ndarray, " M"]) -> Predictive | None:
        """See `Model`."""
        if self._rate_of_change is None or any(rate not in self._last for rate in log_rate):
            return None
        last = np.array([self._last[rate] for rate in log_rate])
        variance = self._rate_of_change * np.abs(log_size - last[:, 0]) + self._cells.noise(log_rate) ** 2
        return student(last[:, 1], np.sqrt(variance), self._degrees)


def _largest(cells: CellMeans, rate: float) -> tuple[float, float]:
    """ln N and ln q of the largest size at a learning rate."""
    at = np.flatnonzero(cells.log_rate == rate)
    last = at[np.argmax(cells.log_size[at])]
    return float(cells.log_size[last]), float(cells.mean[last])


def _steps(cells: CellMeans, rate: float) -> list[tuple[float, float]]:
    """The changes of ln q from size to size at a learning rate, with their lengths in ln N."""
    at = cells.log_rate == rate
    return list(zip(np.diff(cells.mean[at]), np.diff(cells.log_size[at]), strict=True))


class Polynomial:
    """ln q = polynomial in ln N for each learning rate by itself: arXiv 2309.14322, Section 3.3, with degree 2.

    Least squares on the means over seeds of S sizes, with the textbook interval for a further observation (Draper &
    Smith, Applied Regression Analysis, 3rd ed., Section 3.1):

        ln q(N) = fit +- t sqrt( MS (1 + x'(X'X)^-1 x) + v (1 - 1/n) )

    MS is the mean square about the curve with S - degree - 1 degrees of freedom: it holds the sizes' scatter and what n
    seeds leave of their variance v. The degrees of freedom of the sum are Satterthwaite's.
    """

    def __init__(self, data: Observations, degree: int) -> None:
        self._cells, self._degree = data.cells, degree
        self._centre = float(data.log_sizes.mean())

    def predict(self, log_size: Float[np.ndarray, " M"], log_rate: Float[np.ndarray, " M"]) -> Predictive | None:
        """See `Model`."""
        location, scale, degrees = (np.empty(len(log_size)) for _ in range(3))
        for rate in np.unique(log_rate):
            at, wanted = self._cells.log_rate == rate, log_rate == rate
            if at.sum() < self._degree + 2:
                return None
            found = self._of_rate(at, log_size[wanted])
            location[wanted], scale[wanted], degrees[wanted] = found
        return student(location, scale, degrees)

    def _of_rate(
        self, at: Float[np.ndarray, " C"], log_size: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
        x, y, n = self._cells.log_size[at] - self._centre, self._cells.mean[at], float(self._cells.count[at].mean())
        design = np.vander(x, self._degree + 1, increasing=True)
        coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
        left = len(y) - self._degree - 1
        mean_square = float(np.sum((y - design @ coefficients) ** 2)) / left
        new = np.vander(log_size - self._centre, self._degree + 1, increasing=True)
        leverage = np.sum((new @ np.linalg.inv(design.T @ design)) * new, axis=1)
        seeds = float(np.mean(self._cells.variance[at])) * (1 - 1 / n)
        # A fit that passes through all its points by chance is not certain of them.
        mean_square = max(mean_square, seeds / max(n - 1, 1), 1e-8)
        parts = mean_square * (1 + leverage), np.full(len(new), seeds)
        total = parts[0] + parts[1]
        seed_degrees = max(len(y) * (n - 1), 1.0)
        degrees = total**2 / (parts[0] ** 2 / left + parts[1] ** 2 / seed_degrees)
        return new @ coefficients, np.sqrt(total), degrees


MODELS: Mapping[str, Callable[[Observations], Model]] = {
    "persistence": Persistence,
    "linear": lambda data: Polynomial(data, 1),
    "quadratic": lambda data: Polynomial(data, 2),
    "pooled": fit_pooled,
    "gaussian_process": fit_gaussian_process,
}
"""Name -> how to fit it. `persistence` is what the others must beat."""

BASELINE = "persistence"
