"""Which run next? The (N, LR) whose result would shrink the interval of a forecast most.

In the pooled model, given its hyperparameters, the interval after a further run does not depend on that run's result:
with posterior covariance K, a run at c with seed noise s_c takes K(t, c)^2 / (K(c, c) + s_c^2) off the variance at the
target t (Rasmussen & Williams 2006, equation 2.26; the choice is that of Cohn 1996, Neural Networks 9(6), 1071-1083).
That the run would also tell the hyperparameters is left out, so the gain is rather too small than too large.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stability.analysis.forecast.joint import JointModel

LISTED = 3
LARGER = (1.5, 2.0, 4.0)
"""Sizes beyond the largest trained that are candidates, as factors, where they are smaller than the target."""


def candidates(model: JointModel, target_size: float) -> Float[np.ndarray, "C 2"]:
    """(ln N, ln LR) of the sizes trained, half way between them, and of larger ones below the target, at every LR."""
    trained = np.unique(model.cells.log_size)
    larger = [trained[-1] + math.log(factor) for factor in LARGER]
    between = (trained[1:] + trained[:-1]) / 2
    sizes = np.array([*trained, *between, *(size for size in larger if size < math.log(target_size) - 1e-9)])
    size, rate = (axis.ravel() for axis in np.meshgrid(sizes, np.unique(model.cells.log_rate), indexing="ij"))
    return np.stack([size, rate], axis=1)


def expected_shrinkage(
    model: JointModel, target: tuple[float, float], places: Float[np.ndarray, "C 2"]
) -> Float[np.ndarray, " C"]:
    """By which share the predictive standard deviation at the target is expected to shrink, for one run at each place.

    Args:
        model: fitted to the runs so far.
        target: (ln N, ln LR).
        places: of the candidates.
    """
    t = np.array([target])
    together = np.concatenate([t, places])
    half = model.half(together)
    prior = model.kernel.between(model.hyper, t - model.centre, places - model.centre)[:, 0, :]
    covariance = prior - np.einsum("dc,dcm->dm", half[:, :, 0], half[:, :, 1:])
    variance = np.maximum(model.prior_variance(together) - np.sum(half**2, axis=1), 1e-10)
    taken = covariance**2 / (variance[:, 1:] + model.cells.noise(places[:, 1]) ** 2)
    location = np.einsum("dc,dc->d", half[:, :, 0], model.solved)
    between = float(model.weights @ (location - model.weights @ location) ** 2)
    noise = float(model.cells.noise(t[:, 1])[0]) ** 2
    before = between + noise + model.weights @ variance[:, 0]
    after = np.maximum(before - model.weights @ taken, 1e-12)
    return np.asarray(1 - np.sqrt(after / before))


def next_runs(
    model: JointModel, target_size: float, target_log_rate: float, sizes: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """The best candidates by gain, then the best by gain for their cost.

    Args:
        model: the pooled model, fitted to the runs so far.
        target_size: N at which the forecast is wanted.
        target_log_rate: ln LR of it; where P(unstable) is about 1/2, what is learned decides most.
        sizes: candidate N; those of `candidates` when None.

    Returns:
        Rows with `n_params`, `learning_rate`, `gain` (expected share by which the 90 % interval of ln q at the target
        shrinks), `cost` (training compute at equal tokens, 6 N per token, relative to a run of the largest size
        trained), `gain_per_cost`, and `best_by` (`gain` or `gain_per_cost`).
    """
    places = candidates(model, target_size)
    if sizes is not None:
        rates = np.unique(model.cells.log_rate)
        places = np.array([(math.log(size), rate) for size in sizes for rate in rates])
    gain = expected_shrinkage(model, (math.log(target_size), target_log_rate), places)
    cost = np.exp(places[:, 0] - model.cells.log_size.max())
    rows = []
    for best_by, score in (("gain", gain), ("gain_per_cost", gain / cost)):
        for place in np.argsort(-score, kind="stable")[:LISTED]:
            row = {
                "n_params": round(math.exp(places[place, 0])),
                "learning_rate": float(f"{math.exp(places[place, 1]):.12g}"),
                "gain": float(gain[place]),
                "cost": float(cost[place]),
            }
            rows.append(row | {"gain_per_cost": row["gain"] / row["cost"], "best_by": best_by})
    return rows
