"""What all figures share: colours, axes, labels, and what a page may hide.

Colour runs from light (small models, low learning rates) to dark, so that a trend is seen before a legend is read.
"""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from stability.analysis.source import size_name

Chart = alt.TopLevelMixin

PANEL = {"width": 320, "height": 260}
COLUMNS = 3
INK, QUIET, GRID = "#222222", "#5f6368", "#e8eaed"
FONT = "DejaVu Sans, Verdana, sans-serif"
SCALE_COLOURS = alt.SchemeParams(name="viridis", extent=[0.88, 0.05])
ARM_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
"""Told apart by the colour-blind: Okabe and Ito (2008), without its yellow."""
POWER_LABEL = "replace(format(datum.value, '~e'), 'e+', 'e')"
SIZE_LABEL = "replace(format(datum.value, '.3~s'), 'G', 'B')"
CROSS = "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"

HIDDEN_ARMS, HIDDEN_SCALES = "hidden_arms", "hidden_scales"
"""Parameters of every chart: the arms and scales not to draw. A page sets them; in a file nothing is hidden."""

POINTED_AT = "pointed_at"
"""The name of layers that show nothing: what the pointer finds, larger than the dot or line beneath it."""


def pointed_at(base: alt.Chart, size: int) -> alt.Chart:
    """Such a layer."""
    layer: alt.Chart = base.mark_point(filled=True, size=size, opacity=0).properties(name=POINTED_AT)
    return layer


def run_tooltip(value: str, title: str) -> list[alt.Tooltip]:
    """What the pointer is told of a run, and one value of it."""
    return [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("learning_rate:Q", title="learning rate", format="~g"),
        alt.Tooltip("seed:N", title="seed"),
        alt.Tooltip("status:N", title="status"),
        alt.Tooltip(f"{value}:Q", title=title, format=".4~g"),
    ]


def ruled(base: alt.Chart, value: float) -> alt.Chart:
    """A layer with one dashed line across each arm's panel."""
    once = base.transform_aggregate(count="count()", groupby=["arm"])
    layer: alt.Chart = once.mark_rule(color=QUIET, strokeDash=[5, 4]).encode(y=alt.datum(value))
    return layer


def model_label() -> pl.Expr:
    """The column `model`: a scale's name with its number of parameters, unless that is its name already."""
    return pl.struct("scale", "n_params").map_elements(_model_label, return_dtype=pl.String).alias("model")


def _model_label(row: dict[str, Any]) -> str:
    size = size_name(row["n_params"])
    return size if row["scale"] == size else f"{row['scale']} ({size})"


def span(values: pl.Series, margin: float) -> tuple[float, float]:
    """The range of positive values with a margin, a factor, on both sides."""
    numbers = values.to_list()
    return min(numbers) / margin, max(numbers) * margin


def decades(values: pl.Series, include: float | None = None) -> tuple[float, float]:
    """The powers of ten between which the values lie, and `include`."""
    numbers = [*values.to_list(), *([] if include is None else [include])]
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def ticks(low: float, high: float, multiples: Sequence[int]) -> list[float]:
    """Round numbers between low and high: these multiples of powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for n in multiples if low <= (tick := float(f"{n}e{power}")) <= high]


def padded(values: pl.Series) -> list[float]:
    """The range of values with room on both sides, so that no mark sticks out of its panel."""
    known = values.drop_nulls().to_list()
    low, high = min(known), max(known)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def learning_rate_x(values: pl.Series) -> alt.X:
    """The logarithmic axis of learning rates, with ticks at 1 and 3 times powers of ten."""
    return (
        alt.X("learning_rate:Q")
        .title("Learning rate")
        .scale(type="log", domain=list(span(values, 1.3)), nice=False)
        .axis(values=learning_rate_ticks(values), labelExpr=POWER_LABEL, labelOverlap=True)
    )


def learning_rate_ticks(values: pl.Series) -> list[float]:
    """Round numbers over the range of some learning rates; the learning rates themselves where there is hardly one."""
    low, high = span(values, 1.3)
    found = ticks(low, high, multiples=(1, 3) if high / low < 3e4 else (1,))
    return found if len(found) > 1 else values.unique().sort().to_list()


def n_params_x(sizes: pl.Series) -> alt.X:
    """The logarithmic axis of model sizes: the sizes themselves while there is room for their labels."""
    low, high = span(sizes, 1.4)
    distinct: list[float] = sizes.unique().sort().to_list()
    shown = distinct if len(distinct) <= 8 else ticks(low, high, multiples=(1, 3))
    return (
        alt.X("n_params:Q")
        .title("Parameters without embedding and head")
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=shown, labelExpr=SIZE_LABEL, labelOverlap=True)
    )


def logarithmic_y(field: str, title: str, low: float, high: float) -> alt.Y:
    """A logarithmic axis with ticks at powers of ten."""
    return (
        alt.Y(f"{field}:Q")
        .title(title)
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=ticks(low, high, multiples=(1,)), labelExpr=POWER_LABEL, labelOverlap=True)
    )


def arm_colour(arms: Sequence[str]) -> alt.Color:
    """A colour an arm; the legend is left out where there is one."""
    legend = alt.Legend(title=None, orient="top", direction="vertical", labelLimit=0, symbolType="circle")
    scheme: dict[str, Any] = (
        {"range": ARM_COLOURS[: len(arms)]} if len(arms) <= len(ARM_COLOURS) else {"scheme": "tableau20"}
    )
    return alt.Color("arm:N").scale(domain=list(arms), **scheme).legend(legend if len(arms) > 1 else None)


def arm_panels(panel: Any, arms: int) -> Any:
    """A panel for each arm, named by its settings; one arm needs no name."""
    if arms == 1:
        return panel
    header = alt.Header(
        title=None, labelExpr="split(datum.label, ', ')", labelFontSize=13, labelLimit=PANEL["width"], labelPadding=6
    )
    faceted = panel.facet(facet=alt.Facet("arm:N").header(header), columns=min(arms, COLUMNS))
    # Shared axes would hang below the last row, also where it has no panel.
    return faceted.resolve_axis(x="independent")


def finished(chart: Any, title: alt.Title) -> Chart:
    """A chart of rows that have `arm` and `scale`, ready to show: titled, styled, and able to hide arms and scales."""
    hiding = [alt.param(name=name, value=[]) for name in (HIDDEN_ARMS, HIDDEN_SCALES)]
    shown = f"indexof({HIDDEN_ARMS}, datum.arm) < 0 && indexof({HIDDEN_SCALES}, datum.scale) < 0"
    return _styled(chart.properties(title=title).add_params(*hiding).transform_filter(shown))


def _styled(chart: Any) -> Chart:
    """One look for all: quiet axes, a light grid, type large enough for a column of a paper."""
    styled: Chart = (
        chart.configure(font=FONT, background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            titlePadding=10,
            labelColor=INK,
            titleColor=INK,
            gridColor=GRID,
            domainColor=QUIET,
            tickColor=QUIET,
        )
        .configure_legend(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titleColor=INK,
            labelColor=INK,
            symbolSize=110,
            rowPadding=4,
        )
        .configure_title(fontSize=16, subtitleFontSize=12, subtitleColor=QUIET, color=INK, anchor="start", offset=12)
    )
    return styled
