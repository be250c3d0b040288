"""What the loop tells of each run: rows of named numbers, progress, the end."""

from typing import Protocol

import numpy as np
from jaxtyping import Float

from stability.config import TrainingConfig
from stability.training.step import StepMetrics

Row = dict[str, float | int | None]


class Journal(Protocol):
    """Where one run's story goes."""

    def row(self, row: Row) -> None:
        """A step was observed or evaluated."""

    def progress(self, step: int) -> None:
        """So many steps are done."""

    def saved(self, step: int) -> None:
        """A checkpoint of the state before `step` is on the disk."""

    def ended(self, *, diverged_at: int | None, first_bad_observation: str | None = None) -> None:
        """The run is over: trained to its end, or non-finite at a step, where a number of this name went bad first."""


def training_row(
    training: TrainingConfig,
    start: int,
    last: int,
    metrics: StepMetrics,
    observations: dict[str, np.ndarray] | None,
    seconds_per_step: float,
) -> Row:
    """The row of step `start + last`: its own numbers, and the highest loss of its dispatch so far.

    Args:
        training: the run's training config.
        start: the dispatch's first step.
        last: the index, within the dispatch, of the step to report.
        metrics: one lane's, each [C].
        observations: one lane's, None where the step was not observed.
        seconds_per_step: measured over the dispatch.
    """
    step = start + last
    row: Row = {
        "step": step,
        "tokens": step * training.tokens_per_step,
        "loss/train": float(metrics.cross_entropy[last]),
        "loss/train_with_z_loss": float(metrics.loss[last]),
        "loss/train_recent_max": float(np.max(metrics.cross_entropy[: last + 1])),
        "optimizer/gradient_norm": float(metrics.gradient_norm[last]),
        "optimizer/learning_rate": float(metrics.learning_rate[last]),
        "speed/tokens_per_second": training.tokens_per_step / max(seconds_per_step, 1e-9),
    }
    return row | _named(observations) if observations is not None else row


def _named(observations: dict[str, np.ndarray]) -> Row:
    """Observations as scalars: `NAME/block_03/head_01`, `NAME/block_03` over its heads, maxima also over all blocks."""
    row: Row = {}
    for name, value in observations.items():
        if value.ndim == 0:
            row[name] = float(value)
            continue
        row[name] = _over_heads(name, value)
        row |= {f"{name}/head_{i:02d}": float(one) for i, one in enumerate(value)}
    for maximum in ("attention_logit/max", "attention_logit/abs_max"):
        blocks = [float(np.max(v)) for name, v in observations.items() if name.startswith(f"{maximum}/")]
        if blocks:  # a model without attention has none
            row[maximum] = max(blocks)
    return row


def _over_heads(name: str, value: Float[np.ndarray, " H"]) -> float:
    """The largest of maxima, the root mean square of RMS, the mean of all else."""
    if name.startswith("attention_logit/"):
        return float(np.max(value))
    if "_rms/" in name:
        return float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
    return float(np.mean(value))
