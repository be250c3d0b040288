"""Curves over training: a panel an arm, a line a run, its colour the learning rate; one scale at a time."""

import altair as alt
import polars as pl

from stability.analysis.cells import outcomes
from stability.analysis.figures.by_learning_rate import ATTENTION_LOGIT_MAX_LIMIT
from stability.analysis.figures.style import (
    PANEL,
    POWER_LABEL,
    Chart,
    arm_panels,
    decades,
    finished,
    logarithmic_y,
    model_label,
    padded,
    pointed_at,
    ruled,
    run_tooltip,
    span,
    ticks,
)
from stability.analysis.source import RUN_INDEX

SHOWN_MODEL = "shown_model"
"""The parameter that chooses the scale; a file shows the largest."""

_RATE_COLOURS = alt.SchemeParams(name="plasma", extent=[0.9, 0.0])


def attention_logit_max_over_steps(table: pl.DataFrame, history: pl.DataFrame) -> Chart | None:
    """The largest attention logit of each observed step, logarithmic; a rule marks 1e4.

    Args:
        table: one row a run, as `load` returns it.
        history: columns run (which row of `table`), step, attention_logit/max.
    """
    rows = _values(history, "attention_logit/max").filter(pl.col("value") > 0)
    if rows.is_empty():
        return None
    y = logarithmic_y("value", "Max attention logit", *decades(rows["value"], include=ATTENTION_LOGIT_MAX_LIMIT))
    return _lines(table, rows, y, "Attention-logit growth over training", rule=ATTENTION_LOGIT_MAX_LIMIT)


def log_z_over_steps(table: pl.DataFrame, history: pl.DataFrame) -> Chart | None:
    """Mean log Z of the output logits at each observed step.

    Args:
        table: one row a run, as `load` returns it.
        history: columns run (which row of `table`), step, output_logit/log_z_mean.
    """
    rows = _values(history, "output_logit/log_z_mean")
    if rows.is_empty():
        return None
    y = alt.Y("value:Q").title("Mean log Z (nats)").scale(domain=padded(rows["value"]), nice=False, zero=False)
    return _lines(table, rows, y, "Output-logit growth over training")


def _values(history: pl.DataFrame, metric: str) -> pl.DataFrame:
    # Five digits are more than a screen shows, and keep a page of thousands of runs small.
    return history.select(RUN_INDEX, "step", pl.col(metric).round_sig_figs(5).alias("value")).drop_nulls()


def _lines(table: pl.DataFrame, rows: pl.DataFrame, y: alt.Y, title: str, rule: float | None = None) -> Chart | None:
    """Panels by arm, of one scale; what a run is stands once for all its steps."""
    runs = (
        outcomes(table.with_row_index(RUN_INDEX).cast({RUN_INDEX: pl.Int64}))
        .select(RUN_INDEX, "arm", "scale", "n_params", "learning_rate", "seed", "status", model_label())
        .join(rows, on=RUN_INDEX, how="semi")
    )
    if runs.is_empty():
        return None
    models = runs.sort("n_params", "model").get_column("model").unique(maintain_order=True).to_list()
    chosen = alt.param(name=SHOWN_MODEL, value=models[-1], bind=alt.binding_select(options=models, name="Model size: "))
    rates = runs["learning_rate"]
    low, high = span(rates, 1.0)
    colour = (
        alt.Color("learning_rate:Q")
        .scale(type="log", scheme=_RATE_COLOURS, domain=[low, high] if low < high else [low / 2, low * 2])
        .legend(
            title="Learning rate",
            values=ticks(low, high, multiples=(1, 3)) or [low],
            labelExpr=POWER_LABEL,
            gradientLength=PANEL["height"] - 60,
        )
    )
    told = [*run_tooltip("value", "value"), alt.Tooltip("step:Q", title="step")]
    steps = rows.join(runs.select(RUN_INDEX), on=RUN_INDEX, how="semi")
    data = alt.InlineData(values=steps.write_csv(), format=alt.CsvDataFormat(type="csv"))
    facts = ["arm", "scale", "model", "learning_rate", "seed", "status"]
    lookup = alt.LookupData(
        data=alt.InlineData(values=runs.select(RUN_INDEX, *facts).to_dicts()), key=RUN_INDEX, fields=facts
    )
    x = (
        alt.X("step:Q")
        .title("Step")
        .scale(domain=[0, int(steps["step"].to_numpy().max())], nice=False)
        .axis(tickCount=5)
    )
    base = alt.Chart().encode(x=x, color=colour, detail=f"{RUN_INDEX}:N")
    layers: list[alt.Chart] = [
        base.mark_line(strokeWidth=1.6, opacity=0.9, clip=True).encode(y=y),
        pointed_at(base, size=40).encode(y=y, tooltip=told),
    ]
    if rule is not None:
        layers.append(ruled(alt.Chart(), rule))
    panels = arm_panels(alt.layer(*layers, data=data).properties(**PANEL), runs["arm"].n_unique())
    panels = panels.transform_lookup(lookup=RUN_INDEX, from_=lookup).transform_filter(f"datum.model == {SHOWN_MODEL}")
    notes = [f"model size {models[-1]}" if len(models) > 1 else "", "a line a run", "dashed: 1e4" if rule else ""]
    return finished(panels.add_params(chosen), alt.Title(title, subtitle="; ".join(filter(None, notes))))
