"""Learning-rate sensitivity: how much worse the final loss is, on average over a range of LRs, than at the best LR.

arXiv 2309.14322, Section 2.2, with l(LR) the final validation loss, l0 the loss at initialisation and l* the least l:

    sensitivity = E over LR in [a, b] of ( min(l(LR), l0) - l* )

It is blind to the *level* of the loss (a model that never learns scores 0), and it does not compare interventions that
change what "learning rate" means.

Because l* is the least of noisy losses, noise raises every estimate, by about one standard deviation of a run's loss
where several LRs are equally good. Intervals are about the estimate, not about what it would be without noise: compare
arms on the same grid, where most of this cancels.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.cells import Cell, capped, cells, outcomes
from stability.analysis.uncertainty import LOSS_NOISE, check_loss_noise, over_seeds, standard_noise, without_spread
from stability.errors import InputError

Estimator = Literal["mean", "mean_k_minus_1", "trapezoid_log_lr"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

HARDLY_LEARNED = 0.9
"""Ours: a model whose best loss is above this fraction of its loss at initialisation has hardly learned."""

WORSE_LEVEL = 0.1
"""Ours: nats per token by which an arm's best loss must lie above another's to be called worse; three noise floors."""

_RMS_SCALED = "learning_rate_scaling=tensor_rms"
"""In an arm's label: the LR is a multiple of each tensor's RMS, and so means something else."""


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
    rates, losses_capped = rates[order], capped(values[order], math.nan if loss_initial is None else loss_initial)
    if len(rates) < 2 or not np.isfinite(losses_capped).all():
        return dict.fromkeys(ESTIMATORS)
    return {name: float(value) for name, value in _estimates(rates, losses_capped).items()}


def _estimates(rates: Float[np.ndarray, " K"], losses: Float[np.ndarray, "*curves K"]) -> dict[Estimator, Any]:
    """The estimators of `sensitivity_of` for many curves at once, of capped and finite losses at ascending LRs."""
    excess, log_rates = losses - losses.min(axis=-1, keepdims=True), np.log(rates)
    return {
        "mean": excess.mean(axis=-1),
        "mean_k_minus_1": excess.sum(axis=-1) / (len(rates) - 1),
        "trapezoid_log_lr": np.trapezoid(excess, log_rates) / (log_rates[-1] - log_rates[0]),
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


# --- tables ---------------------------------------------------------------------------------------------------------


def sensitivity(
    table: pl.DataFrame,
    learning_rate_min: float | None = None,
    learning_rate_max: float | None = None,
    loss_noise: float = LOSS_NOISE,
) -> pl.DataFrame:
    """LR sensitivity of every arm and scale: per seed, then averaged over the seeds (arXiv 2309.14322, Section 2.2).

    With l the final validation loss, l0 the loss at initialisation and l* the least l, it is the mean over the LRs of
    min(l, l0) - l*, a run that diverged counting as l0.

    Args:
        table: one row a run, as `load` returns it, or any with the columns arm, scale, n_params, learning_rate, seed,
            status and loss_validation (nats per token), and if need be loss_initial and data_seed. Only finished and
            diverged runs count; where seeds have results at different LRs, only the LRs that all of them have.
        learning_rate_min: the range [a, b] begins here; by default the whole grid counts.
        learning_rate_max: the range ends here.
        loss_noise: standard deviation over seeds of one run's final loss, in nats per token (0.03 unless given); what
            an interval rests on where there is one seed only, or where all seeds give the same value.

    Returns:
        One row for each cell (an arm at a scale) and estimator, with the columns

        - `arm`, `scale`, `n_params`;
        - `estimator`: `mean` (the paper's), `mean_k_minus_1` or `trapezoid_log_lr`, see `sensitivity_of`;
        - `value`: nats per token; null with fewer than two LRs, and when a run diverged and l0 is unknown;
        - `interval_low`, `interval_high`: the 90 % interval about the value, from 0 on; null where there is none;
        - `basis`: what the interval rests on, `seeds` or `noise_floor`; null without interval;
        - `n_seeds`, `n_learning_rates`: behind the value.

    Raises:
        InputError: the table is no polars DataFrame, lacks a column, or has two runs of one arm, scale, LR and seed;
            the range is none; or `loss_noise` is not a positive number.
    """
    check_loss_noise(loss_noise)
    schema = {
        "arm": pl.String,
        "scale": pl.String,
        "n_params": pl.Int64,
        "estimator": pl.String,
        "value": pl.Float64,
        "interval_low": pl.Float64,
        "interval_high": pl.Float64,
        "basis": pl.String,
        "n_seeds": pl.Int64,
        "n_learning_rates": pl.Int64,
    }
    found = cells(table, learning_rate_min, learning_rate_max)
    return pl.DataFrame([row for cell in found for row in _rows(cell, loss_noise)], schema=schema)


def _rows(cell: Cell, loss_noise: float) -> Iterator[dict[str, Any]]:
    for name, values in sensitivity_per_seed(cell).items():
        per_seed = np.empty(0) if values is None else values
        noise_sd = sensitivity_noise_sd(cell, name, loss_noise) if without_spread(per_seed) else None
        found = over_seeds(per_seed, noise_sd)
        low, high = found.interval or (None, None)
        yield {
            **cell.key,
            "estimator": name,
            "value": found.value,
            "interval_low": None if low is None else max(low, 0.0),
            "interval_high": high,
            "basis": found.basis,
            "n_seeds": len(cell.losses),
            "n_learning_rates": len(cell.learning_rates),
        }


def sensitivity_per_seed(cell: Cell) -> dict[Estimator, Float[np.ndarray, " S"] | None]:
    """LR sensitivity of each seed of a cell by every estimator, in nats per token.

    Returns:
        None for all of them where the cell has no runs, fewer than two learning rates, or a run that diverged with an
        unknown loss at initialisation.
    """
    # The cell's losses are capped already; NaN stands only where l0 is unknown.
    if not _has_sensitivity(cell):
        return dict.fromkeys(ESTIMATORS)
    return dict(_estimates(cell.learning_rates, cell.losses))


def _has_sensitivity(cell: Cell) -> bool:
    return len(cell.losses) > 0 and len(cell.learning_rates) > 1 and bool(np.isfinite(cell.losses).all())


def sensitivity_noise_sd(cell: Cell, estimator: Estimator, loss_noise: float = LOSS_NOISE) -> float | None:
    """Standard deviation over seeds of one seed's LR sensitivity, if that of one run's loss is `loss_noise`.

    A parametric bootstrap: normal noise of that size is added to the losses of the cell's own curves and the estimator
    computed again. A diverged run stays at l0. That noise also *raises* the estimate is no part of it.

    Args:
        cell: its curves; several seeds give the root mean square of their standard deviations.
        estimator: one of ESTIMATORS.
        loss_noise: in nats per token.

    Returns:
        Nats per token; None where the cell has no sensitivity, and where every run diverged: noise in the loss says
        nothing about whether a run diverges.

    Raises:
        InputError: `loss_noise` is not a positive number.
    """
    check_loss_noise(loss_noise)
    if not _has_sensitivity(cell) or cell.diverged.all():
        return None
    noise = loss_noise * standard_noise(len(cell.learning_rates))[:, None, :]
    noisy = np.fmin(np.where(cell.diverged, cell.losses, cell.losses + noise), cell.losses_initial[:, None])
    values = _estimates(cell.learning_rates, noisy)[estimator]
    return math.sqrt(float(values.var(axis=0).mean()))


def curves(table: pl.DataFrame) -> pl.DataFrame:
    """Final loss against LR, over the seeds: the curves that sensitivity summarises.

    Args:
        table: as for `sensitivity`.

    Returns:
        One row for each arm, scale and LR, LRs that only some seeds have among them, with the columns

        - `arm`, `scale`, `n_params`, `learning_rate`;
        - `loss_mean`, `loss_min`, `loss_max`: over the seeds, of L = min(l, l0) in nats per token; null when a run
          diverged and l0 is unknown;
        - `n_runs`, `n_diverged`.

    Raises:
        InputError: the table is bad, as for `sensitivity`.
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


# --- what a reader ought to know ------------------------------------------------------------------------------------


def sensitivity_warnings(
    table: pl.DataFrame,
    learning_rate_min: float | None = None,
    learning_rate_max: float | None = None,
    loss_noise: float = LOSS_NOISE,
) -> list[str]:
    """What a reader of `sensitivity` (same arguments) ought to know, one sentence or two each; nothing is changed.

    Cells of which the same is to be said share a sentence.

    Raises:
        InputError: as `sensitivity`.
    """
    check_loss_noise(loss_noise)
    found = cells(table, learning_rate_min, learning_rate_max)
    return [*_grids_differ(found), *_cells_warnings(found), *_arms_warnings(found), *_one_seed(found, loss_noise)]


def _grids_differ(found: Sequence[Cell]) -> Iterator[str]:
    grids = sorted({tuple(cell.learning_rates.tolist()) for cell in found if len(cell.learning_rates) > 1})
    if len(grids) > 1:
        yield (
            f"Learning-rate grids differ ({'; '.join(_grid(grid) for grid in grids)}), and sensitivity depends on its "
            "grid: compare arms and scales over a range that all of them cover (learning_rate_min, learning_rate_max)."
        )


def _grid(rates: Sequence[float]) -> str:
    return f"{len(rates)} from {rates[0]:g} to {rates[-1]:g}"


def _cells_warnings(found: Sequence[Cell]) -> Iterator[str]:
    concerned: dict[str, list[Cell]] = {}
    for cell in found:
        for warning in _cell_warnings(cell):
            concerned.setdefault(warning, []).append(cell)
    for warning, those in concerned.items():
        yield f"{_names(those)}: {warning}"


def _names(found: Sequence[Cell]) -> str:
    """`arm, scale` for one cell, `arm (scale, scale); arm (scale)` for several."""
    if len(found) == 1:
        return str(found[0])
    arms = groupby(found, key=lambda cell: cell.arm)
    return "; ".join(f"{arm} ({', '.join(cell.scale for cell in of)})" for arm, of in arms)


def _cell_warnings(cell: Cell) -> Iterator[str]:
    if cell.left_out:
        rates = ", ".join(f"{rate:g}" for rate in cell.left_out)
        yield f"learning rates {rates} have results for some seeds only and are not counted."
    if len(cell.learning_rates) < 2:
        count = "one learning rate" if len(cell.learning_rates) else "no learning rate"
        yield f"{count} with results in the range, so there is no sensitivity."
    elif not np.isfinite(cell.losses).all():
        yield "a run diverged and its loss at initialisation is unknown, so there is no sensitivity."
    elif _hardly_learned(cell):
        yield (
            f"hardly learned at any learning rate (best loss above {HARDLY_LEARNED:.0%} of that at initialisation); "
            "a low sensitivity means nothing here."
        )
    else:
        yield from _best_at_edge(cell)


def _hardly_learned(cell: Cell) -> bool:
    # Not so, either, when the loss at initialisation is unknown (NaN).
    return bool(cell.losses.mean(axis=0).min() > HARDLY_LEARNED * cell.losses_initial.mean())


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
        f"the best learning rate, {rates[best[0]]:g}, is at the edge of its range [{rates[0]:g}, {rates[-1]:g}], "
        f"so the sensitivity may be wrong. Try the range [{low:.2g}, {high:.2g}]."
    )


