"""A run's results, from its rows. Imports no JAX."""

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

from stability.tracking.record import Row, Status

VALIDATION = "loss/validation"
_LAST_OF = {
    "loss_train": "loss/train",
    "attention_logit_max_final": "attention_logit/max",
    "log_z_final": "output_logit/log_z_mean",
    "gradient_norm_final": "optimizer/gradient_norm",
}
"""Field of a summary -> the metric whose last finite value it is."""


class Results:
    """Takes a run's rows one by one, in order, and keeps what a summary needs: a long run's rows fill the memory.

    Args:
        steps: how many steps the run is to train.
        rows: those that it has already.
    """

    def __init__(self, steps: int, rows: Iterable[Row] = ()) -> None:
        self._steps = steps
        self._last: dict[str, float] = {}
        self._validation: dict[float, float] = {}
        self._bad_validation: float | None = None
        self._attention_logit_max: float | None = None
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Look at one more row."""
        for metric in _LAST_OF.values():
            if _is_finite(value := row.get(metric)):
                self._last[metric] = value
        if _is_finite(value := row.get("attention_logit/max")):
            known = self._attention_logit_max
            self._attention_logit_max = value if known is None else max(value, known)
        step = row["step"]
        if VALIDATION in row and step is not None:
            if _is_finite(value := row[VALIDATION]):
                self._validation[step] = value
            elif self._bad_validation is None:  # null in rows that were read back
                self._bad_validation = step

    def summary(self, diverged_at: int | None, first_bad_observation: str | None = None) -> dict[str, Any]:
        """What the run came to: status, losses, extreme and final observations.

        A run is diverged when its loss (that of validation, too), gradient or parameters were non-finite at any step,
        or its final validation loss is above the loss at initialisation (arXiv 2309.14322, Section 2.2).

        Args:
            diverged_at: the first step whose loss, gradient or updated parameters were not finite, None where there was
                none.
            first_bad_observation: what of that step went bad first, None where that is not known.
        """
        initial = self._validation.get(0)
        final = None if diverged_at is not None else self._validation.get(self._steps)
        worse = final is None or (initial is not None and final > initial)
        bad_step: float | None = diverged_at
        if self._bad_validation is not None and (diverged_at is None or self._bad_validation < diverged_at):
            bad_step, first_bad_observation = self._bad_validation, VALIDATION
        status: Status = "diverged" if bad_step is not None or worse else "finished"
        return {
            "status": status,
            "steps": self._steps if diverged_at is None else diverged_at,
            "first_bad_step": bad_step,
            "first_bad_observation": first_bad_observation,
            "loss_initial": initial,
            "loss_validation": final,
            "attention_logit_max": self._attention_logit_max,
            **{field: self._last.get(metric) for field, metric in _LAST_OF.items()},
        }


def _is_finite(value: float | int | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
