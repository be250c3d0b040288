"""Rivals that forecast all learning rates of an arm at once: a pooled Bayesian polynomial and a Gaussian process.

Both are Gaussian given a few standard deviations (hyperparameters), so that the coefficients are integrated in closed
form and only the hyperparameters need draws: importance sampling in their logarithms, from the prior first and then
from a Student-t fitted to the weighted draws. The draws are fixed: the same runs give the same numbers.

With x = ln N and z = ln LR about their means, k an LR of the grid and d, e standard normal,

    ln q = P(x, z) + a_k + b_k x + c_k x^2 + omega d(N) + eta e(N, k) + seed noise            (pooled)
    ln q = p(x, z) + f(x, z)              + omega d(N) + eta e(N, k) + seed noise            (gaussian_process)

P is a polynomial with the terms 1, x, z, xz, z^2, x z^2, x^2, x^2 z; a_k, b_k, c_k ~ Normal(0, tau_a, tau_b, tau_c) is
the partial pooling over learning rates (Gelman et al., Bayesian Data Analysis, 3rd ed., ch. 5, 15). p has the terms 1,
x, z, xz; f is a Gaussian process with a squared-exponential kernel (Rasmussen & Williams 2006, Sections 2.2 and 2.7).
omega is what all learning rates of a size have in common, eta the lack of fit of a cell. The noise over seeds is
estimated cell by cell beforehand (`shrunk_variances`). With one seed it is part of eta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.special import chdtri, ndtri

from stability.analysis.forecast.data import CellMeans, Observations
from stability.analysis.forecast.predictive import NORMAL_DEGREES, Predictive

POOLED_SCALES = {"curvature": 0.2, "tau_a": 0.5, "tau_b": 0.2, "tau_c": 0.05, "omega": 0.2, "eta": 0.3}
"""Ours: medians of the log-normal priors of standard deviations, in ln q (per ln N, per (ln N)^2)."""

PROCESS_SCALES = {"amplitude": 0.5, "length_size": 2.0, "length_rate": 2.0, "omega": 0.2, "eta": 0.3}
"""Ours: the same of the Gaussian process; lengths in ln N and ln LR."""

PRIOR_SPREAD = {"length_size": 0.5, "length_rate": 0.5}
"""Ours: standard deviation of the logarithm of a hyperparameter, 1.0 where it is not named."""

FIXED_SDS = {"1": 5.0, "x": 1.5, "z": 2.0, "xz": 0.4, "zz": 0.5, "xzz": 0.1}
"""Ours: priors of the coefficients whose spread is not estimated. ln q is known to move as N^-1 to N^2."""

_DRAWS = 128
_KEPT = 64
_ROUNDS = 3
_DEGREES = 5.0
_JITTER = 1e-8


@dataclass(frozen=True)
class Kernel:
    """A prior covariance of ln q without seed noise, given draws of the hyperparameters.

    Attributes:
        between: (hyper D x H, A places, B places) -> D x A x B.
        at: (hyper, A places) -> D x A, its diagonal.
    """

    between: Callable[
        [Float[np.ndarray, "D H"], Float[np.ndarray, "A 2"], Float[np.ndarray, "B 2"]], Float[np.ndarray, "D A B"]
    ]
    at: Callable[[Float[np.ndarray, "D H"], Float[np.ndarray, "A 2"]], Float[np.ndarray, "D A"]]


def _monomials(places: Float[np.ndarray, "A 2"], names: Sequence[str]) -> Float[np.ndarray, "A T"]:
    x, z = places.T
    known = {"1": x**0, "x": x, "z": z, "xz": x * z, "zz": z**2, "xzz": x * z**2, "xx": x**2, "xxz": x**2 * z}
    return np.stack([known[name] for name in names], axis=1)


def _same(
    a: Float[np.ndarray, "A 2"], b: Float[np.ndarray, "B 2"]
) -> tuple[Float[np.ndarray, "A B"], Float[np.ndarray, "A B"]]:
    """Whether two places have the same size, and the same learning rate."""
    same = [(np.abs(a[:, i, None] - b[None, :, i]) < 1e-9).astype(float) for i in (0, 1)]
    return same[0], same[1]


def _polynomial(
    a: Float[np.ndarray, "A 2"], b: Float[np.ndarray, "B 2"], names: Sequence[str]
) -> Float[np.ndarray, "A B"]:
    sds = np.array([FIXED_SDS[name] for name in names])
    return np.asarray((_monomials(a, names) * sds**2) @ _monomials(b, names).T)


def _pooled_kernel(
    hyper: Float[np.ndarray, "D H"], a: Float[np.ndarray, "A 2"], b: Float[np.ndarray, "B 2"]
) -> Float[np.ndarray, "D A B"]:
    size, rate = _same(a, b)
    x = np.outer(a[:, 0], b[:, 0])
    zz = np.outer(a[:, 1], b[:, 1])
    parts = [x**2 * (1 + zz / 4), rate, rate * x, rate * x**2, size, size * rate]
    whole = np.tensordot(hyper**2, np.stack(parts), axes=1)
    return np.asarray(whole + _polynomial(a, b, tuple(FIXED_SDS)))


def _process_kernel(
    hyper: Float[np.ndarray, "D H"], a: Float[np.ndarray, "A 2"], b: Float[np.ndarray, "B 2"]
) -> Float[np.ndarray, "D A B"]:
    size, rate = _same(a, b)
    apart = [((a[:, i, None] - b[None, :, i]) ** 2).ravel() for i in (0, 1)]
    exponent = -(np.outer(hyper[:, 1] ** -2, apart[0]) + np.outer(hyper[:, 2] ** -2, apart[1])) / 2
    smooth = hyper[:, :1] ** 2 * np.exp(exponent)
    rough = np.tensordot(hyper[:, 3:] ** 2, np.stack([size, size * rate]), axes=1)
    shape = (len(hyper), len(a), len(b))
    return np.asarray(smooth.reshape(shape) + rough + _polynomial(a, b, ("1", "x", "z", "xz")))


def _pooled_variance(hyper: Float[np.ndarray, "D H"], a: Float[np.ndarray, "A 2"]) -> Float[np.ndarray, "D A"]:
    x, z = (a**2).T
    one = np.ones(len(a))
    return np.asarray(hyper**2 @ np.stack([x**2 * (1 + z / 4), one, x, x**2, one, one]) + _own(a, tuple(FIXED_SDS)))


def _process_variance(hyper: Float[np.ndarray, "D H"], a: Float[np.ndarray, "A 2"]) -> Float[np.ndarray, "D A"]:
    flat = np.sum(hyper[:, [0, 3, 4]] ** 2, axis=1, keepdims=True)
    return np.asarray(flat + _own(a, ("1", "x", "z", "xz")))


def _own(a: Float[np.ndarray, "A 2"], names: Sequence[str]) -> Float[np.ndarray, " A"]:
    """The polynomial's prior variance at each place."""
    return np.asarray(_monomials(a, names) ** 2 @ np.array([FIXED_SDS[name] for name in names]) ** 2)


