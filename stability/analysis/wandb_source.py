"""A sweep on Weights & Biases, read through its API and written as records that the analysis reads like any others.

The runs are those that `stability` logged: what the analysis needs to the last digit stands in their config as JSON
text (`stability.tracking.names.RECORD`), results in their summary, metrics in their history.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from stability.analysis.folders import Manifest, SweepRecords
from stability.errors import InputError
from stability.tracking.files import SCHEMA_VERSION, write_json
from stability.tracking.names import RECORD, record_name
from stability.tracking.record import RUNS, TERMINAL, Row, RunFolder
from stability.tracking.wandb_key import has_key
from stability.untrusted.names import folder_name

PREFIX = "wandb:"
RUNS_A_REQUEST = 100
REQUEST_TIMEOUT_S = 30
RETRIES = 3
SUMMARY_KEYS = (
    "fingerprint",
    "n_params",
    "learning_rate",
    "seed",
    "data_seed",
    "steps",
    "loss_initial",
    "loss_validation",
    "attention_logit_max",
    "attention_logit_max_final",
)
"""What the analysis takes from a run's summary, beside its status."""


@dataclass(frozen=True)
class Address:
    """Where a sweep is on W&B.

    Attributes:
        project: `ENTITY/PROJECT`, or `PROJECT` of the default entity.
        group: the sweep's name.
        sweep_id: tells apart sweeps of one name, from several results folders; None where there is one.
    """

    project: str
    group: str
    sweep_id: str | None = None


@dataclass(frozen=True)
class WandbGroup:
    """A sweep on W&B whose runs are known, but not yet their histories.

    Attributes:
        path: the source as it was named.
        manifest: of the sweep's newest analysis run, or what can be said without one.
        runs: W&B's runs, each with its record.
        project: where the runs are: `ENTITY/PROJECT`.
        warnings: what a reader ought to know.
    """

    path: str
    manifest: Manifest
    runs: tuple[tuple[Any, Mapping[str, Any]], ...]
    project: str
    warnings: tuple[str, ...]


def is_wandb(source: str) -> bool:
    """Whether a source is one of W&B's rather than a path."""
    return source.startswith(PREFIX)


def parse_address(source: str) -> Address:
    """The parts of `wandb:ENTITY/PROJECT?group=SWEEP`, perhaps with `&sweep_id=ID`.

    Raises:
        InputError: it is written in another way.
    """
    project, _, query = source.removeprefix(PREFIX).partition("?")
    wanted = dict(parse_qsl(query))
    group = wanted.pop("group", "")
    sweep_id = wanted.pop("sweep_id", None)
    if not project.strip("/") or project.count("/") > 1 or not group or wanted:
        raise InputError(
            "source", source, "is no address on W&B", f"Write {PREFIX}ENTITY/PROJECT?group=SWEEP, the sweep's name."
        )
    return Address(project.strip("/"), group, sweep_id)


def open_group(source: str) -> WandbGroup:
    """Find a sweep's runs on W&B.

    Args:
        source: see `parse_address`.

    Raises:
        InputError: it is no address, W&B cannot be reached or knows no such project, the group is empty, holds runs
            that `stability` did not log or several sweeps, or none of its runs has come to a result.
    """
    address = parse_address(source)
    if not has_key():
        raise InputError("source", source, "needs a W&B API key, and none is configured", "Run `wandb login`.")
    with _as_input_error(source):
        found = _runs(address)
    records = [(run, _record(run, source)) for run in found]
    if not records:
        raise InputError(
            "source", source, "holds no runs", "Check the group: the sweep's name as W&B shows it under Group."
        )
    records = _of_one_sweep(records, address, source)
    runs = [(run, record) for run, record in records if "fingerprint" in record]
    if not any(run.summary.get("status") in TERMINAL for run, _ in runs):
        raise InputError(
            "source", source, f"has {len(runs)} runs, and none has a result yet", "Wait, or sync what is offline."
        )
    manifests = [record for _, record in records if "fingerprint" not in record]
    warnings: tuple[str, ...] = ()
    if not manifests:
        fingerprints = [record["fingerprint"] for _, record in runs]
        manifests = [{"sweep": address.group, "scales": {}, "runs": fingerprints}]
        warnings = (
            f"{source} has no run of job type analysis: its claims, its quantities, the names of its scales and the "
            "runs that were planned are not known.",
        )
    try:
        manifest = Manifest.model_validate(manifests[-1])
    except ValidationError as error:
        raise InputError("source", source, f"has a damaged analysis run ({error})", "Delete that run.") from error
    first = runs[0][0]
    return WandbGroup(source, manifest, tuple(runs), f"{first.entity}/{first.project}", warnings)


