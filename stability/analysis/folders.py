"""The records of one or several sweeps' results folders as a table with one row a run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stability.analysis.quantities import Quantity, metric_names, of_metrics
from stability.analysis.source import COLUMNS, RUN_INDEX, About, History, history_schema
from stability.arms import arm_labels, scale_name
from stability.errors import InputError
from stability.tracking import files, record

_Model = TypeVar("_Model", bound=BaseModel)
Whole = Annotated[int, Field(ge=0, lt=2**63)]
"""What a column of whole numbers can hold."""
Count = Annotated[int, Field(ge=1, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class SearchState(BaseModel):
    """How far a search for the stable edge has come."""

    model_config = ConfigDict(strict=True)

    round: int
    finished: bool


class Manifest(BaseModel):
    """The parts of sweep.json that the analysis reads."""

    model_config = ConfigDict(strict=True)

    sweep: str
    question: str = ""
    source: str = ""
    ladder: str = ""
    scales: dict[str, dict[str, Any]]
    runs: list[str]
    quantities: dict[str, dict[str, Any]] = {}
    claims: dict[str, dict[str, Any]] = {}
    forecasts: dict[str, dict[str, Any]] = {}
    commands: list[dict[str, Any]] = []
    search: SearchState | None = None


class _Summary(BaseModel):
    """The parts of a run's summary.json that the analysis reads; all but two may be missing while it runs."""

    model_config = ConfigDict(strict=True)

    fingerprint: str
    status: record.Status
    n_params: Count | None = None
    learning_rate: Positive | None = None
    seed: Whole | None = None
    data_seed: Whole | None = None
    steps: Whole | None = None
    loss_initial: Finite | None = None
    loss_validation: Finite | None = None
    attention_logit_max: Finite | None = None
    attention_logit_max_final: Finite | None = None


class _Config(BaseModel):
    """The parts of a run's scientific config that stand in for a summary which is not written yet."""

    model_config = ConfigDict(strict=True)

    learning_rate: Positive
    seed: Whole
    data_seed: Whole | None
    width: Count
    depth: Count
    head_dim: Count
    mlp_ratio: Count | Positive
    steps: Count | None = None

    @property
    def n_params(self) -> int:
        """Parameters without embedding and head: attention 4 width^2, MLP 2 mlp_ratio width^2, in each block."""
        return round(self.depth * (4 + 2 * self.mlp_ratio) * self.width**2)


_CONFIG_KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "seed": "seed",
    "data_seed": "data.seed",
    "width": "model.width",
    "depth": "model.depth",
    "head_dim": "model.head_dim",
    "mlp_ratio": "model.mlp_ratio",
    "steps": "training.steps",
}


class _Provenance(BaseModel):
    """The part of a run's provenance.json that the analysis reads."""

    model_config = ConfigDict(strict=True)

    starts: list[dict[str, Any]]


@dataclass(frozen=True)
class SweepRecords:
    """One results folder, its manifest read.

    Attributes:
        path: the folder, as the user named it.
        manifest: the parts of its sweep.json that the analysis reads.
        named: what stands before the names of its runs' folders instead of its path, where that means nothing.
    """

    path: Path
    manifest: Manifest
    named: str | None = None


@dataclass(frozen=True)
class FolderRuns:
    """The runs of results folders.

    Attributes:
        runs: one row a run: the columns of `COLUMNS`, and one Float64 column for each quantity.
        metrics: what a quantity can be made of; all of it only where a quantity is null everywhere.
        complete: every run planned has finished or diverged, and no search is under way.
        warnings: what a reader ought to know.
        about: where the results are from.
        records: fingerprint -> the run's folder.
        history: the runs step by step; its `RUN_INDEX` counts the rows of `runs`.
    """

    runs: pl.DataFrame
    metrics: frozenset[str]
    complete: bool
    warnings: tuple[str, ...]
    about: About
    records: Mapping[str, Path]
    history: History


