"""The highest stable learning rate: where raising the learning rate begins to hurt rather than help."""

import math
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from stability.analysis.cells import Cell, cells, outcomes
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
        table: as for `sensitivity`; only finished and diverged runs count, at LRs that all seeds have.
        unstable_excess: nats per token, positive (0.5 unless given).

    Returns:
        One row for each cell (an arm at a scale), with the columns

        - `arm`, `scale`, `n_params`;
        - `lower`: the highest stable LR below `upper`, null when none is;
        - `upper`: the lowest unstable LR, null when none is;
        - `fraction_unstable`: of the seeds, at `upper`.

    Raises:
        InputError: the table is bad, as for `sensitivity`, or `unstable_excess` is not a positive number.
    """
    _check(unstable_excess)
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "lower": pl.Float64,
        "upper": pl.Float64,
        "fraction_unstable": pl.Float64,
    }
    return pl.DataFrame([{**cell.key, **_edge(cell, unstable_excess)} for cell in cells(table)], schema=schema)


def stable_edge_brackets(table: pl.DataFrame, unstable_excess: float = UNSTABLE_EXCESS) -> pl.DataFrame:
    """The highest stable LR of every *seed*, as the bracket (lower, upper] of the LR grid that its edge lies in.

    What `max_stable_learning_rate` says of a cell of one seed, with no vote, and on the whole grid of that seed, also
    at LRs that the others lack: a finer grid of one seed is a narrower bracket, which a fit can use.

    Args:
        table: as for `max_stable_learning_rate`.
        unstable_excess: nats per token, positive.

    Returns:
        Columns arm, scale, n_params, seed, lower, upper; one row for each pair of seed and data seed with a result.
        `upper` null: no LR was unstable, the edge is above `lower` (right-censored). `lower` null: none was stable, the
        edge is below `upper` (left-censored).

    Raises:
        InputError: as `max_stable_learning_rate`.
    """
    _check(unstable_excess)
    replica = ["arm", "n_params", "scale", "seed", "data_seed"]
    runs = outcomes(table).sort(*replica, "learning_rate").group_by(replica, maintain_order=True)
    rows = []
    for row in runs.agg("learning_rate", "loss", "diverged").iter_rows(named=True):
        cell = _of_one_seed(row)
        edge = _edge(cell, unstable_excess)
        rows.append({**cell.key, "seed": row["seed"], "lower": edge["lower"], "upper": edge["upper"]})
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "seed": pl.Int64,
        "lower": pl.Float64,
        "upper": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema)


def _of_one_seed(row: dict[str, Any]) -> Cell:
    return Cell(
        arm=row["arm"],
        scale=row["scale"],
        n_params=row["n_params"],
        learning_rates=np.array(row["learning_rate"], float),
        losses=np.array([row["loss"]], float),
        diverged=np.array([row["diverged"]], bool),
        losses_initial=np.array([math.nan]),  # the losses are capped already
        left_out=(),
        seeds=((row["seed"], row["data_seed"]),),
    )


def _check(unstable_excess: float) -> None:
    if not 0 < unstable_excess < math.inf:
        raise InputError("unstable_excess", unstable_excess, "is not a positive number", "Give one, in nats per token.")


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


def unstable(cell: Cell, unstable_excess: float = UNSTABLE_EXCESS) -> Bool[np.ndarray, "S K"]:
    """Which runs of a cell are unstable: see `max_stable_learning_rate`; none at or below the cell's best LR.

    Args:
        cell: S seeds by K learning rates.
        unstable_excess: nats per token, positive.
    """
    if not cell.losses.size:
        return np.zeros(cell.losses.shape, bool)
    losses = np.where(np.isfinite(cell.losses), cell.losses, np.inf)
    above_best = np.arange(len(cell.learning_rates)) > _best(cell, losses)
    return np.asarray(_unstable(cell, losses, unstable_excess) & above_best)


def best_position(cell: Cell) -> int | None:
    """Where among its learning rates a cell's best LR stands, in the sense of `max_stable_learning_rate`.

    Returns:
        None where there are no results, and where at least half of the seeds diverged at every LR.
    """
    if not cell.losses.size:
        return None
    position = _best(cell, np.where(np.isfinite(cell.losses), cell.losses, np.inf))
    return None if position < 0 else position


def _unstable(cell: Cell, losses: Float[np.ndarray, "S K"], unstable_excess: float) -> Any:
    limit = losses.min(axis=1, keepdims=True) + unstable_excess
    return cell.diverged | (losses > limit)


def _best(cell: Cell, losses: Float[np.ndarray, "S K"]) -> int:
    """Position of the best LR, -1 when at least half of the seeds diverged at every LR."""
    trains = cell.diverged.mean(axis=0) < UNSTABLE_FRACTION
    if not trains.any():
        return -1
    return int(np.argmin(np.where(trains, losses.mean(axis=0), np.inf)))
