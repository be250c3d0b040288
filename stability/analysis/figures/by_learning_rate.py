"""Curves over learning rate: a panel an arm, a line a scale, a cross for each diverged run."""

from typing import Any

import altair as alt
import polars as pl

from stability.analysis.cells import outcomes
from stability.analysis.figures.style import (
    CROSS,
    PANEL,
    SCALE_COLOURS,
    Chart,
    arm_panels,
    decades,
    finished,
    learning_rate_x,
    logarithmic_y,
    model_label,
    padded,
    pointed_at,
    ruled,
    run_tooltip,
)

ATTENTION_LOGIT_MAX_LIMIT = 1e4
"""Every run of arXiv 2309.14322 (Section 3.3) whose max attention logit passed this value diverged."""

_POINT = ["arm", "n_params", "scale", "learning_rate"]


def loss_by_learning_rate(table: pl.DataFrame) -> Chart | None:
    """Final validation loss L = min(l, l0) against LR.

    Lines are means over seeds, bands their range. A diverged run without a known l0 is drawn at the largest loss shown.

    Args:
        table: one row a run, as `load` returns it.
    """
    runs = outcomes(table)
    if runs["loss"].is_null().all():
        return None
    runs = runs.with_columns(pl.col("loss").fill_null(pl.col("loss").max()))
    y = _linear_y(runs, "loss", "Final validation loss (nats per token)")
    return _curves(runs, "loss", y, "Final loss by learning rate")


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
    low, high = decades(runs["attention_logit_max"], include=ATTENTION_LOGIT_MAX_LIMIT)
    y = logarithmic_y("value", "Max attention logit during training", low, high)
    title = "Attention-logit growth by learning rate"
    return _curves(runs, "attention_logit_max", y, title, is_geometric=True, rule=ATTENTION_LOGIT_MAX_LIMIT)


def log_z_by_learning_rate(table: pl.DataFrame) -> Chart | None:
    """Mean log Z of the output logits, as last observed, against LR. Lines are means over seeds, bands their range.

    Args:
        table: one row a run, as `load` returns it, and a column log_z.
    """
    runs = outcomes(table).filter(pl.col("log_z").is_not_null())
    if runs.is_empty():
        return None
    y = _linear_y(runs, "log_z", "Mean log Z, as last observed (nats)")
    return _curves(runs, "log_z", y, "Output-logit growth by learning rate")


def quantity_by_learning_rate(table: pl.DataFrame, name: str) -> Chart | None:
    """A quantity against LR: logarithmic where all its values are positive and span a decade.

    Lines are means over seeds (geometric on a logarithmic axis), bands their range.

    Args:
        table: one row a run, as `load` returns it, with the quantity as a column.
        name: the quantity's.
    """
    runs = outcomes(table).filter(pl.col(name).is_not_null())
    if runs.is_empty():
        return None
    low, high = runs[name].min(), runs[name].max()
    assert isinstance(low, float)
    assert isinstance(high, float)
    words = name.replace("_", " ")
    title = f"{words[:1].upper()}{words[1:]} by learning rate"
    if low > 0 and high / low >= 10:
        return _curves(runs, name, logarithmic_y("value", words, *decades(runs[name])), title, is_geometric=True)
    return _curves(runs, name, _linear_y(runs, name, words), title)


def _linear_y(runs: pl.DataFrame, column: str, title: str) -> alt.Y:
    return alt.Y("value:Q").title(title).scale(domain=padded(runs[column]), nice=False, zero=False)


def _curves(
    runs: pl.DataFrame, column: str, y: alt.Y, title: str, *, is_geometric: bool = False, rule: float | None = None
) -> Chart:
    """Panels by arm; in each a line, a band over seeds and points for every scale, crosses for diverged runs."""
    rows = _with_means(runs, column, is_geometric)
    names = rows.sort("n_params", "model").get_column("model").unique(maintain_order=True).to_list()
    colour = (
        alt.Color("model:O")
        .scale(domain=names, scheme=SCALE_COLOURS)
        .legend(title=["Model size", "(parameters)"], symbolType="circle", symbolOpacity=1, labelLimit=200)
    )
    base = alt.Chart(rows).encode(x=learning_rate_x(rows["learning_rate"]), color=colour)
    mean, low_end = y.copy(), y.copy()  # one scale and axis for all layers
    mean.shorthand, low_end.shorthand = "centre:Q", "low:Q"
    ended, crossed = alt.datum.diverged == False, alt.datum.diverged == True  # noqa: E712 (an expression of Vega)
    told = run_tooltip("value", column.replace("_", " "))
    layers: list[alt.Chart] = [
        base.mark_area(opacity=0.18).encode(y=low_end, y2="high:Q"),
        base.mark_line(strokeWidth=2.5).encode(y=mean),
        base.transform_filter(ended).mark_point(filled=True, size=26, opacity=0.9).encode(y=y, tooltip=told),
        base.transform_filter(crossed)
        .mark_point(shape=CROSS, size=90, strokeWidth=2, opacity=1)
        .encode(y=y, tooltip=told),
        pointed_at(base, size=220).encode(y=y, tooltip=told),
    ]
    if rule is not None:
        layers.append(ruled(alt.Chart(rows), rule))
    panels = arm_panels(alt.layer(*layers).properties(**PANEL), rows["arm"].n_unique())
    return finished(panels, _title(runs, title, is_geometric, rule))


def _with_means(runs: pl.DataFrame, column: str, is_geometric: bool) -> pl.DataFrame:
    """The runs, each beside the mean and range over seeds at its point of the curve."""
    value = pl.col(column)
    mean = value.log().mean().exp() if is_geometric else value.mean()
    return runs.select(
        *_POINT,
        "seed",
        "status",
        "diverged",
        # Under a name of our own: Vega would take a dot or a bracket in anyone's for a path.
        value.alias("value"),
        model_label(),
        mean.over(_POINT).alias("centre"),
        value.min().over(_POINT).alias("low"),
        value.max().over(_POINT).alias("high"),
    )


def _title(runs: pl.DataFrame, text: str, is_geometric: bool, rule: float | None) -> alt.Title:
    """A title whose subtitle explains only what there is to see."""
    notes = []
    if runs.select(_POINT).is_duplicated().any():
        mean = "geometric mean" if is_geometric else "mean"
        notes.append(f"line: {mean} over seeds, band: their range")
    if runs["diverged"].any():
        notes.append("cross: diverged run")
    if rule is not None:
        notes.append(f"dashed: {rule:.0e}".replace("e+0", "e"))
    settings: dict[str, Any] = {"subtitle": "; ".join(notes)} if notes else {}
    return alt.Title(text, **settings)
