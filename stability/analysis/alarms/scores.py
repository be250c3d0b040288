"""What alarms watch: scores of a run's rows. Each is causal: the score at a row uses that row and earlier ones only.

*Robust score.* How many robust standard deviations a value lies above what came before:

    score_t = (x_t - median(x_{t-W} .. x_{t-1})) / max(1.4826 MAD(x_{t-W} .. x_{t-1}), floor)

1.4826 MAD estimates a standard deviation whatever a few outliers do (Rousseeuw and Croux 1993). A spike is commonly
called a value seven standard deviations above its rolling mean (the "spike score" of OLMo 2, arXiv 2501.00656); with
median and MAD an earlier spike neither raises the bar for the next nor hides it. The floor keeps a flat stretch from
making a spike of every ripple.
"""

import numpy as np
from jaxtyping import Float

from stability.analysis.alarms.trace import Trace

WINDOW = 16
"""Rows that a row is compared with, ..."""
LEAST = 6
"""... and how many of them there must be."""
LOSS_FLOOR = 0.05
"""Nats per token: standard deviation below which a training loss is not taken to be known."""
LOG_FLOOR = 0.1
"""The same of a logarithm (of a norm): 10 %."""
GROWTH_ROWS = 6
"""Rows that the growth of the attention logit is fitted over."""

Scores = Float[np.ndarray, " rows"]


def robust_score(x: Float[np.ndarray, "*metrics rows"], floor: float) -> Float[np.ndarray, "*metrics rows"]:
    """See the module; NaN where fewer than `LEAST` earlier values are known."""
    missing = np.full((*x.shape[:-1], WINDOW), np.nan)
    past = np.lib.stride_tricks.sliding_window_view(np.concatenate([missing, x], axis=-1), WINDOW, axis=-1)[..., :-1, :]
    middle = _median(past)
    spread = 1.4826 * _median(np.abs(past - middle[..., None]))
    enough = np.isfinite(past).sum(axis=-1) >= LEAST
    return np.asarray(np.where(enough, (x - middle) / np.maximum(spread, floor), np.nan))


def _median(x: Float[np.ndarray, "*cases values"]) -> Float[np.ndarray, "*cases"]:
    """The median of the last axis over what is not NaN; NaN where all of it is (NumPy's own takes 50 times as long)."""
    ordered = np.sort(x, axis=-1)  # NaN last
    known = np.isfinite(x).sum(axis=-1, keepdims=True)
    low, high = (np.take_along_axis(ordered, np.maximum(known - 1 + up, 0) // 2, axis=-1) for up in (0, 1))
    return np.asarray(((low + high) / 2)[..., 0])


def loss_spike(trace: Trace) -> Scores:
    """Robust score of the training loss, floor 0.05 nats; infinite where the loss is not finite."""
    loss = trace.loss
    return np.where(np.isnan(loss), np.inf, robust_score(loss, LOSS_FLOOR))


def attention_logit(trace: Trace) -> Scores:
    """The max attention logit itself."""
    return trace.of("attention_logit/max")


def attention_logit_growth(trace: Trace) -> Scores:
    """Slope of ln(max attention logit) over the last rows times the step: its e-folds for each e-fold of steps.

    1 is a logit proportional to the step. Logits below 1 count as 1, so that noise about zero is no growth.
    """
    slope, _ = _growth(trace)
    return np.asarray(slope * trace.steps)


def attention_logit_ahead(trace: Trace) -> Scores:
    """The max attention logit that its growth leads to by twice the steps: exp(ln(logit) + slope x step)."""
    slope, logit = _growth(trace)
    return np.asarray(np.exp(np.minimum(logit + np.maximum(slope, 0.0) * trace.steps, 700.0)))


def steps_to(trace: Trace, threshold: float) -> Scores:
    """Steps until the max attention logit reaches a threshold as it grows now; 0 beyond it, NaN without growth."""
    slope, logit = _growth(trace)
    away = np.log(threshold) - logit
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.where(slope > 0, away / slope, np.nan)
    return np.where(away <= 0, 0.0, ahead)


def _growth(trace: Trace) -> tuple[Scores, Scores]:
    """Least-squares slope of ln(max attention logit) by step over the last `GROWTH_ROWS` rows, and its value."""
    x = trace.steps.astype(float)
    y = np.log(np.maximum(trace.of("attention_logit/max"), 1.0))
    slope = np.full(len(x), np.nan)
    if len(x) >= GROWTH_ROWS:
        xs = np.lib.stride_tricks.sliding_window_view(x, GROWTH_ROWS)
        ys = np.lib.stride_tricks.sliding_window_view(y, GROWTH_ROWS)
        dx = xs - xs.mean(axis=1, keepdims=True)
        slope[GROWTH_ROWS - 1 :] = (dx * ys).sum(axis=1) / (dx**2).sum(axis=1)
    return slope, y


def attention_entropy(trace: Trace) -> Scores:
    """Minus the least attention entropy of any block, in nats: near 0 every query attends to one key."""
    return _worst(-trace.under("attention_entropy/", parts=2))


def gradient_norm_spike(trace: Trace) -> Scores:
    """Robust score of ln(global gradient norm), floor 0.1."""
    return robust_score(_log(trace.of("optimizer/gradient_norm")), LOG_FLOOR)


def gradient_rms_spike(trace: Trace) -> Scores:
    """The largest robust score of ln(gradient RMS) of any tensor, floor 0.1."""
    return _worst(robust_score(_log(trace.under("gradient/rms/")), LOG_FLOOR))


def update_rms_spike(trace: Trace) -> Scores:
    """The largest robust score of ln(update RMS) of any tensor, floor 0.1."""
    return _worst(robust_score(_log(trace.under("update/rms/")), LOG_FLOOR))


def update_rms_collapse(trace: Trace) -> Scores:
    """The largest robust score of -ln(update RMS) of any tensor, floor 0.1."""
    return _worst(robust_score(-_log(trace.under("update/rms/")), LOG_FLOOR))


def log_z(trace: Trace) -> Scores:
    """Absolute mean log Z of the output logits, in nats."""
    return np.asarray(np.abs(trace.of("output_logit/log_z_mean")))


def _log(x: Scores) -> Scores:
    return np.asarray(np.log(np.maximum(x, 1e-30)))


def _worst(scores: Float[np.ndarray, "metrics rows"]) -> Scores:
    """The largest of several scores at each row, NaN where none is known."""
    known = ~np.isnan(scores).all(axis=0)
    return np.where(known, np.where(np.isnan(scores), -np.inf, scores).max(axis=0, initial=-np.inf), np.nan)
