"""The best learning rate of a loss curve, between the points of its grid: the bottom of a parabola in ln LR.

Near its bottom any smooth curve of the loss against ln LR is a parabola; least losses are read off grids of model sizes
in the same way (arXiv 2203.15556, Section 3.2, fits a parabola in log N). Which points count is our choice, made for
grids of half decades and noisy losses:

- The window is the least loss, its neighbour on either side, and every further point that is joined to them by losses
  within FLAT = 3 sqrt(2) noise floors of the least: as good as the least one, given the noise (three standard
  deviations of a difference of two runs). So a flat curve is fitted over many points, and a steep one over three.
- A loss more than UNSTABLE_EXCESS above the least counts as lying just that much above it. Beyond the edge of stability
  the loss jumps to a plateau or to the loss at initialisation, and how high says nothing of where the bottom is.
- Equal weights. Where the fit over more than three points has no bottom inside its window, the exact parabola through
  the least loss and its two neighbours is taken, whose bottom is always within half a step of the least loss.

The least loss at an end of the grid has no neighbour there, and the best LR is at or beyond that end.
"""

import math
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from stability.analysis.cells import Cell, cells
from stability.analysis.stable_edge import UNSTABLE_EXCESS
from stability.analysis.uncertainty import LOSS_NOISE, check_loss_noise, over_seeds, standard_noise, without_spread

FLAT = 3 * math.sqrt(2)
"""Ours: how many noise floors a loss may lie above the least one and still be as good."""

_NO_RUNS = "no learning rate with results"
_UNKNOWN = "every run diverged, or their losses are unknown"


def best_learning_rate(table: pl.DataFrame, loss_noise: float = LOSS_NOISE) -> pl.DataFrame:
    """The best LR of every arm and scale, on the whole grid: per seed, then the geometric mean over the seeds.

    Where the least loss of some seeds lies at an end of the grid and that of the mean curve does not, the value is that
    of the mean curve, and there is no interval.

    Args:
        table: as for `sensitivity`; only finished and diverged runs count, at LRs that all seeds have.
        loss_noise: standard deviation over seeds of one run's final loss, in nats per token (0.03 unless given). It
            says which losses are as good as the least (docs/statistics.md), and is what the interval rests on where
            there is one seed only.

    Returns:
        One row for each cell (an arm at a scale), with the columns

        - `arm`, `scale`, `n_params`;
        - `value`: the best LR; where the least loss of the mean curve lies at an end of the grid, that end;
        - `interval_low`, `interval_high`: the 90 % interval, null where there is none;
        - `basis`: what it rests on, `seeds` or `noise_floor`; null without interval;
        - `grid_step`: median distance of neighbouring LRs of the grid in ln LR, null with fewer than two;
        - `at_edge`: the least loss of the mean curve lies at an end of the grid; null where there is no value;
        - `n_seeds`;
        - `reason`: why there is no value or no interval; null where there is one.

    Raises:
        InputError: the table is bad, as for `sensitivity`, or `loss_noise` is not a positive number.
    """
    check_loss_noise(loss_noise)
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "value": pl.Float64,
        "interval_low": pl.Float64,
        "interval_high": pl.Float64,
        "basis": pl.String,
        "grid_step": pl.Float64,
        "at_edge": pl.Boolean,
        "n_seeds": pl.Int64,
        "reason": pl.String,
    }
    rows = [
        {**cell.key, "grid_step": _grid_step(cell), "n_seeds": len(cell.losses), **_best(cell, loss_noise)}
        for cell in cells(table)
    ]
    return pl.DataFrame(rows, schema=schema)


def best_log_learning_rate_per_seed(cell: Cell, loss_noise: float = LOSS_NOISE) -> Float[np.ndarray, " S"]:
    """ln of the best LR of each seed of a cell.

    Args:
        cell: its curves.
        loss_noise: which losses are as good as the least one, see the module; nats per token.

    Returns:
        NaN for a seed whose least loss lies at an end of the grid, and where every run diverged or there are no runs.

    Raises:
        InputError: `loss_noise` is not a positive number.
    """
    check_loss_noise(loss_noise)
    return _bottoms(cell.learning_rates, _usable(cell), loss_noise)


def best_learning_rate_noise_sd(cell: Cell, loss_noise: float = LOSS_NOISE) -> float | None:
    """Standard deviation over seeds of ln(best LR) of one seed, if that of one run's loss is `loss_noise`.

    A parametric bootstrap: normal noise of that size is added to the losses of the cell's own curves, and the best LR
    found again; where the least loss then lies at an end of the grid, the best LR counts as that end.

    Args:
        cell: its curves; several seeds give the root mean square of their standard deviations.
        loss_noise: in nats per token.

    Returns:
        In ln LR; None where no seed has a best LR inside the grid.

    Raises:
        InputError: `loss_noise` is not a positive number.
    """
    check_loss_noise(loss_noise)
    losses = _usable(cell)
    inside = losses[np.isfinite(_bottoms(cell.learning_rates, losses, loss_noise))]
    if not len(inside):
        return None
    noise = loss_noise * standard_noise(len(cell.learning_rates))
    variances = [_noisy_bottoms(cell.learning_rates, curve + noise, loss_noise).var() for curve in inside]
    return math.sqrt(float(np.mean(variances)))


def _noisy_bottoms(
    rates: Float[np.ndarray, " K"], curves: Float[np.ndarray, "draws K"], loss_noise: float
) -> Float[np.ndarray, " draws"]:
    bottoms = _bottoms(rates, curves, loss_noise)
    return np.where(np.isfinite(bottoms), bottoms, np.log(rates)[curves.argmin(axis=-1)])


