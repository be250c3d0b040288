"""The results of a sweep as one file, one table for the terminal, and figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stability.analysis import figures
from stability.analysis.load import Source, read, size_name
from stability.analysis.sensitivity import sensitivity, sensitivity_warnings
from stability.analysis.stable_edge import UNSTABLE_EXCESS, max_stable_learning_rate
from stability.errors import InputError
from stability.tracking.record import SCHEMA_VERSION, TERMINAL, without_nonfinite, write_json

INTERVAL_LEVEL = 0.9
FIGURES = "analysis"
SUMMARY = "summary.json"

_RUN_KEYS = (
    "fingerprint",
    "scale",
    "n_params",
    "arm",
    "learning_rate",
    "seed",
    "status",
    "steps",
    "loss_initial",
    "loss_validation",
    "attention_logit_max",
    "attention_logit_max_final",
    "folder",
    "data_seed",
)


def analyze(
    source: str | Path,
    output_dir: str | Path,
    *,
    unstable_excess: float = UNSTABLE_EXCESS,
    learning_rate_min: float | None = None,
    learning_rate_max: float | None = None,
) -> dict[str, Any]:
    """Measure the runs of a source; write `summary.json` and the figures under `analysis/` into a folder.

    Everything is read, measured and checked before anything is written; summary.json is written last.

    Args:
        source: a sweep's results folder or a CSV file.
        output_dir: made if it does not exist. A summary of the same sweep in it is replaced.
        unstable_excess: see `max_stable_learning_rate`, which uses the whole grid.
        learning_rate_min: see `sensitivity`.
        learning_rate_max: see `sensitivity`.

    Returns:
        What summary.json holds: docs/records.md defines it.

    Raises:
        InputError: an argument or the source is bad, the folder holds the summary of another sweep, or it cannot be
            written to.
    """
    output = Path(output_dir)
    found = read(source)
    _refuse_other_sweep(output / SUMMARY, found.sweep)
    sensitivities = sensitivity(found.table, learning_rate_min, learning_rate_max)
    cautions = sensitivity_warnings(found.table, learning_rate_min, learning_rate_max)
    edges = max_stable_learning_rate(found.table, unstable_excess)
    summary = _summary(found, sensitivities, edges, cautions)
    charts = {
        "loss_by_learning_rate": figures.loss_by_learning_rate(found.table),
        "attention_logit_max_by_learning_rate": figures.attention_logit_max_by_learning_rate(found.table),
        "sensitivity_by_n_params": figures.sensitivity_by_n_params(sensitivities),
    }
    try:
        _write(output, summary, charts)
    except OSError as error:
        raise InputError(
            "output_dir", output, f"cannot be written to ({error.strerror})", "Name a folder that can."
        ) from error
    return summary


def _summary(
    found: Source, sensitivities: pl.DataFrame, edges: pl.DataFrame, cautions: Sequence[str]
) -> dict[str, Any]:
    summary = {
        "schema_version": SCHEMA_VERSION,
        "sweep": found.sweep,
        "complete": found.complete,
        "interval_level": INTERVAL_LEVEL,
        "runs": found.table.select(_RUN_KEYS).to_dicts(),
        "sensitivity": [
            {**row, "interval": None}
            for row in sensitivities.select("arm", "scale", "n_params", "estimator", "value").to_dicts()
        ],
        "max_stable_learning_rate": edges.to_dicts(),
        "warnings": [*found.warnings, *cautions],
    }
    # The caller gets what the file holds, null for NaN included.
    plain: dict[str, Any] = without_nonfinite(summary)
    return plain


def _refuse_other_sweep(path: Path, sweep: str) -> None:
    """An output folder belongs to one sweep; what stands there must be a summary of that sweep, of any version."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    other = content.get("sweep") if isinstance(content, dict) else None
    if other != sweep:
        what = f"the results of the sweep {other!r}" if other else "a summary.json that is no sweep's"
        raise InputError(
            "output_dir", path.parent, f"holds {what}, and these are of {sweep!r}", "Name another folder, or empty it."
        )


def _write(output: Path, summary: Mapping[str, Any], charts: Mapping[str, figures.Chart | None]) -> None:
    folder = output / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        if chart is not None:
            figures.save(chart, folder, name)
        else:  # one from an earlier analysis would show what is no longer so
            for suffix in (".svg", ".png"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    write_json(output / SUMMARY, summary)


# --- the terminal ---------------------------------------------------------------------------------------------------

_MISSING = "-"
_HEADER = ("scale", "params", "arm", "sensitivity (mean)", "highest stable LR", "max attention logit")
_RIGHT_ALIGNED = ("params", "sensitivity (mean)", "max attention logit")


def format_table(summary: Mapping[str, Any]) -> str:
    """The results as an aligned text table: a line for each scale and arm, smallest scale first.

    Args:
        summary: as `analyze` returns it.
    """
    lines = [_table_line(summary, edge) for edge in sorted(summary["max_stable_learning_rate"], key=_by_size)]
    needless = set()
    if len({line["arm"] for line in lines}) < 2:
        needless.add("arm")
    if all(line["scale"] == line["params"] for line in lines):
        needless.add("params")
    header = [name for name in _HEADER if name not in needless]
    previous: tuple[str, str] | None = None
    for line in lines:
        size = (line["scale"], line["params"])
        if size == previous and "arm" in header:  # say a scale once, so that its arms read as a group
            line["scale"] = line["params"] = ""
        previous = size
    return _aligned(header, [[line[name] for name in header] for line in lines])


def _by_size(edge: Mapping[str, Any]) -> tuple[int, str, str]:
    return edge["n_params"], edge["scale"], edge["arm"]


def _table_line(summary: Mapping[str, Any], edge: Mapping[str, Any]) -> dict[str, str]:
    def same_cell(row: Mapping[str, Any]) -> bool:
        return all(row[key] == edge[key] for key in ("arm", "scale", "n_params"))

    means = [row["value"] for row in summary["sensitivity"] if same_cell(row) and row["estimator"] == "mean"]
    logits = [
        run["attention_logit_max"]
        for run in summary["runs"]
        if same_cell(run) and run["status"] in TERMINAL and run["attention_logit_max"] is not None
    ]
    return {
        "scale": edge["scale"],
        "params": size_name(edge["n_params"]),
        "arm": edge["arm"],
        "sensitivity (mean)": _MISSING if not means or means[0] is None else f"{means[0]:.3f}",
        "highest stable LR": _edge_text(edge["lower"], edge["upper"]),
        "max attention logit": _compact(max(logits)) if logits else _MISSING,
    }


def _edge_text(lower: float | None, upper: float | None) -> str:
    if upper is None:
        return _MISSING if lower is None else f"≥ {lower:g}"
    return f"none (unstable from {upper:g})" if lower is None else f"{lower:g} (unstable from {upper:g})"


def _compact(value: float) -> str:
    """Three digits: 23.4, 1050, 2.1e+06."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e4 else f"{value:.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if name in _RIGHT_ALIGNED else cell.ljust(width)
            for cell, width, name in zip(cells, widths, header, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
