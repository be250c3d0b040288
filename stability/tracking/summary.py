"""A run's results, from its rows. Imports no JAX."""

import math
from collections.abc import Sequence
from typing import Any

from stability.tracking.record import Row, Status


def summarise(rows: Sequence[Row], steps: int, diverged_at: int | None) -> dict[str, Any]:
    """What a run came to: status, losses, extreme and final observations.

    A run is diverged when its loss or parameters were non-finite at any step, or its final validation loss is above the
    loss at initialisation (arXiv 2309.14322, Section 2.2).

    Args:
        rows: all rows of the run, in order.
        steps: how many steps it was to train.
        diverged_at: the first step whose loss or updated parameters were not finite, None where there was none.
    """
    initial = _at(rows, 0, "loss/validation")
    final = None if diverged_at is not None else _at(rows, steps, "loss/validation")
    worse = final is None or (initial is not None and final > initial)
    status: Status = "diverged" if diverged_at is not None or worse else "finished"
    observed = [value for row in rows if (value := row.get("attention_logit/max")) is not None and math.isfinite(value)]
    return {
        "status": status,
        "steps": steps if diverged_at is None else diverged_at,
        "first_bad_step": diverged_at,
        "loss_initial": initial,
        "loss_validation": final,
        "loss_train": _last(rows, "loss/train"),
        "attention_logit_max": max(observed, default=None),
        "attention_logit_max_final": observed[-1] if observed else None,
        "log_z_final": _last(rows, "output_logit/log_z_mean"),
        "gradient_norm_final": _last(rows, "optimizer/gradient_norm"),
    }


def _at(rows: Sequence[Row], step: int, key: str) -> float | None:
    found = [value for row in rows if row["step"] == step and (value := row.get(key)) is not None]
    return found[-1] if found and math.isfinite(found[-1]) else None


def _last(rows: Sequence[Row], key: str) -> float | None:
    found = [value for row in rows if (value := row.get(key)) is not None and math.isfinite(value)]
    return found[-1] if found else None
