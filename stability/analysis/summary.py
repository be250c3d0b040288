"""The results of a sweep as one file and its figures: everything the analysis measures, put together."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from stability.analysis import figures
from stability.analysis.alarms.of_runs import fired_alarms
from stability.analysis.best_learning_rate import best_learning_rate
from stability.analysis.claims import Claim, judge, parse_claims
from stability.analysis.claims.results import Results
from stability.analysis.edge_fit import forecast_stable_edge, stable_edge_fit
from stability.analysis.forecast import parse_forecasts, quantity_forecasts
from stability.analysis.load import Definitions, Paths, Source, read
from stability.analysis.report import page
from stability.analysis.scaling import sensitivity_scaling
from stability.analysis.sensitivity import sensitivity, sensitivity_warnings
from stability.analysis.source import COLUMNS
from stability.analysis.stable_edge import UNSTABLE_EXCESS, max_stable_learning_rate
from stability.analysis.uncertainty import INTERVAL_LEVEL, LOSS_NOISE
from stability.errors import InputError
from stability.formats import FORMATS, Format
from stability.tracking.files import SCHEMA_VERSION, remove_partial, without_nonfinite, write_json, write_whole
from stability.tracking.locks import SWEEP, Locks
from stability.tracking.record import FIGURES, MANIFEST
from stability.untrusted.names import refuse_links_out

SUMMARY = "summary.json"
REPORT = "report.html"

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
    source: Paths,
    output_dir: str | Path,
    *,
    aliases: Mapping[str, str] | None = None,
    quantities: Definitions | None = None,
    claims: Mapping[str, Mapping[str, Any]] | None = None,
    forecasts: Mapping[str, Mapping[str, Any]] | None = None,
    forecast_n_params: Sequence[float] = (),
    unstable_excess: float = UNSTABLE_EXCESS,
    loss_noise: float = LOSS_NOISE,
    learning_rate_min: float | None = None,
    learning_rate_max: float | None = None,
    figure_formats: Collection[Format] = FORMATS,
    report: bool = True,
    early_warning: bool = False,
) -> dict[str, Any]:
    """Measure the runs of one or several sources; write summary.json, report.html and figures into a folder.

    Everything is read, measured and checked before anything is written; summary.json is written last.

    Args:
        source: results folders, CSV or Parquet tables.
        output_dir: made if it does not exist. A summary of the same sweep in it is replaced.
        aliases: see `load`.
        quantities: see `load`.
        claims: name -> fields (`stability.analysis.claims`), beside those of the sources.
        forecasts: name -> fields of a quantity to forecast (`stability.analysis.forecast`), beside the sources' own.
        forecast_n_params: sizes at which to forecast the highest stable LR, and each quantity beside its own sizes.
        unstable_excess: see `max_stable_learning_rate`, which uses the whole grid.
        loss_noise: the declared noise floor of one run's final loss, for cells of one seed.
        learning_rate_min: see `sensitivity`.
        learning_rate_max: see `sensitivity`.
        figure_formats: of each figure's files under `analysis/`.
        report: write report.html, which holds all of the results and figures.
        early_warning: say which alarms fired in every run (`stability.early_warning`); reads all that was observed.

    Returns:
        What summary.json holds, with the keys sweep, complete, runs, sensitivity, sensitivity_scaling,
        best_learning_rate, max_stable_learning_rate, stable_edge_fit, forecasts, quantity_forecasts, claims,
        early_warning, warnings and the settings: docs/records.md defines every field.

    Raises:
        InputError: an argument or a source is bad, the folder holds the summary of another sweep or a link that leads
            out of it, or it cannot be written to.
    """
    output = Path(output_dir)
    with _alone(output):
        found = read(source, aliases=aliases, quantities=quantities)
        _refuse_other_sweep(output / SUMMARY, found.sweep)
        statements = parse_claims({**found.claims, **(claims or {})})
        wanted = parse_forecasts({**found.forecasts, **(forecasts or {})})
        table = found.table
        bounds = (learning_rate_min, learning_rate_max)
        sensitivities = sensitivity(table, *bounds, loss_noise=loss_noise)
        plain = {
            "schema_version": SCHEMA_VERSION,
            "sweep": found.sweep,
            "complete": found.complete,
            "interval_level": INTERVAL_LEVEL,
            "loss_noise": loss_noise,
            "unstable_excess": unstable_excess,
            "runs": _runs(found),
            "sensitivity": _rows(sensitivities),
            "sensitivity_scaling": _rows(sensitivity_scaling(table, "mean", *bounds, loss_noise=loss_noise)),
            "best_learning_rate": _rows(best_learning_rate(table, loss_noise)),
            "max_stable_learning_rate": max_stable_learning_rate(table, unstable_excess).to_dicts(),
            "stable_edge_fit": stable_edge_fit(table, unstable_excess).to_dicts(),
            "forecasts": forecast_stable_edge(table, forecast_n_params, unstable_excess=unstable_excess).to_dicts(),
            "quantity_forecasts": [
                one.to_dict() for one in quantity_forecasts(table, wanted, forecast_n_params, unstable_excess)
            ],
            "claims": _verdicts(statements, Results(table, unstable_excess, loss_noise)),
            "early_warning": fired_alarms(found.records) if early_warning else None,
            "warnings": [*found.warnings, *sensitivity_warnings(table, *bounds, loss_noise=loss_noise)],
        }
        # The caller gets what the file holds, null for NaN included.
        summary: dict[str, Any] = without_nonfinite(plain)
        try:
            _write(output, found, summary, sensitivities, figure_formats, report)
        except OSError as error:
            raise InputError(
                "output_dir", output, f"cannot be written to ({error.strerror})", "Name a folder that can."
            ) from error
        return summary


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep other commands from analysing or extending a sweep's folder, and from mixing their files with ours."""
    if not (output / MANIFEST).is_file() or not os.access(output, os.W_OK):
        yield
        return
    with Locks(output) as locks, locks.hold(SWEEP):
        for folder in (output, output / FIGURES):
            remove_partial(folder)
        yield


