"""A run's results, from its rows. Imports no JAX."""

import math
from collections.abc import Sequence
from typing import Any

from stability.tracking.record import Row, Status

VALIDATION = "loss/validation"


def summarise(
    rows: Sequence[Row], steps: int, diverged_at: int | None, first_bad_observation: str | None = None
) -> dict[str, Any]:
    """What a run came to: status, losses, extreme and final observations.

    A run is diverged when its loss (that of validation, too), gradient or parameters were non-finite at any step, or
    its final validation loss is above the loss at initialisation (arXiv 2309.14322, Section 2.2).

    Args:
        rows: all rows of the run, in order.
        steps: how many steps it was to train.
        diverged_at: the first step whose loss, gradient or updated parameters were not finite, None where there was
            none.
        first_bad_observation: what of that step went bad first, None where that is not known.
    """
    initial = _at(rows, 0, VALIDATION)
    final = None if diverged_at is not None else _at(rows, steps, VALIDATION)
    worse = final is None or (initial is not None and final > initial)
    bad_step: float | None = diverged_at
    bad_observation = first_bad_observation
    bad_validation = _first_bad_step(rows, VALIDATION)
    if bad_validation is not None and (diverged_at is None or bad_validation < diverged_at):
        bad_step, bad_observation = bad_validation, VALIDATION
    status: Status = "diverged" if bad_step is not None or worse else "finished"
    observed = _finite(rows, "attention_logit/max")
    return {
        "status": status,
        "steps": steps if diverged_at is None else diverged_at,
        "first_bad_step": bad_step,
        "first_bad_observation": bad_observation,
        "loss_initial": initial,
        "loss_validation": final,
        "loss_train": _last(rows, "loss/train"),
        "attention_logit_max": max(observed, default=None),
        "attention_logit_max_final": observed[-1] if observed else None,
        "log_z_final": _last(rows, "output_logit/log_z_mean"),
        "gradient_norm_final": _last(rows, "optimizer/gradient_norm"),
    }


def _at(rows: Sequence[Row], step: int, key: str) -> float | None:
    return _last([row for row in rows if row["step"] == step], key)


def _last(rows: Sequence[Row], key: str) -> float | None:
    return next(reversed(_finite(rows, key)), None)


def _first_bad_step(rows: Sequence[Row], key: str) -> float | None:
    """The step of the first row whose value was not finite, which is null in rows that were read back."""
    return next((row["step"] for row in rows if key in row and not _is_finite(row[key])), None)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _finite(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := row.get(key)) is not None and _is_finite(value)]
