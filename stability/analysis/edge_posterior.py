"""The posterior of a regression of interval-censored edges on ln N: the model, its priors, and their integration.

A grid of LRs shows the highest stable LR of one seed, its edge, only as a bracket (lower, upper], open on the side
where no LR was unstable, or none stable. With x = ln(N / reference),

    ln edge(N, seed) = a + b x + c x^2 + omega d(N) + sigma e(N, seed),      d, e ~ Normal(0, 1)
    likelihood       = P(ln lower < ln edge(N, seed) <= ln upper for every N and seed)

omega being what the seeds of a scale have in common: a ladder's scales differ in more than N, so that ten seeds of one
scale are not ten measurements of the curve. Brackets enter as what they are: neither a grid step nor a vote over seeds
is taken for a measurement. With few scales and seeds the likelihood has no maximum worth the name (every curve through
all brackets, at sigma -> 0, is one), so the parameters have weakly informative priors, the constants below.

It is integrated by annealed importance sampling, the proposals refitted to the weighted draws on the way (Neal 2001,
Cappe et al. 2004), with fixed draws: the same brackets give the same numbers.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit, gammaln, ndtr, ndtri

Curve = Literal["linear", "quadratic"]

SLOPE_SD = 1.0
"""Ours: prior of the slope b, Normal(0, this), in ln LR per ln N. Edges are known to move as N^0 to N^-1."""

CURVATURE_SD = 0.07
"""Ours: prior of the curvature c, Normal(0, this): over a factor of 100 in N the slope changes by about 0.6."""

LINEAR_PROBABILITY = 0.5
"""Ours: of the straight line (c = 0) against the parabola, before the runs, where the two are averaged."""

NOISE_SCALE = 0.5
"""Ours: prior of sigma, half-normal, in ln LR: the edges of two seeds seldom differ by more than a factor of 4."""

SCATTER_SCALE = 0.15
"""Ours: prior of omega, half-normal, in ln LR: a scale's edge seldom lies more than a factor of 1.3 off the curve."""

LOCATION_SD = 3.0
"""Ours: prior of a, Normal(the middle of the brackets' ends, this), in ln LR: a factor of 20 either way."""

Box = tuple[float, float, float, int]
"""A bracket in ln LR, infinite where it is open, and how many seeds have it: (N, low, high, count)."""

Boxes = tuple[Box, ...]
"""Those of one arm, ascending."""


