"""The standard figures, as declarative Altair charts. Each takes a table and returns a chart, or None without data.

Colour runs from light (small models) to dark (large ones), so that a trend over size is seen before a legend is read.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from stability.analysis.cells import outcomes
from stability.analysis.load import size_name

Chart = alt.TopLevelMixin

ATTENTION_LOGIT_MAX_LIMIT = 1e4
"""Every run of arXiv 2309.14322 (Section 3.3) whose max attention logit passed this value diverged."""

_PANEL = {"width": 320, "height": 260}
_COLUMNS = 3
_INK, _QUIET, _GRID = "#222222", "#5f6368", "#e8eaed"
_FONT = "DejaVu Sans, Verdana, sans-serif"
_SCALE_COLOURS = alt.SchemeParams(name="viridis", extent=[0.88, 0.05])
_ARM_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
"""Told apart by the colour-blind: Okabe and Ito (2008), without its yellow."""
_POWER_LABEL = "replace(format(datum.value, '~e'), 'e+', 'e')"
_SIZE_LABEL = "replace(format(datum.value, '.3~s'), 'G', 'B')"
_CROSS = "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"


def loss_by_learning_rate(table: pl.DataFrame) -> Chart | None:
    """Final validation loss L = min(l, l0) against LR: a panel an arm, a line a scale, a cross for each diverged run.

    Lines are means over seeds, bands their range. A diverged run without a known l0 is drawn at the largest loss shown.

    Args:
        table: one row a run, as `load` returns it.
    """
    runs = outcomes(table)
    if runs["loss"].is_null().all():
        return None
    runs = runs.with_columns(pl.col("loss").fill_null(pl.col("loss").max()))
    y = (
        alt.Y("loss:Q")
        .title("Final validation loss (nats per token)")
        .scale(domain=_padded(runs["loss"]), nice=False, zero=False)
    )
    title = _title(runs, "Final loss by learning rate", "loss")
    return _by_learning_rate(runs, "loss", y, title)


def attention_logit_max_by_learning_rate(table: pl.DataFrame) -> Chart | None:
    """Largest attention logit of training against LR, both axes logarithmic; a rule marks 1e4 (see the constant).

    Lines are geometric means over seeds, bands their range. Values that are not positive have no place on a logarithmic
    axis and are left out.

    Args:
        table: one row a run, as `load` returns it, with the column attention_logit_max.
    """
    if "attention_logit_max" not in table.columns:
        return None
    runs = outcomes(table).filter(pl.col("attention_logit_max") > 0)
    if runs.is_empty():
        return None
    low, high = _decades(runs["attention_logit_max"], include=ATTENTION_LOGIT_MAX_LIMIT)
    y = (
        alt.Y("attention_logit_max:Q")
        .title("Max attention logit during training")
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=_ticks(low, high, multiples=(1,)), labelExpr=_POWER_LABEL)
    )
    title = _title(runs, "Attention-logit growth by learning rate", "attention_logit_max")
    return _by_learning_rate(runs, "attention_logit_max", y, title, rule=ATTENTION_LOGIT_MAX_LIMIT)


def sensitivity_by_n_params(sensitivity: pl.DataFrame) -> Chart | None:
    """LR sensitivity (the paper's estimator, `mean`) against model size, a line an arm, its 90 % intervals as bars.

    Args:
        sensitivity: as `stability.sensitivity` returns it.
    """
    rows = sensitivity.filter((pl.col("estimator") == "mean") & pl.col("value").is_not_null())
    if rows.is_empty():
        return None
    arms = rows["arm"].unique().sort().to_list()
    sizes = rows["n_params"]
    low, high = _span(sizes, 1.4)
    legend = alt.Legend(title=None, orient="top", direction="vertical", labelLimit=0, symbolType="circle")
    known = rows["interval_low"].is_not_null()
    base = alt.Chart(rows.select("arm", "scale", "n_params", "value", "interval_low", "interval_high")).encode(
        x=alt.X("n_params:Q")
        .title("Parameters without embedding and head")
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=_size_ticks(sizes, low, high), labelExpr=_SIZE_LABEL, labelOverlap=True),
        y=alt.Y("value:Q").title("Learning-rate sensitivity (nats per token)").scale(zero=True, nice=True),
        color=alt.Color("arm:N")
        .scale(domain=arms, **_arm_colours(len(arms)))
        .legend(legend if len(arms) > 1 else None),
    )
    bars = base.transform_filter(alt.datum.interval_low != None)  # noqa: E711 (an expression of Vega)
    layers = [
        base.mark_line(strokeWidth=2.5),
        base.mark_point(filled=True, size=70, opacity=1),
        bars.mark_rule(strokeWidth=1.5).encode(y=alt.Y("interval_low:Q"), y2="interval_high:Q"),
    ]
    notes = ["estimator: mean over the grid", *_bars_note(rows.filter(known)["basis"])]
    chart = alt.layer(*layers).properties(
        width=440,
        height=300,
        title=alt.Title("Learning-rate sensitivity by model size", subtitle="; ".join(notes)),
    )
    return _styled(chart)


def _bars_note(bases: pl.Series) -> list[str]:
    """What the bars rest on, in words; nothing where there are none."""
    words = {"seeds": "bars: 90 % over seeds", "noise_floor": "bars: 90 % by the declared noise of one run"}
    return [words[basis] for basis in ("seeds", "noise_floor") if (bases == basis).any()]


def save(chart: Chart, folder: Path, name: str) -> None:
    """Write `folder/name.svg` and `folder/name.png`, each replaced in one step.

    Raises:
        OSError: the folder cannot be written to.
    """
    with alt.data_transformers.enable("default", max_rows=None):
        spec = chart.to_dict()
    _replace(folder / f"{name}.svg", vl_convert.vegalite_to_svg(spec, vl_version=_vega_lite_version()).encode())
    _replace(folder / f"{name}.png", vl_convert.vegalite_to_png(spec, vl_version=_vega_lite_version(), scale=2))


def _vega_lite_version() -> str:
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# --- curves over learning rate --------------------------------------------------------------------------------------


def _by_learning_rate(runs: pl.DataFrame, column: str, y: alt.Y, title: alt.Title, rule: float | None = None) -> Chart:
    """Panels by arm; in each a line, a band over seeds and points for every scale, crosses for diverged runs."""
    rows = _with_curves(runs, column)
    low, high = _span(rows["learning_rate"], 1.3)
    x = (
        alt.X("learning_rate:Q")
        .title("Learning rate")
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=_rate_ticks(rows["learning_rate"], low, high), labelExpr=_POWER_LABEL, labelOverlap=True)
    )
    names = rows.sort("n_params", "model").get_column("model").unique(maintain_order=True).to_list()
    colour = (
        alt.Color("model:O")
        .scale(domain=names, scheme=_SCALE_COLOURS)
        .legend(title=["Model size", "(parameters)"], symbolType="circle", symbolOpacity=1, labelLimit=200)
    )
    base = alt.Chart(rows).encode(x=x, color=colour)
    mean, low_end = y.copy(), y.copy()  # one scale and axis for all layers
    mean.shorthand, low_end.shorthand = "centre:Q", "low:Q"
    ended, crossed = alt.datum.diverged == False, alt.datum.diverged == True  # noqa: E712 (an expression of Vega)
    layers: list[alt.Chart] = [
        base.mark_area(opacity=0.18).encode(y=low_end, y2="high:Q"),
        base.mark_line(strokeWidth=2.5).encode(y=mean),
        base.transform_filter(ended).mark_point(filled=True, size=26, opacity=0.9).encode(y=y),
        base.transform_filter(crossed).mark_point(shape=_CROSS, size=90, strokeWidth=2, opacity=1).encode(y=y),
    ]
    if rule is not None:
        layers.append(alt.Chart(rows).mark_rule(color=_QUIET, strokeDash=[5, 4]).encode(y=alt.datum(rule)))
    panels = alt.layer(*layers).properties(**_PANEL)
    arms = rows["arm"].n_unique()
    header = alt.Header(
        title=None, labelExpr="split(datum.label, ', ')", labelFontSize=13, labelLimit=_PANEL["width"], labelPadding=6
    )
    if arms == 1:
        return _styled(panels.properties(title=title))
    faceted = panels.facet(facet=alt.Facet("arm:N").header(header), columns=min(arms, _COLUMNS))
    # Shared axes would hang below the last row, also where it has no panel.
    return _styled(faceted.resolve_axis(x="independent").properties(title=title))


def _with_curves(runs: pl.DataFrame, column: str) -> pl.DataFrame:
    """The runs, each beside the mean and range over seeds at its point of the curve."""
    point = ["arm", "n_params", "scale", "learning_rate"]
    value = pl.col(column)
    mean = value.log().mean().exp() if column == "attention_logit_max" else value.mean()
    return runs.select(
        *point,
        "diverged",
        column,
        pl.struct("scale", "n_params").map_elements(_model_label, return_dtype=pl.String).alias("model"),
        mean.over(point).alias("centre"),
        value.min().over(point).alias("low"),
        value.max().over(point).alias("high"),
    )


def _model_label(row: dict[str, Any]) -> str:
    size = size_name(row["n_params"])
    return size if row["scale"] == size else f"{row['scale']} ({size})"


def _title(runs: pl.DataFrame, text: str, column: str) -> alt.Title:
    """A title whose subtitle explains only what there is to see."""
    cell = ["arm", "n_params", "scale", "learning_rate"]
    notes = []
    if runs.select(cell).is_duplicated().any():
        mean = "geometric mean" if column == "attention_logit_max" else "mean"
        notes.append(f"line: {mean} over seeds, band: their range")
    if runs["diverged"].any():
        notes.append("cross: diverged run")
    if column == "attention_logit_max":
        notes.append("dashed: 1e4")
    return alt.Title(text, subtitle="; ".join(notes)) if notes else alt.Title(text)


# --- axes and style -------------------------------------------------------------------------------------------------


def _span(values: pl.Series, margin: float) -> tuple[float, float]:
    """The range of positive values with a margin, a factor, on both sides."""
    numbers = values.to_list()
    return min(numbers) / margin, max(numbers) * margin


def _decades(values: pl.Series, include: float) -> tuple[float, float]:
    numbers = [*values.to_list(), include]
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _ticks(low: float, high: float, multiples: Sequence[int]) -> list[float]:
    """Round numbers between low and high: these multiples of powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for n in multiples if low <= (tick := float(f"{n}e{power}")) <= high]