def _usable(cell: Cell) -> Float[np.ndarray, "S K"]:
    """The losses, infinite where a run diverged: no such LR is best, even where the others are hardly better."""
    return np.where(cell.diverged | ~np.isfinite(cell.losses), np.inf, cell.losses)


def _grid_step(cell: Cell) -> float | None:
    return float(np.median(np.diff(np.log(cell.learning_rates)))) if len(cell.learning_rates) > 1 else None


def _best(cell: Cell, loss_noise: float) -> dict[str, Any]:
    if not len(cell.learning_rates):
        return {"reason": _NO_RUNS}
    losses, rates = _usable(cell), cell.learning_rates
    mean = losses.mean(axis=0)
    if not np.isfinite(mean).any():
        return {"reason": _UNKNOWN if len(losses) == 1 else f"{_UNKNOWN}, for a seed at every learning rate"}
    (centre,) = _bottoms(rates, mean[None], loss_noise)
    if np.isnan(centre):
        end = float(rates[mean.argmin()])
        beyond = "below" if end == rates[0] else "above"
        beyond = "below or above" if len(rates) == 1 else beyond
        return {
            "value": end,
            "at_edge": True,
            "reason": f"the best learning rate is at {end:g}, an end of the grid, or {beyond} it",
        }
    bottoms = _bottoms(rates, losses, loss_noise)
    outside = int(np.isnan(bottoms).sum())
    if outside:
        reason = f"{outside} of {len(losses)} seeds have their least loss at an end of the grid"
        return {"value": math.exp(centre), "at_edge": False, "reason": reason}
    found = over_seeds(bottoms, best_learning_rate_noise_sd(cell, loss_noise) if without_spread(bottoms) else None)
    low, high = found.interval or (None, None)
    return {
        "value": math.exp(found.value) if found.value is not None else None,
        "interval_low": None if low is None else math.exp(low),
        "interval_high": None if high is None else math.exp(high),
        "basis": found.basis,
        "at_edge": False,
    }


# --- the bottom of many curves at once ------------------------------------------------------------------------------


def _bottoms(
    rates: Float[np.ndarray, " K"], losses: Float[np.ndarray, "C K"], loss_noise: float
) -> Float[np.ndarray, " C"]:
    """ln of the best LR of each of C curves on one ascending grid; NaN where it is not inside the grid.

    A loss may be infinite. Where an LR at an end ties with one inside, the one inside counts.
    """
    if len(rates) < 3 or not len(losses):
        return np.full(len(losses), math.nan)
    least = losses.min(axis=1, keepdims=True)
    known = np.isfinite(least)
    excess = np.minimum(np.where(known, losses - np.where(known, least, 0.0), np.inf), UNSTABLE_EXCESS)
    centre = 1 + losses[:, 1:-1].argmin(axis=1)
    inside = known[:, 0] & (excess[np.arange(len(losses)), centre] == 0)
    log_rates = np.log(rates)
    x = log_rates - log_rates[centre][:, None]
    narrow = np.abs(np.arange(len(rates)) - centre[:, None]) <= 1
    wide = narrow | _joined(excess <= FLAT * loss_noise, centre)
    bottom = _parabola_bottom(x, excess, wide)
    within = (bottom >= np.where(wide, x, np.inf).min(axis=1)) & (bottom <= np.where(wide, x, -np.inf).max(axis=1))
    bottom = np.where(within, bottom, _parabola_bottom(x, excess, narrow))
    return np.where(inside, log_rates[centre] + bottom, math.nan)


def _joined(flat: Bool[np.ndarray, "C K"], centre: Any) -> Bool[np.ndarray, "C K"]:
    """The unbroken run of true values on either side of each centre."""
    index = np.arange(flat.shape[1])
    right = np.where(~flat & (index > centre[:, None]), index, flat.shape[1]).min(axis=1, keepdims=True)
    left = np.where(~flat & (index < centre[:, None]), index, -1).max(axis=1, keepdims=True)
    joined: Bool[np.ndarray, "C K"] = (index > left) & (index < right)
    return joined


def _parabola_bottom(
    x: Float[np.ndarray, "C K"], y: Float[np.ndarray, "C K"], chosen: Bool[np.ndarray, "C K"]
) -> Float[np.ndarray, " C"]:
    """Bottom of the least-squares parabola of y on x over the chosen points (at least three); NaN unless it has one."""
    count = chosen.sum(axis=1, keepdims=True)

    def centred(values: Float[np.ndarray, "C K"]) -> Float[np.ndarray, "C K"]:
        return np.where(chosen, values - np.where(chosen, values, 0.0).sum(axis=1, keepdims=True) / count, 0.0)

    def product(a: Float[np.ndarray, "C K"], b: Float[np.ndarray, "C K"]) -> Any:
        return np.einsum("ck,ck->c", a, b)

    line = centred(x)
    square = centred(line**2)
    # Normal equations of y = slope * line + curvature * square, both centred over the chosen points.
    ll, lq, qq, ly, qy = (
        product(a, b) for a, b in ((line, line), (line, square), (square, square), (line, y), (square, y))
    )
    slope, curvature = qq * ly - lq * qy, ll * qy - lq * ly  # times the determinant, which is positive
    upward = curvature > 0
    middle = np.where(chosen, x, 0.0).sum(axis=1) / count[:, 0]
    return np.where(upward, middle - slope / (2 * np.where(upward, curvature, 1.0)), math.nan)
