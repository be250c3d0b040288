"""Learning-rate sensitivity: how much worse the final loss is, on average over a range of LRs, than at the best LR.

arXiv 2309.14322, Section 2.2, with l(LR) the final validation loss, l0 the loss at initialisation and l* the least l:

    sensitivity = E over LR in [a, b] of ( min(l(LR), l0) - l* )

It is blind to the *level* of the loss (a model that never learns scores 0), and it does not compare interventions that
change what "learning rate" means.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.cells import Cell, capped, cells, outcomes
from stability.errors import InputError

Estimator = Literal["mean", "mean_k_minus_1", "trapezoid_log_lr"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

HARDLY_LEARNED = 0.9
"""Ours: a model whose best loss is above this fraction of its loss at initialisation has hardly learned."""


def sensitivity_of(
    learning_rates: Sequence[float] | Float[np.ndarray, " K"],
    losses: Sequence[float] | Float[np.ndarray, " K"],
    loss_initial: float | None = None,
) -> dict[Estimator, float | None]:
    """The LR sensitivity of one curve, by three estimators.

    With k runs at LRs a = x_1 < ... < x_k = b and L_i = min(l_i, l0) (a non-finite l_i being l0):

        mean             = sum_i (L_i - l*) / k            (arXiv 2309.14322, Section 2.2)
        mean_k_minus_1   = sum_i (L_i - l*) / (k - 1)      (what arXiv 2601.02031 reports)
        trapezoid_log_lr = 1/ln(b/a) * integral of (L - l*) d ln LR, piecewise linear in ln LR

    Args:
        learning_rates: positive and distinct, in any order.
        losses: final validation losses, in nats per token; NaN or infinite for a run that diverged.
        loss_initial: l0; None when unknown, which is enough as long as every loss is finite.

    Returns:
        A value in nats per token for each estimator; None for fewer than two learning rates, and when a loss is not
        finite and l0 is unknown.

    Raises:
        InputError: the lengths differ, or a learning rate is not positive and finite or comes twice.
    """
    rates, values = np.asarray(learning_rates, float), np.asarray(losses, float)
    _check_curve(rates, values)
    order = np.argsort(rates)
    rates, excess = rates[order], capped(values[order], math.nan if loss_initial is None else loss_initial)
    if len(rates) < 2 or not np.isfinite(excess).all():
        return dict.fromkeys(ESTIMATORS)
    excess = excess - excess.min()
    log_rates = np.log(rates)
    return {
        "mean": float(excess.mean()),
        "mean_k_minus_1": float(excess.sum() / (len(rates) - 1)),
        "trapezoid_log_lr": float(np.trapezoid(excess, log_rates) / (log_rates[-1] - log_rates[0])),
    }


def _check_curve(rates: Float[np.ndarray, " K"], losses: Float[np.ndarray, " K"]) -> None:
    if rates.ndim != 1 or rates.shape != losses.shape:
        raise InputError(
            "losses", losses.shape, f"does not match learning_rates {rates.shape}", "Give one loss per LR."
        )
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise InputError("learning_rates", rates.tolist(), "holds one that is not positive", "Leave it out.")
    if len(np.unique(rates)) < len(rates):
        raise InputError("learning_rates", rates.tolist(), "holds one twice", "Give one curve (one seed) at a time.")


def sensitivity(
    table: pl.DataFrame, learning_rate_min: float | None = None, learning_rate_max: float | None = None
) -> pl.DataFrame:
    """LR sensitivity of every arm and scale: per seed, then averaged over the seeds.

    Args:
        table: one row a run, as `load` returns it. Only finished and diverged runs count; where seeds have results at
            different LRs, only the LRs that all of them have.
        learning_rate_min: the range [a, b] begins here; by default the whole grid counts.
        learning_rate_max: the range ends here.

    Returns:
        Columns arm, scale, n_params, estimator, value (nats per token, null as in `sensitivity_of`, which it also is
        when it is null for any seed), n_seeds, n_learning_rates; one row for each cell and estimator.

    Raises:
        InputError: as `stability.analysis.cells.cells`.
    """
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "estimator": pl.String,
        "value": pl.Float64,
        "n_seeds": pl.Int64,
        "n_learning_rates": pl.Int64,
    }
    rows = [
        {**cell.key, "estimator": name, "value": value, "n_seeds": len(cell.losses), "n_learning_rates": len(lrs)}
        for cell in cells(table, learning_rate_min, learning_rate_max)
        for lrs in [cell.learning_rates]
        for name, value in _mean_over_seeds(cell).items()
    ]
    return pl.DataFrame(rows, schema=schema)


def _mean_over_seeds(cell: Cell) -> dict[Estimator, float | None]:
    # The cell's losses are capped already; NaN stands only where l0 is unknown, so that none is needed here.
    per_seed = [sensitivity_of(cell.learning_rates, losses) for losses in cell.losses]
    means: dict[Estimator, float | None] = {}
    for name in ESTIMATORS:
        values = [value for seed in per_seed if (value := seed[name]) is not None]
        means[name] = sum(values) / len(values) if values and len(values) == len(per_seed) else None
    return means


def curves(table: pl.DataFrame) -> pl.DataFrame:
    """Final loss against LR, over the seeds: the curves that sensitivity summarises.

    Returns:
        Columns arm, scale, n_params, learning_rate, loss_mean, loss_min, loss_max (of L = min(l, l0), in nats per
        token; null when a run diverged and l0 is unknown), n_runs, n_diverged. Unlike `sensitivity` it keeps LRs that
        only some seeds have.

    Raises:
        InputError: as `stability.analysis.cells.cells`.
    """
    loss = pl.col("loss")
    known = loss.is_not_null().all()
    cell = ("arm", "n_params", "scale", "learning_rate")
    return (
        outcomes(table)
        .group_by(cell)
        .agg(
            pl.when(known).then(loss.mean()).alias("loss_mean"),
            pl.when(known).then(loss.min()).alias("loss_min"),
            pl.when(known).then(loss.max()).alias("loss_max"),
            pl.len().cast(pl.Int64).alias("n_runs"),
            pl.col("diverged").sum().cast(pl.Int64).alias("n_diverged"),
        )
        .sort(cell)
        .select("arm", "scale", "n_params", "learning_rate", pl.exclude(cell))
    )


def sensitivity_warnings(
    table: pl.DataFrame, learning_rate_min: float | None = None, learning_rate_max: float | None = None
) -> list[str]:
    """What a reader of `sensitivity` (same arguments) ought to know, one sentence or two each; nothing is changed.

    Raises:
        InputError: as `sensitivity`.
    """
    found = cells(table, learning_rate_min, learning_rate_max)
    return [*_grids_differ(found), *(warning for cell in found for warning in _cell_warnings(cell))]


def _grids_differ(found: Sequence[Cell]) -> Iterator[str]:
    grids = sorted({tuple(cell.learning_rates.tolist()) for cell in found if len(cell.learning_rates) > 1})
    if len(grids) > 1:
        yield (
            f"Learning-rate grids differ ({'; '.join(_grid(grid) for grid in grids)}), and sensitivity depends on its "
            "grid: compare arms and scales over a range that all of them cover (learning_rate_min, learning_rate_max)."
        )


def _grid(rates: Sequence[float]) -> str:
    return f"{len(rates)} from {rates[0]:g} to {rates[-1]:g}"


def _cell_warnings(cell: Cell) -> Iterator[str]:
    if cell.left_out:
        rates = ", ".join(f"{rate:g}" for rate in cell.left_out)
        yield f"{cell}: learning rates {rates} have results for some seeds only and are not counted."
    if len(cell.learning_rates) < 2:
        count = "one learning rate" if len(cell.learning_rates) else "no learning rate"
        yield f"{cell}: {count} with results in the range, so there is no sensitivity."
    elif not np.isfinite(cell.losses).all():
        yield f"{cell}: a run diverged and its loss at initialisation is unknown, so there is no sensitivity."
    elif hardly := _hardly_learned(cell):
        yield hardly
    else:
        yield from _best_at_edge(cell)


def _hardly_learned(cell: Cell) -> str | None:
    best, initial = cell.losses.mean(axis=0).min(), cell.losses_initial.mean()
    if not best > HARDLY_LEARNED * initial:  # also when the latter is unknown (NaN)
        return None
    return (
        f"{cell}: hardly learned at any learning rate (best loss {best:.3g}, at initialisation {initial:.3g}); "
        "a low sensitivity means nothing here."
    )


def _best_at_edge(cell: Cell) -> Iterator[str]:
    """Propose a grid two steps longer on the side where the best LR may lie; one that ties with an inner LR is fine."""
    rates, losses = cell.learning_rates, cell.losses.mean(axis=0)
    best = np.flatnonzero(losses == losses.min())
    low, high = rates[0], rates[-1]
    if set(best) == {0}:
        low = low * (rates[0] / rates[1]) ** 2
    elif set(best) == {len(rates) - 1}:
        high = high * (rates[-1] / rates[-2]) ** 2
    else:
        return
    yield (
        f"{cell}: the best learning rate, {rates[best[0]]:g}, is at the edge of its range [{rates[0]:g}, "
        f"{rates[-1]:g}], so the sensitivity may be wrong. Try the range [{low:.2g}, {high:.2g}]."
    )
