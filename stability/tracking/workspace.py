"""A W&B workspace of one sweep, in code: the panels in which a sweep is read. Needs `wandb-workspaces`.

Importing this module imports W&B.
"""

from typing import Any

import wandb_workspaces.reports.v2.interface as panels
import wandb_workspaces.workspaces as workspaces

from stability.tracking.names import tracked_name
from stability.tracking.wandb_analysis import CHARTS

ALL_RUNS = 1000
"""W&B shows ten runs a panel unless told otherwise."""
GRADIENTS = ("embedding", "block_00/mlp/inner", "head")
"""Tensors whose gradients are compared with Adam's epsilon: first, early and last in the model."""


def sweep_workspace(entity: str, project: str, sweep: str) -> workspaces.Workspace:
    """The workspace, not saved: `save()` sends it to W&B.

    Args:
        entity: user or team.
        project: the W&B project.
        sweep: the sweep's name, its runs' group.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Sweep {sweep}",
        sections=[
            workspaces.Section(name="Learning rate", panels=_by_learning_rate(), is_open=True, pinned=True),
            workspaces.Section(name="Instabilities", panels=_over_steps(), is_open=True, pinned=True),
        ],
        settings=workspaces.WorkspaceSettings(group_by_prefix="first", max_runs=ALL_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == sweep],
            pinned_columns=[
                "config:arm",
                "config:scale",
                "config:learning_rate",
                "summary:status",
                "summary:loss_validation",
                "summary:attention_logit_max",
            ],
        ),
        auto_generate_panels=True,
    )


def _by_learning_rate() -> list[Any]:
    """Every run as a point; the curves by arm, and sensitivity by size, from the sweep's analysis run."""
    legend = "${config:arm} ${config:scale} ${config:learning_rate}"
    return [
        panels.ScatterPlot(
            title=title,
            x=panels.Config("learning_rate"),
            y=panels.SummaryMetric(metric),
            z=panels.Config("n_params"),
            log_x=True,
            log_y=log_y,
            log_z=True,
            legend_template=legend,
        )
        for title, metric, log_y in (
            ("Final validation loss by learning rate", "loss_validation", False),
            ("Max attention logit by learning rate", "attention_logit_max", True),
        )
    ] + [_chart(name) for name in CHARTS]


def _chart(name: str) -> Any:
    _, x, y, title = CHARTS[name]
    return panels.CustomChart(
        query={"summaryTable": {"tableKey": f"chart/{name}_table"}},
        chart_name="wandb/line/v0",
        chart_fields={"x": x, "y": y, "stroke": "curve"},
        chart_strings={"title": title},
    )


def _over_steps() -> list[Any]:
    """What grows before a run diverges: lines over steps, of all runs that have one learning rate or one size."""
    gradients = [tracked_name(f"gradient/rms_over_eps/{tensor}") for tensor in GRADIENTS]
    return [
        _lines(
            "Max attention logit over steps, by learning rate", ["attention_logit/max"], "learning_rate", log_y=True
        ),
        _lines("Log Z over steps, by learning rate", ["output_logit/log_z_mean"], "learning_rate", log_y=False),
        _lines("Gradient RMS over Adam's epsilon, by size", gradients, "n_params", log_y=True),
        _lines("Training loss over steps, by learning rate", ["loss/train"], "learning_rate", log_y=False),
    ]


def _lines(title: str, metrics: list[str], groupby: str, *, log_y: bool) -> Any:
    return panels.LinePlot(
        title=title,
        x="Step",
        y=[*metrics],
        log_y=log_y,
        groupby=panels.Config(groupby),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=ALL_RUNS,
    )
