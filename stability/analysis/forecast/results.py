"""Forecasts of observed quantities, put together: back-test first, then what it allows to be said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from stability.analysis.cells import outcomes
from stability.analysis.forecast import answers
from stability.analysis.forecast.backtest import AVERAGED, BackTest
from stability.analysis.forecast.data import Direction, Observations, observations
from stability.analysis.forecast.joint import JointModel
from stability.analysis.forecast.next_run import next_runs
from stability.analysis.forecast.settings import QuantityForecast, parse_forecasts
from stability.analysis.forecast.threshold import Threshold, estimated, given, verdict_scores
from stability.analysis.stable_edge import UNSTABLE_EXCESS
from stability.errors import InputError

_INTERVAL = pl.List(pl.Float64)
_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "back_test": {
        "model": pl.String,
        "held_out": pl.Int64,
        "n_sizes": pl.Int64,
        "n_runs": pl.Int64,
        "log_score": pl.Float64,
        "interval_score": pl.Float64,
        "coverage": pl.Float64,
        "error": pl.Float64,
        "gain": pl.Float64,
    },
    "verdicts": {"rival": pl.String, "log_score": pl.Float64, "brier": pl.Float64, "n": pl.Int64},
    "predictions": {
        "n_params": pl.Int64,
        "learning_rate": pl.Float64,
        "value": pl.Float64,
        "interval": _INTERVAL,
        "probability": pl.Float64,
        "reason": pl.String,
    },
    "highest_stable": {
        "n_params": pl.Int64,
        "value": pl.Float64,
        "interval": _INTERVAL,
        "safe": pl.Float64,
        "safe_probability": pl.Float64,
        "reason": pl.String,
    },
    "unstable_from": {
        "learning_rate": pl.Float64,
        "n_params": pl.Float64,
        "interval": _INTERVAL,
        "reason": pl.String,
    },
    "next_runs": {
        "n_params": pl.Int64,
        "learning_rate": pl.Float64,
        "gain": pl.Float64,
        "cost": pl.Float64,
        "gain_per_cost": pl.Float64,
        "best_by": pl.String,
    },
    "held_out": {
        "n_params": pl.Int64,
        "learning_rate": pl.Float64,
        "n_sizes_fitted": pl.Int64,
        "observed": pl.Float64,
        "value": pl.Float64,
        "interval": _INTERVAL,
    },
    "band": {
        "n_params": pl.Float64,
        "learning_rate": pl.Float64,
        "value": pl.Float64,
        "interval": _INTERVAL,
    },
}


@dataclass(frozen=True, eq=False)
class Forecast:
    """The forecast of one quantity of one arm. Tables are polars; docs/records.md defines their columns.

    Attributes:
        name: of the forecast, as a sweep file calls it.
        quantity, arm, direction: what is forecast, of whom, and where the danger lies.
        threshold: beyond which runs fail; None where it could not be estimated.
        threshold_interval: 90 %, of an estimated one; at the geometric mean of the sizes.
        threshold_estimated: from the runs' verdicts.
        n_scales, n_seeds: distinct N, and runs of the cell that has most.
        n_left_out: runs without a positive value.
        n_censored: diverged runs without a value, known to be beyond what could be seen.
        reason: why there is no forecast; None where there is one.
        weights: of the models in the mixture that forecasts rest on.
        widening: the factor by which back-tests say that its intervals are too narrow, 1 or more.
        back_test: every model's scores, over all held-out sizes (`held_out` null) and by how many were held out.
        verdicts: the same of P(unstable): the estimated threshold, the given one, and persistence.
        predictions, highest_stable, unstable_from: the answers.
        next_runs: which run would shrink the interval most.
        held_out: the mixture's forecasts of the sizes held out, cell by cell.
        band: its median and 90 % interval over N for each LR, for drawing.
    """

    name: str
    quantity: str
    arm: str
    direction: Direction
    threshold: float | None
    threshold_interval: tuple[float, float] | None
    threshold_estimated: bool
    n_scales: int
    n_seeds: int
    n_left_out: int
    n_censored: int
    reason: str | None
    weights: Mapping[str, float]
    widening: float | None
    back_test: pl.DataFrame
    verdicts: pl.DataFrame
    predictions: pl.DataFrame
    highest_stable: pl.DataFrame
    unstable_from: pl.DataFrame
    next_runs: pl.DataFrame
    held_out: pl.DataFrame
    band: pl.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As summary.json holds it."""
        return {
            key: value.to_dicts() if isinstance(value, pl.DataFrame) else _plain(value)
            for key, value in self.__dict__.items()
        }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def forecast(
    table: pl.DataFrame,
    *,
    quantity: str,
    threshold: float | Literal["estimated"] = "estimated",
    n_params: Sequence[float] = (),
    factors: Sequence[float] = (),
    direction: Direction = "above",
    arm: str | None = None,
    unstable_excess: float = UNSTABLE_EXCESS,
) -> Forecast:
    """Forecast a quantity over N and LR, after a back-test, and answer where it makes runs fail.

    Args:
        table: one row a run, as for `max_stable_learning_rate`, with the quantity as a column.
        quantity: its name.
        threshold: beyond which runs fail: a value of the quantity, or `estimated` from the runs' verdicts.
        n_params: sizes to forecast at, parameters without embedding and head.
        factors: further sizes, as multiples of the arm's largest.
        direction: on which side of the threshold the danger lies, `above` or `below`.
        arm: the arm's label; None where there is only one.
        unstable_excess: nats per token from which a run counts as unstable.

    Returns:
        A `Forecast`. Where the runs do not support one, its `reason` says why, and there are no numbers.

    Raises:
        InputError: the table or an argument is bad, or there are several arms and none is named.
    """
    outcomes(table)  # refuses what is no table of runs
    arms = sorted(table["arm"].unique().to_list())
    if arm is None and len(arms) > 1:
        raise InputError("arm", "", f"is missing, and the table has {', '.join(arms)}", "Name one of them.")
    chosen = arms[0] if arm is None and arms else arm
    if chosen not in arms:
        raise InputError("arm", chosen, "has no runs", f"Choose one of: {', '.join(arms)}.")
    settings: dict[str, Any] = {"quantity": quantity, "threshold": threshold, "direction": direction}
    settings |= {"n_params": tuple(n_params), "factors": tuple(factors)}
    parsed = parse_forecasts({quantity: settings})[quantity]
    return _of_arms(quantity, parsed, table.filter(pl.col("arm") == chosen), (), unstable_excess)[0]


