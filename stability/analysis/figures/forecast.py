"""A forecast of a quantity over model size: the runs, the forecast, and what was forecast of sizes held out."""

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from stability.analysis.figures.style import (
    INK,
    PANEL,
    POWER_LABEL,
    QUIET,
    Chart,
    finished,
    n_params_x,
    ticks,
)

_COLUMNS = 3
_HELD_OUT = "#d55e00"
_WIDEST = 1e8
"""A band wider than this factor would flatten all else; it is cut off."""


def forecast_by_n_params(table: pl.DataFrame, forecast: Mapping[str, Any]) -> Chart | None:
    """A quantity against model size, a panel for each learning rate.

    Points are runs; the line and the band are the forecast's median and 90 % interval; hollow diamonds with bars are
    what the largest size was forecast to be when it was held out; the dashed rule is the threshold.

    Args:
        table: one row a run, with the quantity as a column.
        forecast: an entry of `quantity_forecasts`.
    """
    quantity = forecast["quantity"]
    if quantity not in table.columns or not forecast["band"]:
        return None
    value = pl.col(quantity).cast(pl.Float64)
    runs = table.filter((pl.col("arm") == forecast["arm"]) & (value > 0) & value.is_finite())
    known = {float(f"{row['learning_rate']:.12g}") for row in forecast["band"]}
    limits = [float(x) for x in runs[quantity]]
    low, high = min(limits), max(limits)
    rows = [
        *(
            {**_place(forecast, run), "kind": "run", "middle": run[quantity], "low": None, "high": None}
            for run in runs.select("scale", "n_params", "learning_rate", "seed", quantity).iter_rows(named=True)
            if float(f"{run['learning_rate']:.12g}") in known
        ),
        *(_cut(forecast, row, "band", low, high) for row in forecast["band"]),
        *(_cut(forecast, row, "held_out", low, high) for row in _last_test(forecast)),
    ]
    drawn = pl.DataFrame(rows, infer_schema_length=None)
    ends = pl.concat([drawn["middle"], drawn["low"], drawn["high"]]).drop_nulls().to_list()
    threshold = forecast["threshold"]
    bottom, top = min([*ends, *([threshold] if threshold else [])]), max([*ends, *([threshold] if threshold else [])])
    y = (
        alt.Y("middle:Q")
        .title(quantity.replace("_", " "))
        .scale(type="log", domain=[bottom / 1.3, top * 1.3], nice=False, clamp=True)
        .axis(values=_powers(bottom, top), labelExpr=POWER_LABEL, labelOverlap=True)
    )
    base = alt.Chart(drawn).encode(x=n_params_x(drawn["n_params"]), y=y)

    def of(kind: str) -> Any:
        return base.transform_filter(alt.datum.kind == kind)

    told = [
        alt.Tooltip("scale:N", title="scale"),
        alt.Tooltip("learning_rate:Q", title="learning rate", format="~g"),
        alt.Tooltip("middle:Q", title=quantity.replace("_", " "), format=".4~g"),
    ]
    layers = [
        of("band").mark_area(opacity=0.22, color="#0072b2").encode(y=alt.Y("low:Q"), y2="high:Q"),
        of("band").mark_line(color="#0072b2", strokeWidth=2),
        of("held_out").mark_rule(color=_HELD_OUT, strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        of("held_out").mark_point(shape="diamond", color=_HELD_OUT, size=90, opacity=1),
        of("run").mark_point(filled=True, color=INK, size=40, opacity=0.8).encode(tooltip=told),
    ]
    if threshold:
        # Without the x of the others, so that it goes across the whole panel.
        once = alt.Chart(drawn).transform_aggregate(count="count()", groupby=["learning_rate", "arm"])
        layers.append(once.mark_rule(color=QUIET, strokeDash=[5, 4]).encode(y=alt.datum(threshold)))
    header = alt.Header(title=None, labelExpr="'LR ' + format(datum.value, '~g')", labelFontSize=13)
    panel = alt.layer(*layers).properties(width=PANEL["width"] * 0.75, height=PANEL["height"] * 0.7)
    faceted = panel.facet(facet=alt.Facet("learning_rate:Q").header(header), columns=_COLUMNS)
    drifting = ", as estimated for the middle of the sizes" if forecast["threshold_estimated"] else ""
    title = alt.Title(
        f"Forecast of {quantity.replace('_', ' ')} over model size",
        subtitle=[
            "points: runs; band: 90 % interval of a further run; diamonds: the largest size when it was held out",
            *([f"dashed: threshold {threshold:.3g}{drifting}"] if threshold else []),
        ],
    )
    return finished(faceted.resolve_axis(x="independent"), title)


def _powers(low: float, high: float) -> list[float]:
    found = ticks(low / 1.3, high * 1.3, multiples=(1,))
    return found[:: max(1, math.ceil(len(found) / 6))]


def _last_test(forecast: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The largest size from all others."""
    most = max((row["n_sizes_fitted"] for row in forecast["held_out"]), default=0)
    return [row for row in forecast["held_out"] if row["n_sizes_fitted"] == most]


def _place(forecast: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": forecast["arm"],
        "scale": row.get("scale"),
        "n_params": float(row["n_params"]),
        "learning_rate": float(f"{row['learning_rate']:.12g}"),
    }


def _cut(forecast: Mapping[str, Any], row: Mapping[str, Any], kind: str, low: float, high: float) -> dict[str, Any]:
    """A row of the forecast, its ends no further from the runs than can be drawn."""
    bottom, top = low / math.sqrt(_WIDEST), high * math.sqrt(_WIDEST)
    ends = [min(max(end, bottom), top) for end in row["interval"]]
    middle = min(max(row["value"], bottom), top)
    return {**_place(forecast, row), "kind": kind, "middle": middle, "low": ends[0], "high": ends[1]}