def open_folder(path: Path) -> SweepRecords:
    """Read the manifest of a sweep's results folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if not (path / record.MANIFEST).is_file():
        raise InputError(
            "source",
            path,
            f"is neither a table file nor a sweep's results folder (it holds no {record.MANIFEST})",
            "Name the folder that the sweep wrote, or a CSV or Parquet file.",
        )
    manifest = _parsed(Manifest, path / record.MANIFEST, _content(path / record.MANIFEST))
    return SweepRecords(path, manifest)


def read_folders(folders: Sequence[SweepRecords], quantities: Mapping[str, Quantity], *, prefix: bool) -> FolderRuns:
    """Read the runs of all folders; their arms are what sets them apart over all of them together.

    Args:
        folders: opened.
        quantities: what to read from every run's metrics.
        prefix: put each folder, as it was named, before its runs' `folder`.

    Raises:
        InputError: a record is damaged, the folders disagree about a run or a scale, or one holds a run twice.
    """
    found = [run for folder in folders for run in _read_runs(folder, prefix)]
    runs, twice = _each_once(found)
    scales = _scales(folders)
    arms = arm_labels([run.flat for run in runs], scales)
    rows = [
        {
            **_row(run),
            "scale": scale_name(run.flat, scales),
            "arm": arm,
            **_quantities_of(run, quantities),
        }
        for run, arm in zip(runs, arms, strict=True)
    ]
    status: dict[str, str] = {run.summary.fingerprint: run.summary.status for run in runs}
    planned = list(dict.fromkeys([*(one for folder in folders for one in folder.manifest.runs), *status]))
    pending = [fingerprint for fingerprint in planned if status.get(fingerprint) not in record.TERMINAL]
    schema: dict[str, type[pl.DataType]] = {**COLUMNS, **dict.fromkeys(quantities, pl.Float64)}
    table = pl.DataFrame(rows, schema=schema)
    made_with = _made_with(runs)
    searching = any(folder.manifest.search and not folder.manifest.search.finished for folder in folders)
    searched = [warning for folder in folders for warning in _search_warnings(folder.manifest)]
    return FolderRuns(
        table,
        _metrics_seen(runs, table, quantities),
        not pending and not searching,
        (*twice, *_pending_warning(planned, pending, status), *searched, *_mixture_warnings(made_with)),
        _about([folder.manifest for folder in folders], made_with),
        {run.summary.fingerprint: run.folder for run in runs},
        lambda metrics, count: _history(runs, metrics, count),
    )


@dataclass(frozen=True)
class _Run:
    folder: Path
    named: str
    summary: _Summary
    config: _Config
    flat: Mapping[str, Any]

    @property
    def metrics(self) -> Path:
        return record.RunFolder(self.folder).metrics


def _read_runs(folder: SweepRecords, prefix: bool) -> list[_Run]:
    runs = [_read_run(one.path, folder, prefix) for one in record.run_folders(folder.path)]
    _refuse_duplicates(runs)
    return runs


def _read_run(path: Path, folder: SweepRecords, prefix: bool) -> _Run:
    summary = _parsed(_Summary, path / "summary.json", _content(path / "summary.json"))
    config_path = path / "config.json"
    config = _content(config_path).get("config")
    if not isinstance(config, Mapping):
        raise InputError("file", config_path, "holds no `config`", "Restore it, or delete its folder.")
    flat = record.flatten(config)
    values = {name: flat[key] for name, key in _CONFIG_KEYS.items() if key in flat}
    named = (path if prefix else path.relative_to(folder.path)).as_posix()
    if folder.named is not None:
        named = f"{folder.named}/{path.name}"
    return _Run(path, named, summary, _parsed(_Config, config_path, values, _CONFIG_KEYS), flat)


def _row(run: _Run) -> dict[str, Any]:
    """One row; what the summary does not hold yet is taken from the config."""
    row = run.summary.model_dump()
    for key in ("n_params", "learning_rate", "seed", "data_seed"):
        if row[key] is None:
            row[key] = getattr(run.config, key)
    if row["data_seed"] is None:  # null in a config means: as `seed`
        row["data_seed"] = row["seed"]
    return {**row, "folder": run.named}


def _quantities_of(run: _Run, quantities: Mapping[str, Quantity]) -> dict[str, float | None]:
    if not quantities:
        return {}
    with record.Metrics(run.metrics) as metrics:
        return {name: of_metrics(quantity, metrics, run.summary.steps) for name, quantity in quantities.items()}


def _metrics_seen(runs: Sequence[_Run], table: pl.DataFrame, quantities: Mapping[str, Quantity]) -> frozenset[str]:
    """The metrics that the runs have; those of all quantities at least. Looked up only where a quantity is all null."""
    empty = [name for name in quantities if table[name].null_count() == table.height]
    seen = {quantity.metric for name, quantity in quantities.items() if name not in empty}
    for run in runs if empty else ():
        with record.Metrics(run.metrics) as metrics:
            seen |= metric_names(metrics)
    return frozenset(seen)


def _scales(folders: Sequence[SweepRecords]) -> dict[str, Mapping[str, Any]]:
    """The ladders of all folders as one."""
    scales: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        for name, settings in folder.manifest.scales.items():
            if scales.setdefault(name, settings) != settings:
                raise InputError(
                    "source",
                    folder.path,
                    f"has a scale {name} of {settings}, which is {scales[name]} in another source",
                    "Analyse them one by one, or rename the scale in a sweep.json.",
                )
    return scales


def _each_once(runs: Sequence[_Run]) -> tuple[list[_Run], list[str]]:
    """The runs of several folders, each fingerprint once, and a warning of those that stood in several."""
    kept: dict[str, _Run] = {}
    twice: list[_Run] = []
    for run in runs:
        other = kept.setdefault(run.summary.fingerprint, run)
        if other is run:
            continue
        twice.append(run)
        done = [one for one in (other, run) if one.summary.status in record.TERMINAL]
        if len(done) == 2 and other.summary != run.summary:
            raise InputError(
                "fingerprint",
                run.summary.fingerprint,
                f"has other results in {run.folder} than in {other.folder}",
                "Leave one of the two sources out.",
            )
        kept[run.summary.fingerprint] = done[0] if done else other
    if not twice:
        return list(kept.values()), []
    first = twice[0]
    return list(kept.values()), [
        f"{len(twice)} runs are in more than one source, and counted once ({first.summary.fingerprint} in "
        f"{kept[first.summary.fingerprint].named} and elsewhere)."
    ]


def _content(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except OSError as error:
        raise InputError(
            "file", path, f"cannot be read ({error.strerror})", "Restore it, or delete its folder."
        ) from error


def _parsed(
    model: type[_Model], path: Path, content: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> _Model:
    """The content of a file checked for the types that the analysis relies on."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        key = (names or {}).get(field, field)
        raise InputError(
            "file", path, f"is damaged at `{key}` ({first['msg']})", "Restore it, or delete its folder."
        ) from error