def _runs(found: Source) -> list[dict[str, Any]]:
    """Every run, its quantities in an object of their own."""
    runs = found.table.select(_RUN_KEYS).to_dicts()
    quantities = found.table.select(pl.exclude(*COLUMNS)).to_dicts()
    return [{**run, "quantities": values} for run, values in zip(runs, quantities or [{}] * len(runs), strict=True)]


def _rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of a measure, its two ends of an interval as one [low, high] or null."""
    return [
        {
            **{key: value for key, value in row.items() if not key.startswith("interval_")},
            "interval": None if row["interval_low"] is None else [row["interval_low"], row["interval_high"]],
        }
        for row in table.to_dicts()
    ]


def _verdicts(claims: Mapping[str, Claim], results: Results) -> list[dict[str, Any]]:
    rows = []
    for name, claim in claims.items():
        found = judge(claim, results)
        interval = None if found.interval is None else list(found.interval)
        rows.append(
            {
                "name": name,
                "kind": claim.kind,
                "paper": claim.paper,
                "verdict": found.verdict,
                "effect": found.effect,
                "measured": found.measured,
                "interval": interval,
                "n": found.n,
                "evidence": found.evidence,
            }
        )
    return rows


def _refuse_other_sweep(path: Path, sweep: str) -> None:
    """An output folder belongs to one sweep; what stands there must be a summary of that sweep, of any version."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    other = content.get("sweep") if isinstance(content, dict) else None
    if other != sweep:
        what = f"the results of the sweep {other!r}" if other else "a summary.json that is no sweep's"
        raise InputError(
            "output_dir", path.parent, f"holds {what}, and these are of {sweep!r}", "Name another folder, or empty it."
        )


def _write(
    output: Path,
    found: Source,
    summary: Mapping[str, Any],
    sensitivities: pl.DataFrame,
    formats: Collection[Format],
    report: bool,
) -> None:
    folder = output / FIGURES
    refuse_links_out(output, folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, dict[str, Any]] = {}
    if formats or report:
        for figure in figures.all_figures(found, sensitivities, summary):
            if figure.chart is not None:
                drawn[figure.name] = figures.specification(figure.chart)
    figures.save_all(drawn, folder, formats)
    if report:
        write_whole(output / REPORT, page(found, summary, drawn, output, formats).encode())
    else:
        (output / REPORT).unlink(missing_ok=True)
    write_json(output / SUMMARY, summary)
