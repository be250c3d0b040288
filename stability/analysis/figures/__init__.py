"""The standard figures, as declarative Altair charts: the same ones make files, pages and what trackers show.

Each function takes a table and returns a chart, or None where there is nothing to draw.
"""

from stability.analysis.figures.by_learning_rate import (
    attention_logit_max_by_learning_rate,
    log_z_by_learning_rate,
    loss_by_learning_rate,
    quantity_by_learning_rate,
)
from stability.analysis.figures.by_n_params import sensitivity_by_n_params, stable_edge_by_n_params
from stability.analysis.figures.catalogue import Figure, all_figures, forecast_names
from stability.analysis.figures.files import save_all, specification, vega_lite_version
from stability.analysis.figures.forecast import forecast_by_n_params
from stability.analysis.figures.over_steps import attention_logit_max_over_steps, log_z_over_steps
from stability.analysis.figures.style import Chart

__all__ = [
    "Chart",
    "Figure",
    "all_figures",
    "attention_logit_max_by_learning_rate",
    "attention_logit_max_over_steps",
    "forecast_by_n_params",
    "forecast_names",
    "log_z_by_learning_rate",
    "log_z_over_steps",
    "loss_by_learning_rate",
    "quantity_by_learning_rate",
    "save_all",
    "sensitivity_by_n_params",
    "specification",
    "stable_edge_by_n_params",
    "vega_lite_version",
]