def distinct_sizes(boxes: Iterable[Box]) -> list[float]:
    """Every N with a bracket, ascending."""
    return sorted({n for n, *_ in boxes})


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the brackets of one arm say of the model.

    Attributes:
        draws: equally weighted, of (a, b, c, sigma, omega).
        effective: how many independent draws their precision amounts to.
        log_evidence: ln P(brackets), the parameters integrated out.
    """

    draws: Float[np.ndarray, "draws 5"]
    effective: float
    log_evidence: float


@lru_cache(maxsize=512)
def posterior(boxes: Boxes, reference: float, form: Curve) -> Posterior:
    """The posterior of one form.

    sigma is integrated in steps of ln sigma, from so large that the brackets say little down to nearly 0. That order
    anneals: (a, b, c) given sigma, log-concave and ever narrower, is drawn from a proposal fitted one step above.
    omega, of which brackets say little, is drawn from its prior.

    Args:
        boxes: one or more, of at least two sizes, one end finite in some.
        reference: N at x = 0.
        form: `linear` fixes c = 0.
    """
    prior = _prior(boxes, form)
    mean, covariance = prior.mean, np.diag(prior.sd**2)
    steps: list[_Weighted] = []
    for centre, standard in zip(_log_noises(boxes), _standard_draws(len(mean)), strict=False):
        draws = _conditional(boxes, reference, prior, float(centre), standard, (mean, covariance))
        mean, covariance = draws.moments(prior)
        if centre - _STEP / 2 > math.log(_NOISE_RANGE[1]):
            continue
        steps.append(draws.times(_log_noise_prior(np.log(draws.noise)) + math.log(_STEP / _PER_STEP)))
        if steps[-1].log_mass < max(step.log_mass for step in steps) - _NEGLIGIBLE:
            break
    return _resampled(steps)


def averaged(boxes: Boxes, reference: float) -> Posterior:
    """Both forms, each with its posterior probability: Bayesian model averaging, Hoeting et al. 1999."""
    linear, quadratic = posterior(boxes, reference, "linear"), posterior(boxes, reference, "quadratic")
    share = linear_probability(boxes, reference)
    from_linear = round(share * _DRAWS)
    draws = np.concatenate([_thinned(linear.draws, from_linear), _thinned(quadratic.draws, _DRAWS - from_linear)])
    evidence = np.logaddexp(
        linear.log_evidence + math.log(LINEAR_PROBABILITY), quadratic.log_evidence + math.log1p(-LINEAR_PROBABILITY)
    )
    effective = 1 / (share**2 / linear.effective + (1 - share) ** 2 / quadratic.effective)
    return Posterior(draws, effective, float(evidence))


def linear_probability(boxes: Boxes, reference: float) -> float:
    """The posterior probability of the straight line against the parabola."""
    gain = posterior(boxes, reference, "linear").log_evidence - posterior(boxes, reference, "quadratic").log_evidence
    return float(expit(gain - math.log(1 / LINEAR_PROBABILITY - 1)))


def _thinned(draws: Float[np.ndarray, "draws 5"], count: int) -> Float[np.ndarray, "count 5"]:
    return draws[np.arange(count) * len(draws) // max(count, 1)]


# --- likelihood -----------------------------------------------------------------------------------------------------

_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
_LOG_NODE_WEIGHTS = np.log(_NODE_WEIGHTS / _NODE_WEIGHTS.sum())
"""Gauss-Hermite quadrature for a standard normal."""


def log_likelihood(
    boxes: Boxes,
    reference: float,
    curve: Float[np.ndarray, "draws P"],
    noise: Float[np.ndarray, " draws"],
    scatter: Float[np.ndarray, " draws"],
) -> Float[np.ndarray, " draws"]:
    """ln P(every bracket | a, b, c, sigma, omega): d(N) by Gauss-Hermite quadrature, and with one seed exactly."""
    total = np.zeros(len(curve))
    for size, group in itertools.groupby(boxes, key=lambda box: box[0]):
        _, low, high, count = np.array(list(group), float).T
        mean = curve @ math.log(size / reference) ** np.arange(curve.shape[1])
        if count.sum() == 1:
            total += _log_mass(low, high, mean, np.hypot(noise, scatter))[:, 0]
            continue
        shifted = (mean + np.outer(_NODES, scatter)).ravel()
        of_node = (_log_mass(low, high, shifted, np.tile(noise, len(_NODES))) @ count).reshape(len(_NODES), -1)
        total += np.logaddexp.reduce(of_node + _LOG_NODE_WEIGHTS[:, None], axis=0)
    return total


def _log_mass(
    low: Float[np.ndarray, " boxes"],
    high: Float[np.ndarray, " boxes"],
    mean: Float[np.ndarray, " draws"],
    sd: Float[np.ndarray, " draws"],
) -> Float[np.ndarray, "draws boxes"]:
    """ln of a normal's mass in each bracket, from the nearer tail so that nothing cancels, and finite."""
    start, end = ((bound - mean[:, None]) / sd[:, None] for bound in (low, high))
    mirrored = start > 0
    start, end = np.where(mirrored, -end, start), np.where(mirrored, -start, end)
    mass: Float[np.ndarray, "draws boxes"] = np.log(np.maximum(ndtr(end) - ndtr(start), 1e-300))
    return mass


# --- integration ----------------------------------------------------------------------------------------------------