def _refuse_duplicates(runs: Sequence[_Run]) -> None:
    folders: dict[str, Path] = {}
    for run in runs:
        other = folders.setdefault(run.summary.fingerprint, run.folder)
        if other != run.folder:
            raise InputError(
                "fingerprint", run.summary.fingerprint, f"is in two folders, {other} and {run.folder}", "Delete one."
            )


def _pending_warning(planned: Sequence[str], pending: Sequence[str], status: Mapping[str, str]) -> Iterator[str]:
    if pending:
        counts = Counter(status.get(fingerprint, "not started") for fingerprint in pending)
        states = ", ".join(f"{state}: {count}" for state, count in sorted(counts.items()))
        yield f"{len(pending)} of {len(planned)} planned runs have no result yet and are not counted ({states})."


def _search_warnings(manifest: Manifest) -> Iterator[str]:
    if manifest.search is None:
        return
    if not manifest.search.finished:
        yield (
            f"The search for the stable edge stands in round {manifest.search.round} and is not at its end: brackets "
            "are wider than asked for."
        )
    yield (
        f"The learning rates of {manifest.sweep} were searched for the stable edge and lie close together there, so "
        "sensitivity says nothing: it needs a grid."
    )


def _history(runs: Sequence[_Run], metrics: Sequence[str], count: int) -> pl.DataFrame:
    rows = []
    for index, run in enumerate(runs):
        with record.Metrics(run.metrics) as file:
            rows += [{RUN_INDEX: index, **row} for row in file.sample(metrics, count)]
    return pl.DataFrame(rows, schema=history_schema(metrics))


def _about(manifests: Sequence[Manifest], made_with: Mapping[str, tuple[str, ...]]) -> About:
    def each_once(values: Iterable[str]) -> str:
        return " / ".join(dict.fromkeys(filter(None, values)))

    return About(
        question=each_once(manifest.question for manifest in manifests),
        source=each_once(manifest.source for manifest in manifests),
        ladder=each_once(manifest.ladder for manifest in manifests),
        commands=tuple(dict.fromkeys(str(one.get("command")) for each in manifests for one in each.commands)),
        made_with={key: values for key, values in made_with.items() if key not in _COMPUTED_HOW or len(values) > 1},
    )


_COMPUTED_HOW = (
    "execution.mesh.data",
    "execution.mesh.fsdp",
    "settings.compute.attention",
    "settings.compute.head_chunk",
    "settings.compute.micro_batch",
    "settings.compute.rematerialise",
)
"""Devices inside a lane, and how they compute: the same in almost every sweep, and then nothing to tell."""
_SAME_OVER_RUNS = ("device", "backend", "lanes", *_COMPUTED_HOW, "versions.jax", "versions.stability")
"""What changes rounding at least: near the stability edge, that can change a result."""
_TOLD_OF_A_START = (*_SAME_OVER_RUNS, "versions.python", "versions.flax", "versions.optax", "versions.numpy")


def _made_with(runs: Sequence[_Run]) -> dict[str, tuple[str, ...]]:
    """All values of what the starts of the runs tell, each once, sorted."""
    paths = [run.folder / "provenance.json" for run in runs]
    found = [_parsed(_Provenance, path, _content(path)) for path in paths if path.exists()]
    starts = [record.flatten(start) for one in found for start in one.starts]
    told = {key: {str(start[key]) for start in starts if key in start} for key in _TOLD_OF_A_START}
    return {key: tuple(sorted(values)) for key, values in told.items() if values}


def _mixture_warnings(made_with: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """One warning for each thing outside the fingerprint that differs between starts and may show in a curve."""
    for key in _SAME_OVER_RUNS:
        values = made_with.get(key, ())
        if len(values) > 1:
            yield f"The runs mix {key}: {', '.join(values)}. Differences near the stability edge may come from that."
