"""Alarms: a score of a run's rows, and the threshold beyond which it says that the run will go wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stability.analysis.alarms import scores
from stability.analysis.alarms.scores import Scores
from stability.analysis.alarms.trace import LOSS, Trace

LOGIT_THRESHOLD = 1e4
"""Max attention logit beyond which every run of arXiv 2309.14322 (Section 3.3) diverged: what time is told to."""

_LOGIT = "attention_logit/max"
_ABOVE = "robust standard deviations above the last rows"


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Attributes:
        name: of the alarm.
        watches: the metric or metrics that it reads, as a prefix.
        score: causal (`stability.analysis.alarms.scores`).
        threshold: it fires at the first row whose score lies above. A custom of the field where there is one, else
            chosen on some of our own sweeps; measured on the others: docs/early_warning.md.
        means: what the score is a number of.
    """

    name: str
    watches: str
    score: Callable[[Trace], Scores]
    threshold: float
    means: str

    def first(self, trace: Trace, threshold: float | None = None) -> int | None:
        """The row at which it first fires, None where it never does."""
        values = self.score(trace)
        fired = np.flatnonzero(values > (self.threshold if threshold is None else threshold))
        return int(fired[0]) if len(fired) else None


_ALL = (
    Alarm("loss_spike", LOSS, scores.loss_spike, 7.0, "robust standard deviations of the loss above its last rows"),
    Alarm("attention_logit", _LOGIT, scores.attention_logit, 3500.0, "max attention logit"),
    Alarm("attention_logit_growth", _LOGIT, scores.attention_logit_growth, 4.4, "d ln(logit) / d ln(step)"),
    Alarm(
        "attention_logit_ahead", _LOGIT, scores.attention_logit_ahead, 55000.0, "max attention logit by twice the steps"
    ),
    Alarm("attention_entropy", "attention_entropy/", scores.attention_entropy, -0.005, "minus the least entropy, nats"),
    Alarm("gradient_norm_spike", "optimizer/gradient_norm", scores.gradient_norm_spike, 3.0, _ABOVE),
    Alarm("gradient_rms_spike", "gradient/rms/", scores.gradient_rms_spike, 7.0, _ABOVE),
    Alarm("update_rms_spike", "update/rms/", scores.update_rms_spike, 3.5, _ABOVE),
    Alarm("update_rms_collapse", "update/rms/", scores.update_rms_collapse, 7.0, "robust standard deviations below"),
    Alarm("log_z", "output_logit/log_z_mean", scores.log_z, 8.6, "absolute mean log Z, nats"),
)
ALARMS: Mapping[str, Alarm] = {alarm.name: alarm for alarm in _ALL}
WATCHED = tuple(dict.fromkeys(alarm.watches for alarm in _ALL))
"""Prefixes of all metrics that some alarm reads."""
