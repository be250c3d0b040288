"""What a forecast is asked for: P(unstable | N, LR), the highest stable LR at N, and the N from which an LR fails.

All of them are read from one table of probabilities over sizes and learning rates. Where the back-tests do not show
that extrapolating is any good, there is no number but a reason: `obstacle` and `too_wide` are the rules.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from stability.analysis.forecast.backtest import AVERAGED, BackTest
from stability.analysis.forecast.models import Model
from stability.analysis.forecast.threshold import Threshold
from stability.analysis.uncertainty import INTERVAL_LEVEL

FEWEST_SIZES = 3
"""Ours: two to fit and one to test."""

REACH = 2.0
"""Ours: how much further than the back-tests, as a factor of N, a forecast may go."""

WIDEST_DECADES = 4.0
"""Ours: an interval that spans more orders of magnitude says nothing that a plan could use."""

LOWEST_COVERAGE = 0.6
"""Ours: of the 90 % intervals of the back-tests; below it they are not to be believed."""

MOST_WITHOUT_VALUE = 0.5
"""Ours: the largest share of runs that were left out or censored."""

SAFE = 0.9
"""Ours: the probability of being stable at which a learning rate is called safe."""

_GRID = 31
_SURE = 1e-6


def obstacle(test: BackTest) -> str | None:
    """Why these runs do not support any extrapolation; None when they do."""
    data = test.data
    if test.n_sizes < FEWEST_SIZES:
        sizes = f"{test.n_sizes} size{' has' if test.n_sizes == 1 else 's have'} values"
        return f"{sizes}, and a forecast needs {FEWEST_SIZES}: 2 to fit and 1 to test it on"
    total = len(data.value) + data.left_out
    without = data.left_out + int(data.censored.sum())
    if without > MOST_WITHOUT_VALUE * total:
        return f"{without} of {total} runs have no positive value, more than half"
    score = next((s for s in test.scores if s.model == AVERAGED and s.held_out is None), None)
    if score is None:
        return "no size could be forecast from the smaller ones, so nothing is known about how good a forecast is"
    if score.gain is not None and score.gain <= 0:
        return f"back-tests do not beat persistence (log score {score.gain:+.2f} nats a run against it)"
    if score.coverage < LOWEST_COVERAGE:
        return f"the back-tests' 90 % intervals held {score.coverage:.0%} of the runs"
    return None


def out_of_reach(test: BackTest, size: float) -> str | None:
    """Why a size is too far from those trained; None when it is not."""
    largest, smallest = (math.exp(float(test.data.log_sizes[place])) for place in (-1, 0))
    if size < smallest * (1 - 1e-9):
        return f"smaller than the sizes trained ({smallest:.3g} and more)"
    allowed = REACH * test.largest_ratio
    beyond = size / largest
    if beyond <= allowed * (1 + 1e-9):
        return None
    tested = f"back-tests reach {test.largest_ratio:.3g} times, and a forecast at most {REACH:g} times that"
    return f"{beyond:.3g} times the largest size trained; {tested}"


def too_wide(low: float, high: float) -> str | None:
    """Why an interval of ln q says too little; None when it does not."""
    decades = (high - low) / math.log(10)
    return None if decades <= WIDEST_DECADES else f"its 90 % interval spans {decades:.1f} orders of magnitude"


def predictions(test: BackTest, threshold: Threshold | None, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Every size at every LR of the grid: q with its interval, and P(unstable) or P(beyond the threshold)."""
    rates = test.data.log_rates
    problem = obstacle(test)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        reason = problem or out_of_reach(test, size)
        log_size = np.full(len(rates), math.log(size))
        forecast = None if reason else test.averaged.predict(log_size, rates)
        if forecast is None:
            reason = reason or "no model could be fitted"
            rows += [_row(size, rate, reason) for rate in rates]
            continue
        middle, (low, high) = forecast.quantile(0.5), forecast.interval(INTERVAL_LEVEL)
        beyond = None if threshold is None else threshold.probability(forecast, log_size)
        for i, rate in enumerate(rates):
            wide = too_wide(low[i], high[i])
            row = _row(size, rate, wide)
            if not wide:
                row |= {"value": math.exp(middle[i]), "interval": [math.exp(low[i]), math.exp(high[i])]}
            # Which side of a threshold q lies on may be clear however wide its interval is.
            rows.append(row | {"probability": None if beyond is None else float(beyond[i])})
    return rows