def _arms_warnings(found: Sequence[Cell]) -> Iterator[str]:
    scaled = list(dict.fromkeys(cell.arm for cell in found if _RMS_SCALED in cell.arm))
    if scaled and any(_RMS_SCALED not in cell.arm for cell in found):
        yield (
            f"{'; '.join(scaled)}: the learning rate is a multiple of each tensor's RMS here, so neither sensitivity "
            "nor the best or highest stable learning rate compares with those of the other arms."
        )
    flattered = [cell for cell in found if any(_flattered(cell, other) for other in found)]
    if flattered:
        yield (
            f"{_names(flattered)}: less sensitive than another arm at the same scale whose best loss is lower by more "
            f"than {WORSE_LEVEL:g} nats per token. Sensitivity is blind to the level of the loss: look at the curves."
        )


def _flattered(cell: Cell, other: Cell) -> bool:
    """The other arm at this scale has a higher sensitivity, and yet a much better best loss."""
    if (cell.scale, cell.n_params) != (other.scale, other.n_params):
        return False
    ours, theirs = (sensitivity_per_seed(one)["mean"] for one in (cell, other))
    if ours is None or theirs is None or not ours.mean() < theirs.mean():
        return False
    return bool(cell.losses.mean(axis=0).min() > other.losses.mean(axis=0).min() + WORSE_LEVEL)


def _one_seed(found: Sequence[Cell], loss_noise: float) -> Iterator[str]:
    measured = [cell for cell in found if _has_sensitivity(cell)]
    single = [cell for cell in measured if len(cell.losses) == 1]
    if not single:
        return
    which = "One seed a curve" if len(single) == len(measured) else f"{_names(single)}: one seed"
    yield (
        f"{which}: intervals rest on the declared noise floor ({loss_noise:g} nats per token for one run), not on "
        "measured spread, and leave out that the edge of stability moves from seed to seed. Train three seeds or more."
    )
