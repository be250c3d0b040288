"""What a sweep's records, or any table of runs, say about stability. Imports no JAX.

`load` gives a table with one row a run; the measures (`sensitivity`, `best_learning_rate`, `max_stable_learning_rate`
and the others) work on any such table; `analyze` does all of it and writes the results down.
"""

from stability.analysis.alarms import early_warning
from stability.analysis.best_learning_rate import best_learning_rate
from stability.analysis.cells import Cell, capped, cells, outcomes
from stability.analysis.edge_fit import EdgeFit, edge_fits, forecast_stable_edge, stable_edge_fit
from stability.analysis.forecast import Forecast, forecast
from stability.analysis.load import COLUMNS, Source, load, read
from stability.analysis.scaling import sensitivity_scaling
from stability.analysis.sensitivity import (
    ESTIMATORS,
    Estimator,
    curves,
    sensitivity,
    sensitivity_of,
    sensitivity_warnings,
)
from stability.analysis.stable_edge import UNSTABLE_EXCESS, max_stable_learning_rate, stable_edge_brackets
from stability.analysis.summary import analyze
from stability.analysis.terminal import format_claims, format_forecasts, format_table
from stability.analysis.uncertainty import INTERVAL_LEVEL, LOSS_NOISE

__all__ = [
    "COLUMNS",
    "ESTIMATORS",
    "INTERVAL_LEVEL",
    "LOSS_NOISE",
    "UNSTABLE_EXCESS",
    "Cell",
    "EdgeFit",
    "Estimator",
    "Forecast",
    "Source",
    "analyze",
    "best_learning_rate",
    "capped",
    "cells",
    "curves",
    "early_warning",
    "edge_fits",
    "forecast",
    "forecast_stable_edge",
    "format_claims",
    "format_forecasts",
    "format_table",
    "load",
    "max_stable_learning_rate",
    "outcomes",
    "read",
    "sensitivity",
    "sensitivity_of",
    "sensitivity_scaling",
    "sensitivity_warnings",
    "stable_edge_brackets",
    "stable_edge_fit",
]
