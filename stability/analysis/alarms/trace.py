"""One run's training rows as arrays, one for each metric."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from stability.tracking.record import Row

LOSS, RECENT_LOSS = "loss/train", "loss/train_recent_max"


@dataclass(frozen=True)
class Trace:
    """What a run measured, row by row.

    Attributes:
        steps: of the rows, ascending.
        values: metric -> its value in each row, NaN where a row does not have it or it was not finite.
    """

    steps: Int[np.ndarray, " rows"]
    values: Mapping[str, Float[np.ndarray, " rows"]]

    def of(self, metric: str) -> Float[np.ndarray, " rows"]:
        """One metric, all NaN where the run does not have it."""
        return self.values.get(metric, np.full(len(self.steps), np.nan))

    def under(self, prefix: str, parts: int | None = None) -> Float[np.ndarray, "metrics rows"]:
        """Every metric whose name begins so, and has so many parts between slashes."""
        names = [name for name in self.values if name.startswith(prefix)]
        chosen = [self.values[name] for name in names if parts is None or name.count("/") == parts - 1]
        return np.array(chosen, float).reshape(len(chosen), len(self.steps))

    @property
    def loss(self) -> Float[np.ndarray, " rows"]:
        """The largest training loss since the row before; of a record without it the loss of the row's own step."""
        recent = self.of(RECENT_LOSS)
        return np.where(np.isnan(recent), self.of(LOSS), recent)


def trace_of(rows: Iterable[Row], prefixes: Sequence[str] = ("",)) -> Trace:
    """The training rows (those with a training loss, finite or not) of a run.

    Args:
        rows: oldest first; the rows of evaluations are passed over.
        prefixes: only metrics whose names begin with one of these.
    """
    kept = [row for row in rows if LOSS in row]
    names = dict.fromkeys(name for row in kept for name in row if name != "step" and name.startswith(tuple(prefixes)))
    values = {name: np.array([_number(row.get(name)) for row in kept]) for name in names}
    return Trace(np.array([row["step"] for row in kept], int), values)


def _number(value: float | None) -> float:
    return float(value) if value is not None and np.isfinite(value) else np.nan
