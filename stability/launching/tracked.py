"""An analysed sweep as trackers are told of it: its files, and its tables with columns that any plot can use."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from stability.analysis import COLUMNS, curves
from stability.launching.folder import SweepFolder
from stability.tracking.files import read_json
from stability.tracking.record import MANIFEST
from stability.tracking.tracker import TrackedSweep

TABLES = ("runs", "sensitivity", "best_learning_rate", "max_stable_learning_rate", "stable_edge_fit", "claims")
"""Tables of summary.json that a tracker gets as they are, but for cells that are lists or objects."""
LOGARITHMS = ("learning_rate", "n_params")
"""Columns that a tracker gets the log10 of too: the line charts of some have no logarithmic axis."""


def tracked_sweep(folder: SweepFolder, summary: Mapping[str, Any]) -> TrackedSweep:
    """What a tracker is told.

    Args:
        folder: the sweep's results folder.
        summary: what `analyze` has made of it.
    """
    manifest = read_json(folder.path / MANIFEST)
    rows: dict[str, Sequence[Mapping[str, Any]]] = {name: summary[name] for name in TABLES}
    table = pl.DataFrame([{key: run[key] for key in COLUMNS} for run in summary["runs"]], schema=dict(COLUMNS))
    rows["curves"] = curves(table).to_dicts()
    return TrackedSweep(
        id=folder.sweep_id,
        name=manifest["sweep"],
        folder=folder.path,
        manifest=manifest,
        summary=summary,
        tables={name: [_cells(row) for row in content] for name, content in rows.items()},
    )


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without nested cells, its logarithms beside it, and the `curve` that it is a point of."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if key == "interval":
            cells["interval_low"], cells["interval_high"] = value or (None, None)
        elif key == "quantities":
            cells |= value
        else:
            cells[key] = json.dumps(value) if isinstance(value, list | dict) else value
    for key in LOGARITHMS:
        if row.get(key):
            cells[f"log10_{key}"] = math.log10(row[key])
    if "arm" in row:
        cells["curve"] = f"{row['arm']} {row['scale']}" if "learning_rate" in row else row["arm"]
    return cells