def _row(size: float, log_rate: float, reason: str | None) -> dict[str, Any]:
    return {
        "n_params": round(size),
        "learning_rate": _rate(log_rate),
        "value": None,
        "interval": None,
        "probability": None,
        "reason": reason,
    }


def _rate(log_rate: float) -> float:
    """A learning rate without the rounding of its logarithm."""
    return float(f"{math.exp(log_rate):.12g}")


def highest_stable(test: BackTest, threshold: Threshold, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """For each size the LR at which P(unstable) passes 1/2, its 90 % interval, and the LR that is safe.

    Between the learning rates of the grid the probit of P is linear in ln LR. An LR above an unstable one counts as at
    least as unstable. An end of the interval that lies outside the grid is null.
    """
    rates = test.data.log_rates
    problem = obstacle(test)
    rows = []
    for size in sizes:
        row: dict[str, Any] = {
            "n_params": round(size), "value": None, "interval": None, "safe": None, "safe_probability": SAFE,
            "reason": problem or out_of_reach(test, size),
        }  # fmt: skip
        if not row["reason"]:
            p = probabilities(test.averaged, threshold, np.array([math.log(size)]), rates)[0]
            value, *ends = (crossing(rates, p, level) for level in (0.5, *_tails()))
            safe = crossing(rates, p, 1 - SAFE)
            grid = f"{_rate(rates[0]):g} to {_rate(rates[-1]):g}"
            if value is None:
                side = "below" if p.max() >= 0.5 else "above"
                row["reason"] = f"it lies {side} the learning rates trained, {grid}"
            row |= {"value": _exp(value), "interval": [_exp(end) for end in ends], "safe": _exp(safe)}
            if p.max() < 1 - SAFE:
                row["safe"] = _rate(rates[-1])
        rows.append(row)
    return rows


def unstable_from(test: BackTest, threshold: Threshold) -> list[dict[str, Any]]:
    """For each LR the N at which P(unstable) first passes 1/2, and where it passes 5 and 95 %, as far as in reach."""
    rates, sizes = test.data.log_rates, test.data.log_sizes
    problem = obstacle(test)
    furthest = sizes[-1] + math.log(REACH * test.largest_ratio)
    grid = np.linspace(sizes[0], furthest, _GRID)
    table = None if problem else probabilities(test.averaged, threshold, grid, rates)
    rows = []
    for i, rate in enumerate(rates):
        row: dict[str, Any] = {"learning_rate": _rate(rate), "n_params": None, "interval": None, "reason": problem}
        if table is not None:
            p = table[:, i]
            value, *ends = (crossing(grid, p, level) for level in (0.5, *_tails()))
            row |= {"n_params": _exp(value), "interval": [_exp(end) for end in ends]}
            if value is None and p[0] >= 0.5:
                row["reason"] = f"at {math.exp(sizes[0]):.3g} parameters, the smallest size trained, it is already"
            elif value is None:
                row["reason"] = f"not before {math.exp(furthest):.3g} parameters, which is as far as a forecast goes"
        rows.append(row)
    return rows


def probabilities(
    model: Model, threshold: Threshold, log_sizes: Float[np.ndarray, " S"], log_rates: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "S K"]:
    """P(unstable), or P(beyond the threshold), of one further run at every size and learning rate."""
    size, rate = (axis.ravel() for axis in np.meshgrid(log_sizes, log_rates, indexing="ij"))
    forecast = model.predict(size, rate)
    if forecast is None:
        return np.full((len(log_sizes), len(log_rates)), np.nan)
    return threshold.probability(forecast, size).reshape(len(log_sizes), len(log_rates))


def crossing(places: Float[np.ndarray, " P"], p: Float[np.ndarray, " P"], level: float) -> float | None:
    """Where a probability first passes a level, its probit being linear between places; None where it does not.

    Args:
        places: ascending.
        p: at each of them; only its running maximum counts.
        level: between 0 and 1.
    """
    rising = np.maximum.accumulate(p)
    if rising[0] > level or rising[-1] < level:
        return None
    z = ndtri(rising.clip(_SURE, 1 - _SURE))
    after = int(np.argmax(rising >= level))
    if after == 0:
        return float(places[0])
    share = (ndtri(level) - z[after - 1]) / (z[after] - z[after - 1])
    return float(places[after - 1] + share * (places[after] - places[after - 1]))


def _tails() -> tuple[float, float]:
    return (1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2


def _exp(log: float | None) -> float | None:
    return None if log is None else math.exp(log)
