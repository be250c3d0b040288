"""All figures of an analysis, in the order in which a reader wants them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from stability.analysis.figures import by_learning_rate, by_n_params, forecast, over_steps
from stability.analysis.figures.style import Chart
from stability.analysis.source import COLUMNS, RUN_INDEX, Source

HISTORY_METRICS = ("attention_logit/max", "output_logit/log_z_mean")
HISTORY_ROWS = 40_000
"""Rows of all runs together that the curves over steps may have, ..."""
HISTORY_ROWS_OF_A_RUN = (12, 200)
"""... and what each run gets of them: at least, at most."""

QUANTITY = "quantity_"
FORECAST = "forecast_"
QUANTITIES_DRAWN = 12
"""A table may have a hundred numeric columns, each a quantity: so many are drawn, those that a sweep declares first."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: of its files.
        chart: None where there is nothing to draw.
    """

    name: str
    chart: Chart | None


def all_figures(found: Source, sensitivities: pl.DataFrame, summary: Mapping[str, Any]) -> list[Figure]:
    """Every figure, drawn or not.

    Args:
        found: the runs.
        sensitivities: of `stability.sensitivity`.
        summary: what summary.json holds.
    """
    return [Figure(name, chart) for name, chart in _charts(found, sensitivities, summary)]


def _charts(
    found: Source, sensitivities: pl.DataFrame, summary: Mapping[str, Any]
) -> Iterator[tuple[str, Chart | None]]:
    table, history = found.table, _history(found)
    yield "loss_by_learning_rate", by_learning_rate.loss_by_learning_rate(table)
    yield "sensitivity_by_n_params", by_n_params.sensitivity_by_n_params(sensitivities)
    edges = (summary[key] for key in ("max_stable_learning_rate", "stable_edge_fit", "forecasts"))
    yield "stable_edge_by_n_params", by_n_params.stable_edge_by_n_params(*edges)
    yield "attention_logit_max_by_learning_rate", by_learning_rate.attention_logit_max_by_learning_rate(table)
    yield "attention_logit_max_over_steps", over_steps.attention_logit_max_over_steps(table, history)
    yield "log_z_by_learning_rate", by_learning_rate.log_z_by_learning_rate(_with_log_z(table, history))
    yield "log_z_over_steps", over_steps.log_z_over_steps(table, history)
    for name, one in zip(forecast_names(summary["quantity_forecasts"]), summary["quantity_forecasts"], strict=True):
        yield name, forecast.forecast_by_n_params(table, one)
    for name, file in file_names(table.columns[len(COLUMNS) :][:QUANTITIES_DRAWN]).items():
        yield file, by_learning_rate.quantity_by_learning_rate(table, name)


def forecast_names(forecasts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for the files of each forecast's figure.

    Args:
        forecasts: entries of `quantity_forecasts`.
    """
    arms = {one["arm"] for one in forecasts}
    return list(
        file_names(
            [" ".join([one["name"], *([one["arm"]] if len(arms) > 1 else [])]) for one in forecasts], FORECAST
        ).values()
    )


def file_names(quantities: Sequence[str], prefix: str = QUANTITY) -> dict[str, str]:
    """Quantity -> a name for its figure's files, which no character of its own can lead elsewhere."""
    names: dict[str, str] = {}
    for name in quantities:
        plain = prefix + re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
        same = sum(other == plain or other.startswith(f"{plain}.") for other in names.values())
        names[name] = f"{plain}.{same + 1}" if same else plain
    return names


def _history(found: Source) -> pl.DataFrame:
    low, high = HISTORY_ROWS_OF_A_RUN
    return found.history(HISTORY_METRICS, min(high, max(low, HISTORY_ROWS // max(found.table.height, 1))))


def _with_log_z(table: pl.DataFrame, history: pl.DataFrame) -> pl.DataFrame:
    """The runs, each with its last observed mean log Z."""
    last = history.group_by(RUN_INDEX).agg(pl.col("output_logit/log_z_mean").drop_nulls().last().alias("log_z"))
    rows = table.drop("log_z", strict=False).with_row_index(RUN_INDEX).cast({RUN_INDEX: pl.Int64})
    return rows.join(last, on=RUN_INDEX, how="left").drop(RUN_INDEX)