def write_records(group: WandbGroup, folder: Path, *, history: bool) -> SweepRecords:
    """Write the runs as `stability.tracking.record` would, as far as the analysis reads it.

    Args:
        group: opened.
        folder: empty.
        history: write the metrics too, which asks W&B for every run's history.

    Raises:
        InputError: W&B cannot be reached any more, or has a run whose id is no name for a folder.
    """
    for run, record in group.runs:
        if folder_name(run.id) != run.id:
            raise InputError("source", group.path, f"holds a run with the id {run.id!r}", "Delete that run.")
        target = RunFolder(folder / RUNS / run.id)
        target.path.mkdir(parents=True)
        header = {"schema_version": SCHEMA_VERSION, "fingerprint": record["fingerprint"]}
        write_json(target.path / "config.json", {**header, "config": record["config"]})
        write_json(
            target.path / "provenance.json", {"schema_version": SCHEMA_VERSION, "starts": [record.get("host", {})]}
        )
        known = {key: run.summary.get(key) for key in SUMMARY_KEYS}
        status = run.summary.get("status", "running")
        target.write_summary({**known, "fingerprint": record["fingerprint"], "status": status})
        if history:
            with _as_input_error(group.path):
                target.append(_rows(run))
    return SweepRecords(folder, group.manifest, group.project)


def _runs(address: Address) -> list[Any]:
    """All runs of a group, oldest first, with configs and summaries."""
    import wandb

    # W&B would try for minutes to reach a server that is not there.
    wandb.setup().settings.x_graphql_retry_max = RETRIES
    api = wandb.Api(timeout=REQUEST_TIMEOUT_S)
    filters = {"group": address.group}
    with _no_folders_left():
        return list(api.runs(address.project, filters, order="+created_at", per_page=RUNS_A_REQUEST, lazy=False))


@contextmanager
def _no_folders_left() -> Iterator[None]:
    """W&B makes an empty folder for each run that it lists, by default in the system's temporary one, and leaves it."""
    before = os.environ.get("WANDB_DIR")
    with TemporaryDirectory() as scratch:
        os.environ["WANDB_DIR"] = scratch
        try:
            yield
        finally:
            del os.environ["WANDB_DIR"]
            if before is not None:
                os.environ["WANDB_DIR"] = before


@contextmanager
def _as_input_error(source: str) -> Iterator[None]:
    """Whatever W&B raises as one line of ours: it has many kinds of errors, and none that names source and fix."""
    try:
        yield
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            "source",
            source,
            f"cannot be read from W&B ({problem})",
            "Check entity and project, that your key may read them, and the network.",
        ) from error


def _record(run: Any, source: str) -> Mapping[str, Any]:
    """What `stability` wrote into a run's config."""
    try:
        record = json.loads(run.config[RECORD])
    except (KeyError, TypeError, ValueError, RecursionError):
        record = None
    if not isinstance(record, Mapping) or not ("fingerprint" in record or "sweep" in record):
        raise InputError(
            "source",
            source,
            f"holds the run {run.id} ({run.name}), which `stability` did not log: its config has no `{RECORD}`",
            "Name a group that is one sweep, or move that run to another.",
        )
    return record


def _of_one_sweep(
    records: list[tuple[Any, Mapping[str, Any]]], address: Address, source: str
) -> list[tuple[Any, Mapping[str, Any]]]:
    """The runs of the sweep that is asked for; refused where there are several to choose from."""
    ids = {run.id: str(run.config.get("sweep_id")) for run, _ in records}
    distinct = sorted(set(ids.values()))
    if address.sweep_id is None and len(distinct) > 1:
        raise InputError(
            "source",
            source,
            f"holds {len(distinct)} sweeps of this name, from different results folders",
            f"Add &sweep_id= to it, one of {', '.join(distinct)}.",
        )
    if address.sweep_id is not None and address.sweep_id not in distinct:
        raise InputError("source", source, "holds no such sweep_id", f"It is one of {', '.join(distinct)}.")
    return [(run, record) for run, record in records if address.sweep_id in (None, ids[run.id])]


def _rows(run: Any) -> list[Row]:
    """A run's history as rows of a record, ascending in step; of a step that W&B has twice, what came last."""
    rows: dict[int, Row] = {}
    for item in run.scan_history():
        if isinstance(step := item.get("step"), int | float):
            row = rows.setdefault(int(step), {"step": int(step)})
            row |= {record_name(name): _number(value) for name, value in item.items() if _is_metric(name, value)}
    return [rows[step] for step in sorted(rows)]


def _is_metric(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "step" and isinstance(value, int | float | str)


def _number(value: float | str) -> float | None:
    """W&B sends what is not finite as text."""
    return None if isinstance(value, str) else value
