"""What depends on model size: sensitivity, and the highest stable learning rate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from stability.analysis.figures.style import (
    Chart,
    arm_colour,
    finished,
    learning_rate_ticks,
    logarithmic_y,
    n_params_x,
    span,
)

_SIZE = {"width": 440, "height": 300}
_LINE_POINTS = 40
_ARM_SHIFT = 1.06


def sensitivity_by_n_params(sensitivity: pl.DataFrame) -> Chart | None:
    """LR sensitivity (the paper's estimator, `mean`) against model size, a line an arm, its 90 % intervals as bars.

    Args:
        sensitivity: as `stability.sensitivity` returns it.
    """
    rows = sensitivity.filter((pl.col("estimator") == "mean") & pl.col("value").is_not_null())
    if rows.is_empty():
        return None
    told = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("scale:N", title="scale"),
        alt.Tooltip("value:Q", title="sensitivity", format=".3f"),
        alt.Tooltip("interval_low:Q", title="from", format=".3f"),
        alt.Tooltip("interval_high:Q", title="to", format=".3f"),
        alt.Tooltip("n_seeds:Q", title="seeds"),
    ]
    base = alt.Chart(
        rows.select("arm", "scale", "n_params", "value", "interval_low", "interval_high", "n_seeds")
    ).encode(
        x=n_params_x(rows["n_params"]),
        y=alt.Y("value:Q")
        .title("Learning-rate sensitivity (nats per token)")
        .scale(domain=_from_zero(rows), nice=True),
        color=arm_colour(rows["arm"].unique().sort().to_list()),
    )
    bars = base.transform_filter(alt.datum.interval_low != None)  # noqa: E711 (an expression of Vega)
    layers = [
        base.mark_line(strokeWidth=2.5),
        base.mark_point(filled=True, size=70, opacity=1).encode(tooltip=told),
        bars.mark_rule(strokeWidth=1.5).encode(y=alt.Y("interval_low:Q"), y2="interval_high:Q"),
    ]
    known = rows.filter(pl.col("interval_low").is_not_null())
    notes = ["estimator: mean over the grid", *_bars_note(known["basis"])]
    title = alt.Title("Learning-rate sensitivity by model size", subtitle="; ".join(notes))
    return finished(alt.layer(*layers).properties(**_SIZE), title)


def _from_zero(rows: pl.DataFrame) -> list[float]:
    """From 0, or from the lowest interval below it, to the highest."""
    ends = pl.concat([rows["value"], rows["interval_low"], rows["interval_high"]]).drop_nulls().to_list()
    return [min(0.0, *ends), max(0.01, *ends)]


def _bars_note(bases: pl.Series) -> list[str]:
    """What the bars rest on, in words; nothing where there are none."""
    words = {"seeds": "bars: 90 % over seeds", "noise_floor": "bars: 90 % by the declared noise of one run"}
    return [words[basis] for basis in ("seeds", "noise_floor") if (bases == basis).any()]


def stable_edge_by_n_params(
    edges: Sequence[Mapping[str, Any]], fits: Sequence[Mapping[str, Any]], forecasts: Sequence[Mapping[str, Any]]
) -> Chart | None:
    """The highest stable LR against model size: a bar from it to the next higher LR of the grid, which is unstable.

    An arrow stands where the edge is only known to lie above (or below) the grid. Lines are the fits that were chosen
    (`stability.stable_edge_fit`: ln LR is linear or quadratic in ln N), diamonds with bars the forecasts and their 90 %
    intervals at sizes that were not trained.

    Args:
        edges: rows of `stability.max_stable_learning_rate`.
        fits: rows of `stability.stable_edge_fit`.
        forecasts: rows of `stability.forecast_stable_edge`.
    """
    rows = [*_brackets(edges), *_forecasts(forecasts)]
    if not rows:
        return None
    sizes = pl.Series([row["n_params"] for row in rows])
    table = pl.DataFrame([*_side_by_side(rows), *_fitted(fits, sizes.to_list())], infer_schema_length=None)
    limits = pl.concat([table["low"], table["high"]]).drop_nulls()
    y = logarithmic_y("middle", "Highest stable learning rate", *span(limits, 1.3))
    y = y.axis(values=learning_rate_ticks(limits))
    base = alt.Chart(table).encode(x=n_params_x(sizes), y=y, color=arm_colour(table["arm"].unique().sort().to_list()))
    told = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("scale:N", title="scale"),
        alt.Tooltip("words:N", title="edge"),
    ]

    def of(kind: str) -> Any:
        return base.transform_filter(alt.datum.kind == kind)

    layers = [
        of("fit").mark_line(strokeWidth=2, strokeDash=[6, 3]),
        of("bracket").mark_rule(strokeWidth=5, opacity=0.9).encode(y=alt.Y("low:Q"), y2="high:Q", tooltip=told),
        of("above").mark_point(shape="triangle-up", filled=True, size=130, opacity=1).encode(tooltip=told),
        of("below").mark_point(shape="triangle-down", filled=True, size=130, opacity=1).encode(tooltip=told),
        of("forecast").mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        of("forecast").mark_point(shape="diamond", filled=True, size=110, opacity=1).encode(tooltip=told),
    ]
    words = {
        "bracket": "bar: from the highest stable LR of the grid to the next",
        "above": "triangle: the whole grid was stable",
        "below": "triangle down: none was stable",
        "fit": "dashed: fit",
        "forecast": "diamond: forecast, 90 % interval",
    }
    kinds = set(table["kind"])
    notes = [text for kind, text in words.items() if kind in kinds]
    title = alt.Title("Edge of stability by model size", subtitle=["; ".join(notes[:2]), "; ".join(notes[2:])])
    return finished(alt.layer(*layers).properties(**_SIZE), title)


def _brackets(edges: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each edge: between two learning rates, above or below all of them."""
    rows = []
    for edge in edges:
        low, high = edge["lower"], edge["upper"]
        if low is None and high is None:
            continue
        if low is not None and high is not None:
            kind, words = "bracket", f"{low:g} stable, {high:g} not"
        elif high is None:
            kind, words = "above", f"{low:g} or more"
        else:
            kind, words = "below", f"below {high:g}"
        low, high = low if low is not None else high, high if high is not None else low
        rows.append(_row(edge, kind, low, math.sqrt(low * high), high, words))
    return rows


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the arms of one size a little apart, so that none hides another."""
    arms = sorted({row["arm"] for row in rows})
    shift = {arm: _ARM_SHIFT ** (i - (len(arms) - 1) / 2) for i, arm in enumerate(arms)}
    return [{**row, "n_params": row["n_params"] * shift[row["arm"]]} for row in rows]


def _forecasts(forecasts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each forecast of a size that was not trained; back-tests have their place in the tables."""
    return [
        _row(one, "forecast", one["interval"][0], one["value"], one["interval"][1], f"about {one['value']:.3g}")
        for one in forecasts
        if not one["held_out"] and one["value"] is not None and one["interval"] is not None
    ]


def _fitted(fits: Sequence[Mapping[str, Any]], sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Points of the curves that were chosen, over all sizes shown."""
    low, high = math.log(min(sizes)), math.log(max(sizes))
    grid = [math.exp(low + (high - low) * i / (_LINE_POINTS - 1)) for i in range(_LINE_POINTS)]
    rows = []
    for fit in fits:
        if fit["arm"] is None or not fit["chosen"] or fit["slope"] is None:
            continue
        for size in grid:
            x = math.log(size / fit["n_params_reference"])
            edge = fit["learning_rate_reference"] * math.exp(fit["slope"] * x + (fit["curvature"] or 0.0) * x**2)
            rows.append(_row({**fit, "n_params": size}, "fit", edge, edge, edge, ""))
    return rows


def _row(
    found: Mapping[str, Any], kind: str, low: float, middle: float, high: float, words: str
) -> dict[str, str | float | None]:
    return {
        "arm": found["arm"],
        "scale": found.get("scale"),
        "n_params": float(found["n_params"]),
        "kind": kind,
        "low": low,
        "middle": middle,
        "high": high,
        "words": words,
    }
