"""What a sweep's run of job type `analysis` holds on W&B: tables, figures, the report, and the records themselves."""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stability.tracking.files import without_nonfinite
from stability.tracking.names import RECORD
from stability.tracking.record import RUNS, run_folders
from stability.tracking.tracker import TrackedSweep

MANIFEST_KEYS = (
    "sweep",
    "sweep_id",
    "question",
    "source",
    "ladder",
    "scales",
    "quantities",
    "claims",
    "forecasts",
    "runs",
)

CHARTS: Mapping[str, tuple[str, str, str, str]] = {
    "loss_by_learning_rate": ("curves", "log10_learning_rate", "loss_mean", "Final validation loss by learning rate"),
    "sensitivity_by_n_params": ("sensitivity", "log10_n_params", "value", "Learning-rate sensitivity by model size"),
}
"""Chart -> table, x, y, title; a line for each value of the table's column `curve`."""

METRICS_LIMIT = 64 << 20
"""Bytes of metrics.jsonl up to which the records' artifact holds them; W&B's own history has them anyway."""


def analysis_config(sweep: TrackedSweep) -> dict[str, Any]:
    """The config of the analysis run."""
    manifest = {key: sweep.manifest[key] for key in MANIFEST_KEYS if key in sweep.manifest}
    shown = {key: manifest[key] for key in ("sweep_id", "question", "source", "ladder") if manifest.get(key)}
    return {**shown, RECORD: json.dumps(without_nonfinite(manifest))}


def content_digest(sweep: TrackedSweep, project: str, entity: str | None) -> str:
    """Differs when there is something new to send: other results, other runs or claims, or another place for them."""
    content = [project, entity, analysis_config(sweep), sweep.summary]
    return hashlib.sha256(json.dumps(without_nonfinite(content), sort_keys=True).encode()).hexdigest()


def log_analysis(run: Any, sweep: TrackedSweep) -> None:
    """Send everything to an open W&B run.

    Args:
        run: of W&B; it may hold an earlier analysis of the same sweep, which this one replaces.
        sweep: what was analysed.

    Raises:
        OSError: a file of the results folder cannot be read.
        Exception: whatever W&B raises.
    """
    run.config.update(analysis_config(sweep), allow_val_change=True)
    run.log({**_tables(sweep), **_charts(sweep), **_figures(sweep.folder)})
    run.summary.update(_headline(sweep.summary))
    run.log_artifact(_analysis_artifact(sweep))
    run.log_artifact(_records_artifact(sweep))


def _tables(sweep: TrackedSweep) -> dict[str, Any]:
    return {f"table/{name}": _table(rows) for name, rows in sweep.tables.items() if rows}


def _table(rows: Any) -> Any:
    import wandb

    columns = list(rows[0])
    return wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in rows], allow_mixed_types=True)


def _charts(sweep: TrackedSweep) -> dict[str, Any]:
    import wandb

    charts = {}
    for name, (table, x, y, title) in CHARTS.items():
        rows = [{key: row[key] for key in (x, y, "curve")} for row in sweep.tables.get(table, ()) if row[y] is not None]
        if rows:
            charts[f"chart/{name}"] = wandb.plot.line(_table(rows), x=x, y=y, stroke="curve", title=title)
    return charts


def _figures(folder: Path) -> dict[str, Any]:
    """Every PNG of the analysis, and the report that opens in a browser."""
    import wandb

    images = sorted((folder / "analysis").glob("*.png"))
    media: dict[str, Any] = {
        f"figure/{path.stem}": wandb.Image(str(path), caption=path.stem.replace("_", " ").capitalize())
        for path in images
    }
    report = folder / "report.html"
    if report.is_file():
        media["report"] = wandb.Html(report.read_text(encoding="utf-8"), inject=False)
    return media


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of W&B's table of runs should say of a sweep."""
    runs = summary["runs"]
    found: dict[str, Any] = {
        "complete": summary["complete"],
        "n_runs": len(runs),
        "n_diverged": sum(run["status"] == "diverged" for run in runs),
    }
    for row in summary["sensitivity"]:
        if row["estimator"] == "mean":
            found[f"sensitivity/{row['arm']}/{row['scale']}"] = row["value"]
    for row in summary["max_stable_learning_rate"]:
        found[f"max_stable_learning_rate/{row['arm']}/{row['scale']}"] = row["lower"]
    for claim in summary["claims"]:
        found[f"claim/{claim['name']}"] = claim["verdict"]
    return found


def _analysis_artifact(sweep: TrackedSweep) -> Any:
    import wandb

    artifact = wandb.Artifact(_artifact_name(sweep, "analysis"), type="analysis")
    for name in ("summary.json", "report.html"):
        if (sweep.folder / name).is_file():
            artifact.add_file(str(sweep.folder / name), name=name)
    for path in sorted((sweep.folder / "analysis").glob("*")):
        if path.is_file() and not path.is_symlink():  # a link may lead to anything
            artifact.add_file(str(path), name=f"analysis/{path.name}")
    return artifact


def _records_artifact(sweep: TrackedSweep) -> Any:
    """The results folder without checkpoints, packed: unpacked elsewhere, it can be analysed as it stands."""
    import wandb

    artifact = wandb.Artifact(_artifact_name(sweep, "records"), type="records")
    folders = run_folders(sweep.folder)
    names = ["config.json", "provenance.json", "summary.json"]
    if sum(folder.metrics.stat().st_size for folder in folders if folder.metrics.exists()) <= METRICS_LIMIT:
        names.append("metrics.jsonl")
    with (
        artifact.new_file("records.tar.gz", mode="wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as archive,
    ):
        archive.add(sweep.folder / "sweep.json", "sweep.json")
        for folder in folders:
            for name in names:
                if (folder.path / name).is_file():
                    archive.add(folder.path / name, f"{RUNS}/{folder.path.name}/{name}")
    return artifact


def _artifact_name(sweep: TrackedSweep, kind: str) -> str:
    """W&B allows letters, digits, `_`, `-` and `.` in an artifact's name."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', sweep.name)[:80]}-{sweep.id}-{kind}"
