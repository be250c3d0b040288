"""What a table of many runs wants of each beside final values: extremes, and the first step above a limit."""

import math
from collections.abc import Mapping
from typing import Literal

from stability.tracking.record import Row

EXTREMES: Mapping[str, tuple[Literal["max", "min"], ...]] = {
    "loss/validation": ("min",),
    "loss/train": ("min", "max"),
    "loss/train_recent_max": ("max",),
    "attention_logit/max": ("max",),
    "attention_logit/abs_max": ("max",),
    "output_logit/max": ("max",),
    "output_logit/log_z_mean": ("min", "max"),
    "optimizer/gradient_norm": ("max",),
}
"""Metrics whose extremes over a run are kept: `max/METRIC`, `min/METRIC`."""

LIMITS: Mapping[str, tuple[float, ...]] = {"attention_logit/max": (1e2, 1e3, 1e4)}
"""Metrics whose first step above a limit is kept. Every run of arXiv 2309.14322 (Section 3.3) whose max attention
logit passed 1e4 diverged."""


def first_step_above(metric: str, limit: float) -> str:
    """The name of a highlight: `first_step_above/attention_logit_max_1e4`."""
    return f"first_step_above/{metric.replace('/', '_')}_1e{round(math.log10(limit))}"


class Highlights:
    """Takes a run's rows one by one, in any order; values that are not finite have no extreme and pass no limit."""

    def __init__(self) -> None:
        self._found: dict[str, float | int] = {}

    def add(self, row: Row) -> None:
        """Look at one more row."""
        for metric, ends in EXTREMES.items():
            value = row.get(metric)
            if value is not None and math.isfinite(value):
                for end in ends:
                    self._keep(f"{end}/{metric}", value, least=end == "min")
        for metric, limits in LIMITS.items():
            value, step = row.get(metric), row["step"]
            if value is not None and step is not None and math.isfinite(value):
                for limit in limits:
                    if value > limit:
                        self._keep(first_step_above(metric, limit), step, least=True)

    def _keep(self, name: str, value: float, *, least: bool) -> None:
        known = self._found.setdefault(name, value)
        self._found[name] = min(known, value) if least else max(known, value)

    @property
    def values(self) -> dict[str, float | int]:
        """Highlight -> value; one that never was is missing."""
        return dict(self._found)