def _rate_ticks(values: pl.Series, low: float, high: float) -> list[float]:
    ticks = _ticks(low, high, multiples=(1, 3) if high / low < 3e4 else (1,))
    return ticks if len(ticks) > 1 else values.unique().sort().to_list()


def _size_ticks(sizes: pl.Series, low: float, high: float) -> list[float]:
    """The sizes themselves while there is room for their labels, otherwise round numbers."""
    distinct: list[float] = sizes.unique().sort().to_list()
    return distinct if len(distinct) <= 8 else _ticks(low, high, multiples=(1, 3))


def _padded(values: pl.Series) -> list[float]:
    """The range of values with room on both sides, so that no mark sticks out of its panel."""
    known = values.drop_nulls().to_list()
    low, high = min(known), max(known)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def _arm_colours(count: int) -> dict[str, Any]:
    return {"range": _ARM_COLOURS[:count]} if count <= len(_ARM_COLOURS) else {"scheme": "tableau20"}


def _styled(chart: Any) -> Chart:
    """One look for all: quiet axes, a light grid, type large enough for a column of a paper."""
    styled: Chart = (
        chart.configure(font=_FONT, background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            titlePadding=10,
            labelColor=_INK,
            titleColor=_INK,
            gridColor=_GRID,
            domainColor=_QUIET,
            tickColor=_QUIET,
        )
        .configure_legend(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titleColor=_INK,
            labelColor=_INK,
            symbolSize=110,
            rowPadding=4,
        )
        .configure_title(fontSize=16, subtitleFontSize=12, subtitleColor=_QUIET, color=_INK, anchor="start", offset=12)
    )
    return styled