_DRAWS = 4096
_PER_STEP = 512
_MOST_STEPS = 64
_STEP = 0.3
"""Width of the steps in ln sigma: from one to the next the spread of (a, b, c) shrinks by no more than a quarter."""
_NOISE_RANGE = (0.03, 2.0)
"""Of the integration over sigma: 5 % of its prior lies below, for which the lowest step stands, and nothing above."""
_ENOUGH = 0.15
"""Effective draws, as a fraction, at which a proposal fits well enough."""
_REFITS = 2
_NEGLIGIBLE = 14.0
"""A step whose mass is below the largest by the exponential of this ends the descent."""
_NARROWEST = 1e-3
"""Of a proposal, relative to the prior: a refit to few effective draws must not collapse."""
_DEGREES = 5
"""Of freedom of the Student-t proposals: their tails are heavier than the posterior's."""


@dataclass(frozen=True, eq=False)
class _Prior:
    """Normal(mean, sd) of (a, b) or (a, b, c), independently."""

    mean: Float[np.ndarray, " P"]
    sd: Float[np.ndarray, " P"]

    def log_density(self, curve: Float[np.ndarray, "draws P"]) -> Float[np.ndarray, " draws"]:
        z = (curve - self.mean) / self.sd
        constant = np.log(self.sd * math.sqrt(2 * math.pi)).sum()
        density: Float[np.ndarray, " draws"] = -(z**2).sum(axis=1) / 2 - constant
        return density


@dataclass(frozen=True, eq=False)
class _Weighted:
    """Importance draws of the curve, sigma and omega, and the log of their weights."""

    curve: Float[np.ndarray, "draws P"]
    noise: Float[np.ndarray, " draws"]
    scatter: Float[np.ndarray, " draws"]
    log_weights: Float[np.ndarray, " draws"]

    @cached_property
    def log_mass(self) -> float:
        return float(np.logaddexp.reduce(self.log_weights))

    @cached_property
    def weights(self) -> Float[np.ndarray, " draws"]:
        weights: Float[np.ndarray, " draws"] = np.exp(self.log_weights - self.log_mass)
        return weights

    @cached_property
    def effective(self) -> float:
        return float(1 / (self.weights**2).sum())

    def moments(self, prior: _Prior) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P P"]]:
        mean = self.weights @ self.curve
        covariance = (self.weights * (self.curve - mean).T) @ (self.curve - mean)
        return mean, covariance + np.diag((_NARROWEST * prior.sd) ** 2)

    def times(self, log_factor: Float[np.ndarray, " draws"]) -> "_Weighted":
        return replace(self, log_weights=self.log_weights + log_factor)


def _prior(boxes: Boxes, form: Curve) -> _Prior:
    ends = [end for _, low, high, _ in boxes for end in (low, high) if math.isfinite(end)]
    centre = (min(ends) + max(ends)) / 2
    curvature = [(0.0, CURVATURE_SD)] if form == "quadratic" else []
    return _Prior(*np.array([(centre, LOCATION_SD), (0.0, SLOPE_SD), *curvature]).T)


def _log_noises(boxes: Boxes) -> Float[np.ndarray, " steps"]:
    """The middles of the steps in ln sigma, descending; those above the prior's range only anneal."""
    lowest, highest = (math.log(end) for end in _NOISE_RANGE)
    start = max(highest, math.log(sum(count for *_, count in boxes)) / 2)
    return np.arange(math.ceil((start - lowest) / _STEP), -1, -1) * _STEP + lowest + _STEP / 2


