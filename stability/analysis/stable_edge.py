"""The highest stable learning rate: where raising the learning rate begins to hurt rather than help."""

import math
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.cells import Cell, cells
from stability.errors import InputError

UNSTABLE_EXCESS = 0.5
"""Ours: nats per token above the best loss."""

UNSTABLE_FRACTION = 0.5
"""Ours: a learning rate is unstable when at least this fraction of its seeds is."""


def max_stable_learning_rate(table: pl.DataFrame, unstable_excess: float = UNSTABLE_EXCESS) -> pl.DataFrame:
    """The highest stable and the lowest unstable LR of every arm and scale, on the whole grid.

    A run is unstable when it diverged, or when its L = min(loss, loss at initialisation) exceeds the least L of its
    *own seed* by more than `unstable_excess`. An LR is unstable when at least half of its seeds are *and* it lies above
    the best LR: an LR below the best is under-trained, never unstable. The best LR has the lowest mean L over seeds
    among the LRs where fewer than half of the seeds diverged. Where there is no such LR, nothing is stable: `lower` is
    null and `upper` the lowest LR. Where there are no results, both are null.

    Args:
        table: one row a run, as `load` returns it; only finished and diverged runs count, at LRs that all seeds have.
        unstable_excess: nats per token, positive.

    Returns:
        Columns arm, scale, n_params, lower (highest stable LR below `upper`), upper (lowest unstable LR, null when none
        is), fraction_unstable (of the seeds, at `upper`); one row for each cell.

    Raises:
        InputError: `unstable_excess` is not a positive number, or as `stability.analysis.cells.cells`.
    """
    if not 0 < unstable_excess < math.inf:
        raise InputError("unstable_excess", unstable_excess, "is not a positive number", "Give one, in nats per token.")
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "lower": pl.Float64,
        "upper": pl.Float64,
        "fraction_unstable": pl.Float64,
    }
    return pl.DataFrame([{**cell.key, **_edge(cell, unstable_excess)} for cell in cells(table)], schema=schema)


def _edge(cell: Cell, unstable_excess: float) -> dict[str, Any]:
    if not len(cell.learning_rates):
        return {"lower": None, "upper": None, "fraction_unstable": None}
    # Without l0 a diverged run has no loss; it must not be the best one, and it is unstable whatever its loss.
    losses = np.where(np.isfinite(cell.losses), cell.losses, np.inf)
    fraction = _unstable(cell, losses, unstable_excess).mean(axis=0)
    best = _best(cell, losses)
    above = np.arange(len(fraction)) > best
    unstable = np.flatnonzero(above & (fraction >= UNSTABLE_FRACTION))
    if not len(unstable):
        return {"lower": float(cell.learning_rates[-1]), "upper": None, "fraction_unstable": None}
    upper = int(unstable[0])
    return {
        "lower": float(cell.learning_rates[upper - 1]) if upper else None,
        "upper": float(cell.learning_rates[upper]),
        "fraction_unstable": float(fraction[upper]),
    }


def _unstable(cell: Cell, losses: Float[np.ndarray, "S K"], unstable_excess: float) -> Any:
    limit = losses.min(axis=1, keepdims=True) + unstable_excess
    return cell.diverged | (losses > limit)


def _best(cell: Cell, losses: Float[np.ndarray, "S K"]) -> int:
    """Position of the best LR, -1 when at least half of the seeds diverged at every LR."""
    trains = cell.diverged.mean(axis=0) < UNSTABLE_FRACTION
    if not trains.any():
        return -1
    return int(np.argmin(np.where(trains, losses.mean(axis=0), np.inf)))
