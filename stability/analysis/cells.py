"""The unit of every measurement here: a cell, that is one arm at one scale, as a matrix of losses by seed and LR."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from stability.errors import InputError
from stability.tracking.record import TERMINAL

_NEEDED = ("arm", "scale", "n_params", "learning_rate", "seed", "status", "loss_validation")
_OPTIONAL = {"data_seed": pl.Int64, "loss_initial": pl.Float64}
_ROUNDING = 1e-9
"""Relative slack at the ends of a range, so that 3 * 0.1 lies within a range that ends at 0.3."""

_CELL = ("arm", "n_params", "scale")
_REPLICA = ("seed", "data_seed")


@dataclass(frozen=True)
class Cell:
    """The finished and diverged runs of one arm at one scale, on the learning rates that all its seeds have.

    S seeds (a pair of seed and data seed counts as one) and K learning rates; either may be 0.

    Attributes:
        learning_rates: ascending, without units.
        losses: L = min(final validation loss, loss at initialisation) in nats per token; a diverged run counts as the
            loss at initialisation, and is NaN where that is unknown.
        diverged: non-finite, or worse at the end than at initialisation.
        losses_initial: loss at initialisation of each seed, NaN where unknown.
        left_out: learning rates with results for some seeds only.
        seeds: (seed, data seed) of each row of the matrices; a data seed is None where the table does not say it.
    """

    arm: str
    scale: str
    n_params: int
    learning_rates: Float[np.ndarray, " K"]
    losses: Float[np.ndarray, "S K"]
    diverged: Bool[np.ndarray, "S K"]
    losses_initial: Float[np.ndarray, " S"]
    left_out: tuple[float, ...]
    seeds: tuple[tuple[int, int | None], ...]

    @property
    def key(self) -> dict[str, Any]:
        """The columns that name the cell."""
        return {"arm": self.arm, "scale": self.scale, "n_params": self.n_params}

    def __str__(self) -> str:
        return f"{self.arm}, {self.scale}"


def capped(
    losses: Float[np.ndarray, "*runs"], losses_initial: float | Float[np.ndarray, "*runs"]
) -> Float[np.ndarray, "*runs"]:
    """L = min(l, l0), a non-finite l being l0: arXiv 2309.14322, Section 2.2.

    An unknown l0 is NaN: it caps nothing, and L is NaN for the losses that are not finite.
    """
    return np.where(np.isfinite(losses), np.fmin(losses, losses_initial), losses_initial)


def outcomes(table: pl.DataFrame) -> pl.DataFrame:
    """The finished and diverged runs of a table, with what each of them counts as.

    Args:
        table: one row a run; needs the columns arm, scale, n_params, learning_rate, seed, status and loss_validation,
            and uses data_seed and loss_initial.

    Returns:
        Those rows, loss_initial being the mean over the runs of one seed in a cell (they differ by rounding only), and
        two columns more: `diverged` (non-finite at any step, or worse at the end than at initialisation) and `loss`
        (L = min(l, l0) in nats per token, null where the run diverged and l0 is unknown).

    Raises:
        InputError: the table is no polars DataFrame, a column is missing, or two runs share a cell, learning rate and
            seed.
    """
    terminal = _with_optional_columns(table).filter(pl.col("status").is_in(list(TERMINAL)))
    _refuse_twins(terminal)
    known_initial = pl.when(pl.col("loss_initial").is_finite()).then(pl.col("loss_initial"))
    ended = pl.when((pl.col("status") != "diverged") & pl.col("loss_validation").is_finite())
    runs = terminal.with_columns(
        known_initial.mean().over(*_CELL, *_REPLICA).alias("loss_initial"),
        ended.then(pl.col("loss_validation")).alias("_loss"),
    )
    losses, initial = (runs[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("_loss", "loss_initial"))
    return runs.drop("_loss").with_columns(
        pl.Series("diverged", ~np.isfinite(losses) | (losses > initial)),
        pl.Series("loss", capped(losses, initial)).fill_nan(None),
    )


def cells(
    table: pl.DataFrame, learning_rate_min: float | None = None, learning_rate_max: float | None = None
) -> list[Cell]:
    """Every arm and scale of a table of runs as a `Cell`, sorted by arm and n_params.

    Args:
        table: as for `outcomes`.
        learning_rate_min: leave out smaller learning rates.
        learning_rate_max: leave out larger ones.

    Raises:
        InputError: as `outcomes`, or the range is not one, or one that holds none of the runs.
    """
    low, high = _range(learning_rate_min, learning_rate_max)
    runs = outcomes(table)
    in_range = runs.filter(pl.col("learning_rate").is_between(low, high))
    if in_range.is_empty() and not runs.is_empty():
        _refuse_empty_range(runs["learning_rate"], learning_rate_min, learning_rate_max)
    runs_of = in_range.partition_by(*_CELL, as_dict=True)
    keys = table.select(_CELL).unique().sort(_CELL).iter_rows()
    return [_cell(key, runs_of.get(key, in_range.clear())) for key in keys]


def _with_optional_columns(table: pl.DataFrame) -> pl.DataFrame:
    given: object = table
    if not isinstance(given, pl.DataFrame):
        raise InputError(
            "table",
            type(given).__name__,
            "is not a polars DataFrame",
            "Convert it: pl.from_pandas(table), or table.collect() where it is lazy.",
        )
    missing = [column for column in _NEEDED if column not in table.columns]
    if missing:
        raise InputError(
            "table", f"[{', '.join(table.columns)}]", f"lacks the columns {', '.join(missing)}", "Add them."
        )
    absent = [pl.lit(None, dtype).alias(column) for column, dtype in _OPTIONAL.items() if column not in table.columns]
    return table.with_columns(*absent, pl.col("loss_validation").cast(pl.Float64))


def _refuse_twins(terminal: pl.DataFrame) -> None:
    seat = [*_CELL, "learning_rate", *_REPLICA]
    for row in terminal.filter(terminal.select(seat).is_duplicated()).iter_rows(named=True):
        raise InputError(
            "table",
            f"({row['arm']}, {row['scale']}, learning rate {row['learning_rate']:g}, seed {row['seed']})",
            "names more than one run",
            "Tell them apart by arm, scale or seed; a ladder's scales must set width, depth and head_dim each.",
        )


def _range(low: float | None, high: float | None) -> tuple[float, float]:
    for key, value in (("learning_rate_min", low), ("learning_rate_max", high)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(key, value, "is not a positive number", "Give one, or null for the whole grid.")
    if low is not None and high is not None and low > high:
        raise InputError("learning_rate_min", low, f"is above learning_rate_max={high}", "Swap them.")
    return (low or 0.0) * (1 - _ROUNDING), (high or math.inf) * (1 + _ROUNDING)


def _refuse_empty_range(rates: pl.Series, low: float | None, high: float | None) -> None:
    key, value = ("learning_rate_max", high) if low is None else ("learning_rate_min", low)
    present: list[float] = rates.to_list()
    problem = f"leaves out every learning rate of the runs, which lie from {min(present):g} to {max(present):g}"
    raise InputError(key, value, problem, "Widen the range.")


def _cell(key: tuple[Any, ...], runs: pl.DataFrame) -> Cell:
    arm, n_params, scale = key
    replicas = runs.partition_by(*_REPLICA, maintain_order=True)
    grids = [set(replica["learning_rate"]) for replica in replicas]
    common = sorted(set.intersection(*grids)) if grids else []
    seats = [replica.filter(pl.col("learning_rate").is_in(common)).sort("learning_rate") for replica in replicas]
    shape = (len(seats), len(common))
    return Cell(
        arm=arm,
        scale=scale,
        n_params=n_params,
        learning_rates=np.array(common, float),
        losses=_matrix((seat["loss"] for seat in seats), shape),
        diverged=_matrix((seat["diverged"] for seat in seats), shape).astype(bool),
        losses_initial=_matrix((replica["loss_initial"].head(1) for replica in replicas), (len(replicas), 1))[:, 0],
        left_out=tuple(sorted(set().union(*grids) - set(common))),
        seeds=tuple(replica.select(_REPLICA).row(0) for replica in replicas),
    )


def _matrix(rows: Iterable[pl.Series], shape: tuple[int, int]) -> Float[np.ndarray, "S K"]:
    return np.array([row.cast(pl.Float64).fill_null(np.nan).to_numpy() for row in rows], float).reshape(shape)