def _log_noise_prior(log_noise: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """Of ln sigma: half-normal in sigma times the Jacobian sigma; all that is below the range is its lowest step's."""
    constant = math.log(math.sqrt(2 / math.pi) / NOISE_SCALE)
    density: Float[np.ndarray, " draws"] = constant + log_noise - np.exp(2 * log_noise) / (2 * NOISE_SCALE**2)
    in_lowest_step = log_noise < math.log(_NOISE_RANGE[0]) + _STEP
    return density + np.where(in_lowest_step, math.log1p(1 / math.expm1(_STEP)), 0.0)


def _conditional(
    boxes: Boxes,
    reference: float,
    prior: _Prior,
    centre: float,
    standard: Float[np.ndarray, "draws P"],
    proposal: tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P P"]],
) -> _Weighted:
    """Draws of the curve for one step of ln sigma, evenly spread in it, the proposal refitted where it is poor."""
    noise = np.exp(centre + _STEP * (_scores(len(standard), 0) - 0.5))
    scatter = SCATTER_SCALE * ndtri((1 + _scores(len(standard), 1)) / 2)
    tried: list[_Weighted] = []
    for _ in range(_REFITS + 1):
        mean, covariance = proposal
        root = np.linalg.cholesky(covariance)
        curve = mean + standard @ root.T
        log_proposal = _log_student(standard) - np.log(np.diag(root)).sum()
        log_target = prior.log_density(curve) + log_likelihood(boxes, reference, curve, noise, scatter)
        tried.append(_Weighted(curve, noise, scatter, log_target - log_proposal))
        if tried[-1].effective > _ENOUGH * len(standard):
            break
        proposal = tried[-1].moments(prior)
    return max(tried, key=lambda draws: draws.effective)


def _log_student(standard: Float[np.ndarray, "draws P"]) -> Float[np.ndarray, " draws"]:
    size = standard.shape[1]
    constant = gammaln((_DEGREES + size) / 2) - gammaln(_DEGREES / 2) - size / 2 * math.log(_DEGREES * math.pi)
    squared = (standard**2).sum(axis=1)
    density: Float[np.ndarray, " draws"] = constant - (_DEGREES + size) / 2 * np.log1p(squared / _DEGREES)
    return density


def _resampled(steps: Sequence[_Weighted]) -> Posterior:
    names = ("curve", "noise", "scatter", "log_weights")
    pooled = _Weighted(*(np.concatenate([getattr(step, name) for step in steps]) for name in names))
    order = np.random.default_rng(0).permutation(len(pooled.noise))  # so that neighbouring draws are not of one step
    cumulative = np.cumsum(pooled.weights[order])
    places = np.searchsorted(cumulative, (np.arange(_DRAWS) + 0.5) / _DRAWS * cumulative[-1])
    kept = order[places.clip(max=len(order) - 1)]
    draws = np.zeros((_DRAWS, 5))
    draws[:, : pooled.curve.shape[1]] = pooled.curve[kept]
    draws[:, 3], draws[:, 4] = pooled.noise[kept], pooled.scatter[kept]
    draws.flags.writeable = False  # shared between all who ask for this fit
    return Posterior(draws, pooled.effective, pooled.log_mass)


@lru_cache(maxsize=4)
def _standard_draws(dimensions: int) -> Float[np.ndarray, "steps draws P"]:
    """Student-t draws of unit scale."""
    generator = np.random.default_rng(dimensions)
    normal = generator.standard_normal((_MOST_STEPS, _PER_STEP, dimensions))
    return normal / np.sqrt(generator.chisquare(_DEGREES, (_MOST_STEPS, _PER_STEP, 1)) / _DEGREES)


@lru_cache(maxsize=8)
def _scores(count: int, stream: int) -> Float[np.ndarray, " draws"]:
    """Evenly spread over (0, 1), in a fixed random order for each stream."""
    scores: Float[np.ndarray, " draws"] = (np.random.default_rng(stream).permutation(count) + 0.5) / count
    return scores


def normal_scores(count: int) -> Float[np.ndarray, " draws"]:
    """Standard normal quantiles, in a fixed random order that goes with that of the posterior's draws."""
    scores: Float[np.ndarray, " draws"] = ndtri(_scores(count, 2))
    return scores