def quantity_forecasts(
    table: pl.DataFrame,
    forecasts: Mapping[str, QuantityForecast],
    n_params: Sequence[float] = (),
    unstable_excess: float = UNSTABLE_EXCESS,
) -> list[Forecast]:
    """Every forecast declared, of every arm.

    Args:
        table: as for `forecast`.
        forecasts: by name.
        n_params: sizes for all of them, beside their own.
        unstable_excess: see `forecast`.

    Raises:
        InputError: the table is bad, or an arm or a quantity that a forecast names does not exist.
    """
    found = []
    for name, settings in forecasts.items():
        arms = set(table["arm"].unique().to_list())
        for arm in settings.arms:
            if arm not in arms:
                fix = f"Choose from: {', '.join(sorted(arms))}."
                raise InputError(f"forecasts.{name}.arms", arm, "has no runs", fix)
        runs = table.filter(pl.col("arm").is_in(list(settings.arms))) if settings.arms else table
        try:
            found += _of_arms(name, settings, runs, n_params, unstable_excess)
        except InputError as error:
            if error.key != "quantity":
                raise
            raise InputError(f"forecasts.{name}.quantity", error.value, error.problem, error.fix) from None
    return found


def _of_arms(
    name: str, settings: QuantityForecast, table: pl.DataFrame, n_params: Sequence[float], unstable_excess: float
) -> list[Forecast]:
    of_arm = observations(table, settings.quantity, settings.direction, settings.nominal, unstable_excess)
    arms = sorted(table["arm"].unique().to_list())
    return [
        _forecast(name, settings, arm, of_arm[arm], n_params) if arm in of_arm else _empty(name, settings, arm)
        for arm in arms
    ]


def _empty(name: str, settings: QuantityForecast, arm: str) -> Forecast:
    return Forecast(
        name=name,
        quantity=settings.quantity,
        arm=arm,
        direction=settings.direction,
        threshold=settings.nominal,
        threshold_interval=None,
        threshold_estimated=settings.threshold == "estimated",
        n_scales=0,
        n_seeds=0,
        n_left_out=0,
        n_censored=0,
        reason=f"no run has a positive value of {settings.quantity}",
        weights={},
        widening=None,
        **{key: pl.DataFrame(schema=schema) for key, schema in _SCHEMAS.items()},
    )


