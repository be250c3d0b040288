"""What a sweep's records, or any table of runs, say about stability. Imports no JAX.

`load` gives a table with one row a run; `sensitivity`, `curves` and `max_stable_learning_rate` work on any such table;
`analyze` does all of it and writes the results down.
"""

from stability.analysis.cells import Cell, capped, cells, outcomes
from stability.analysis.load import COLUMNS, Source, load, read
from stability.analysis.sensitivity import (
    ESTIMATORS,
    Estimator,
    curves,
    sensitivity,
    sensitivity_of,
    sensitivity_warnings,
)
from stability.analysis.stable_edge import UNSTABLE_EXCESS, max_stable_learning_rate
from stability.analysis.summary import analyze, format_table

__all__ = [
    "COLUMNS",
    "ESTIMATORS",
    "UNSTABLE_EXCESS",
    "Cell",
    "Estimator",
    "Source",
    "analyze",
    "capped",
    "cells",
    "curves",
    "format_table",
    "load",
    "max_stable_learning_rate",
    "outcomes",
    "read",
    "sensitivity",
    "sensitivity_of",
    "sensitivity_warnings",
]