POOLED = Kernel(_pooled_kernel, _pooled_variance)
PROCESS = Kernel(_process_kernel, _process_variance)


@dataclass(frozen=True, eq=False)
class JointModel:
    """A fitted model: D weighted draws of its hyperparameters, and what the runs' covariance is under each.

    Attributes:
        cells: the runs.
        centre: mean ln N, mean ln LR.
        level: mean ln q.
        kernel: prior covariance of ln q without seed noise.
        hyper: draws.
        weights: of the draws; sum to 1.
        root: Cholesky factor of the cells' covariance under each draw.
        solved: root^-1 (mean - level).
    """

    cells: CellMeans
    centre: Float[np.ndarray, " 2"]
    level: float
    kernel: Kernel
    hyper: Float[np.ndarray, "D H"]
    weights: Float[np.ndarray, " D"]
    root: Float[np.ndarray, "D C C"]
    solved: Float[np.ndarray, "D C"]

    def predict(self, log_size: Float[np.ndarray, " M"], log_rate: Float[np.ndarray, " M"]) -> Predictive | None:
        """Of one further run at each place."""
        places = np.stack([log_size, log_rate], axis=1)
        half = self.half(places)
        location = self.level + np.einsum("dcm,dc->dm", half, self.solved)
        variance = self.prior_variance(places) - np.sum(half**2, axis=1)
        noise = self.cells.noise(log_rate)
        scale = np.sqrt(np.maximum(variance, 1e-10) + noise**2)
        # The seeds' part of the variance is known from few cells, the rest given the draw: Satterthwaite.
        own = min(self.cells.noise_degrees, NORMAL_DEGREES)
        degrees = np.minimum(own * (scale**2 / np.maximum(noise**2, 1e-12)) ** 2, NORMAL_DEGREES)
        return Predictive(location, scale, degrees, self.weights)

    def half(self, places: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "D C M"]:
        """root^-1 cov(cells, places): its products over C are what the runs tell of the places."""
        known = np.stack([self.cells.log_size, self.cells.log_rate], axis=1) - self.centre
        return np.asarray(np.linalg.solve(self.root, self.kernel.between(self.hyper, known, places - self.centre)))

    def prior_variance(self, places: Float[np.ndarray, "M 2"]) -> Float[np.ndarray, "D M"]:
        """Before the runs, without seed noise."""
        return self.kernel.at(self.hyper, places - self.centre)