def _forecast(
    name: str, settings: QuantityForecast, arm: str, data: Observations, n_params: Sequence[float]
) -> Forecast:
    empty = _empty(name, settings, arm)
    largest = math.exp(float(data.log_sizes[-1]))
    sizes = sorted({round(size) for size in (*settings.n_params, *n_params, *(largest * f for f in settings.factors))})
    counted = {
        "n_scales": len(data.log_sizes),
        "n_seeds": int(data.cells.count.max()),
        "n_left_out": data.left_out,
        "n_censored": int(data.censored.sum()),
    }
    if len(data.log_sizes) < answers.FEWEST_SIZES:
        sizes_text = f"{len(data.log_sizes)} size{' has' if len(data.log_sizes) == 1 else 's have'} values"
        reason = f"{sizes_text}, and a forecast needs {answers.FEWEST_SIZES}: 2 to fit and 1 to test it on"
        return _with(empty, **counted, reason=reason)
    test = BackTest(data)
    threshold = given(settings.nominal, data.sign) if settings.nominal else estimated(data)
    rows: dict[str, list[dict[str, Any]]] = {
        "back_test": [asdict(score) for score in test.scores],
        "verdicts": verdict_scores(data, test.at_prefix, test.prefixes[:-1], settings.nominal),
        "predictions": answers.predictions(test, threshold, sizes),
        "held_out": _held_out(test),
        "band": _band(test, sizes),
    }
    if threshold is not None:
        rows["highest_stable"] = answers.highest_stable(test, threshold, sizes)
        rows["unstable_from"] = answers.unstable_from(test, threshold)
        rows["next_runs"] = _next_runs(test, rows["highest_stable"], rows["predictions"])
    interval = threshold.interval() if threshold else None
    return _with(
        empty,
        **counted,
        reason=answers.obstacle(test),
        threshold=settings.nominal or (threshold.value if threshold else None),
        threshold_interval=interval,
        weights=dict(test.averaged.weights),
        widening=test.averaged.widening,
        **{key: pl.DataFrame(content, schema=_SCHEMAS[key]) for key, content in rows.items()},
    )


def _with(forecast: Forecast, **changes: Any) -> Forecast:
    return Forecast(**{**forecast.__dict__, **changes})


def _next_runs(
    test: BackTest, highest: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For the largest size forecast that is in reach, at the LR that it turns on; none without a forecast."""
    largest = math.exp(float(test.data.log_sizes[-1]))
    wanted = [row for row in highest if row["n_params"] > largest * (1 + 1e-9)]
    model = test.model("pooled")
    for row in reversed(wanted):
        open_ = [one for one in predicted if one["n_params"] == row["n_params"] and one["probability"] is not None]
        if not open_ or not isinstance(model, JointModel):
            continue
        nearest = min(open_, key=lambda one: abs(one["probability"] - 0.5))
        rate = row["value"] or nearest["learning_rate"]
        return next_runs(model, row["n_params"], math.log(rate))
    return []


def _held_out(test: BackTest) -> list[dict[str, Any]]:
    """The mixture's forecasts of held-out sizes, each with the geometric mean of what was observed."""
    rows = []
    for one in test.held_out:
        if one.model != AVERAGED:
            continue
        for rate in np.unique(one.log_rate):
            at = np.flatnonzero(one.log_rate == rate)
            first = at[0]
            rows.append(
                {
                    "n_params": round(math.exp(one.log_size)),
                    "learning_rate": float(f"{math.exp(rate):.12g}"),
                    "n_sizes_fitted": one.fitted,
                    "observed": math.exp(float(one.value[at].mean())),
                    "value": _exp(one.middle[first]),
                    "interval": [_exp(one.low[first]), _exp(one.high[first])],
                }
            )
    return rows


_BAND_POINTS = 25


def _band(test: BackTest, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """The mixture over the sizes trained and, as far as is in reach, forecast; nothing where that is not allowed."""
    if answers.obstacle(test):
        return []
    reachable = [math.log(size) for size in sizes if not answers.out_of_reach(test, size)]
    low, high = float(test.data.log_sizes[0]), max(float(test.data.log_sizes[-1]), *reachable, -math.inf)
    grid, rates = np.linspace(low, high, _BAND_POINTS), test.data.log_rates
    size, rate = (axis.ravel() for axis in np.meshgrid(grid, rates, indexing="ij"))
    found = test.averaged.predict(size, rate)
    if found is None:
        return []
    middle, (bottom, top) = found.quantile(0.5), found.interval(0.9)
    return [
        {
            "n_params": math.exp(size[i]),
            "learning_rate": float(f"{math.exp(rate[i]):.12g}"),
            "value": _exp(middle[i]),
            "interval": [_exp(bottom[i]), _exp(top[i])],
        }
        for i in range(len(size))
    ]


def _exp(log: float) -> float:
    """As a float that JSON can hold: an interval of two sizes may pass all numbers."""
    return math.exp(min(max(float(log), -690.0), 690.0))


__all__ = ["Forecast", "Threshold", "forecast", "quantity_forecasts"]