def fit_pooled(data: Observations) -> JointModel:
    """The Bayesian polynomial with partial pooling over learning rates."""
    return _fit(data, POOLED, POOLED_SCALES)


def fit_gaussian_process(data: Observations) -> JointModel:
    """The Gaussian process about a plane."""
    return _fit(data, PROCESS, PROCESS_SCALES)


def _fit(data: Observations, kernel: Kernel, scales: dict[str, float]) -> JointModel:
    cells = data.cells
    known = np.stack([cells.log_size, cells.log_rate], axis=1)
    centre = np.array([data.log_sizes.mean(), data.log_rates.mean()])
    level = float(cells.mean.mean())
    prior_mean = np.log(np.array(list(scales.values())))
    prior_sd = np.array([PRIOR_SPREAD.get(name, 1.0) for name in scales])
    noise = np.diag(cells.variance / cells.count + _JITTER)
    mean, spread = prior_mean, np.diag(prior_sd)
    for turn in range(_ROUNDS):
        standard, log_standard = _standard(len(scales), turn)
        logs = mean + standard @ spread.T
        hyper = np.exp(logs.clip(-12, 6))
        root = np.linalg.cholesky(kernel.between(hyper, known - centre, known - centre) + noise)
        solved = np.linalg.solve(root, np.broadcast_to((cells.mean - level)[:, None], (len(hyper), len(known), 1)))
        evidence = -np.sum(solved**2, axis=(1, 2)) / 2 - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        log_prior = -np.sum(((logs - prior_mean) / prior_sd) ** 2, axis=1) / 2
        log_weights = evidence + log_prior - log_standard + np.log(np.diag(spread)).sum()
        # What is flattened in the first round is less likely to collapse onto one draw.
        temper = 0.3 if turn == 0 else 1.0
        weights = np.exp(temper * (log_weights - log_weights.max()))
        weights /= weights.sum()
        mean = weights @ logs
        covariance = (weights * (logs - mean).T) @ (logs - mean) + np.diag((0.15 * prior_sd) ** 2)
        spread = np.linalg.cholesky(covariance)
    keep, share = _thinned(weights)
    return JointModel(cells, centre, level, kernel, hyper[keep], share, root[keep], solved[keep, :, 0])


def _thinned(weights: Float[np.ndarray, " D"]) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Systematic resampling to fewer draws, with the weights that they then have."""
    places = np.searchsorted(np.cumsum(weights), (np.arange(_KEPT) + 0.5) / _KEPT * weights.sum())
    keep, counts = np.unique(places.clip(max=len(weights) - 1), return_counts=True)
    return keep, counts / _KEPT


@lru_cache(maxsize=16)
def _standard(dimensions: int, turn: int) -> tuple[Float[np.ndarray, "D H"], Float[np.ndarray, " D"]]:
    """Scrambled Sobol points as Student-t draws, normal ones in the first round, and the log of their density."""
    from scipy.stats import qmc  # here: it takes a while to import

    points = qmc.Sobol(dimensions + 1, seed=turn).random(_DRAWS).clip(1e-6, 1 - 1e-6)
    normal = ndtri(points[:, :dimensions])
    if turn == 0:
        return normal, -np.sum(normal**2, axis=1) / 2
    draws = normal / np.sqrt(chdtri(_DEGREES, points[:, -1:]) / _DEGREES)
    density = -(_DEGREES + dimensions) / 2 * np.log1p(np.sum(draws**2, axis=1) / _DEGREES)
    return draws, density


__all__ = ["JointModel", "fit_gaussian_process", "fit_pooled"]
