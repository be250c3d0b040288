"""Records, or any CSV table, as one table with one row a run.

Everything that the analysis knows about runs comes through `read`; past it there is a polars DataFrame with the columns
of `COLUMNS` and nothing that depends on where the runs came from.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from stability.arms import ONLY_ARM, arm_labels, scale_name
from stability.errors import InputError
from stability.tracking import record

COLUMNS: Mapping[str, type[pl.DataType]] = {
    "fingerprint": pl.String,
    "folder": pl.String,
    "scale": pl.String,
    "n_params": pl.Int64,
    "arm": pl.String,
    "learning_rate": pl.Float64,
    "seed": pl.Int64,
    "data_seed": pl.Int64,
    "status": pl.String,
    "steps": pl.Int64,
    "loss_initial": pl.Float64,
    "loss_validation": pl.Float64,
    "attention_logit_max": pl.Float64,
    "attention_logit_max_final": pl.Float64,
}
"""The columns of a table of runs, in order. docs/records.md defines them."""

CSV_REQUIRED = ("n_params", "learning_rate", "loss")
CSV_OPTIONAL = ("arm", "seed", "loss_initial", "attention_logit_max")

_LARGEST_INT = 2**63 - 1

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Source:
    """The runs of one source, and what is known about them as a whole.

    Attributes:
        table: one row a run, columns as in `COLUMNS`, sorted by arm, n_params, learning rate and seed.
        sweep: the sweep's name, or the stem of the CSV file.
        complete: every planned run has finished or diverged (always true for a CSV).
        warnings: what a reader of the results ought to know.
    """

    table: pl.DataFrame
    sweep: str
    complete: bool
    warnings: tuple[str, ...]


def load(path: str | Path) -> pl.DataFrame:
    """The runs of a sweep's results folder or of a CSV file as a table: `read(path).table`.

    Raises:
        InputError: as `read`.
    """
    return read(path).table


def read(path: str | Path) -> Source:
    """Read a sweep's results folder (it holds `sweep.json`) or a CSV file (see docs/records.md).

    Raises:
        InputError: there is no such source, a record file is damaged, or a line of the CSV is not a run.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_csv(path)
    raise InputError("source", path, "does not exist", "Name a sweep's results folder or a CSV file.")


def _table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=dict(COLUMNS))
    return table.sort("arm", "n_params", "learning_rate", "seed", "data_seed", "fingerprint")


# --- a sweep's results folder ---------------------------------------------------------------------------------------


class _Manifest(BaseModel):
    """The parts of sweep.json that the analysis reads."""

    model_config = ConfigDict(strict=True)

    sweep: str
    scales: dict[str, dict[str, Any]]
    runs: list[str]


class _Summary(BaseModel):
    """The parts of a run's summary.json that the analysis reads; all but two may be missing while it runs."""

    model_config = ConfigDict(strict=True)

    fingerprint: str
    status: record.Status
    n_params: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    data_seed: int | None = None
    steps: int | None = None
    loss_initial: float | None = None
    loss_validation: float | None = None
    attention_logit_max: float | None = None
    attention_logit_max_final: float | None = None


class _Config(BaseModel):
    """The parts of a run's scientific config that stand in for a summary which is not written yet."""

    model_config = ConfigDict(strict=True)

    learning_rate: float
    seed: int
    data_seed: int | None
    width: int
    depth: int
    head_dim: int
    mlp_ratio: int | float

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
}


@dataclass(frozen=True)
class _Run:
    folder: Path
    summary: _Summary
    config: _Config
    flat: Mapping[str, Any]


def _read_folder(path: Path) -> Source:
    if not (path / record.MANIFEST).is_file():
        raise InputError(
            "source",
            path,
            f"is neither a CSV file nor a sweep's results folder (it holds no {record.MANIFEST})",
            "Name the folder that the sweep wrote, or a CSV file.",
        )
    manifest = _parsed(_Manifest, path / record.MANIFEST, _content(path / record.MANIFEST))
    runs = [_read_run(folder.path) for folder in record.run_folders(path)]
    _refuse_duplicates(runs)
    arms = arm_labels([run.flat for run in runs], manifest.scales)
    rows = [
        _folder_row(run, arm, scale_name(run.flat, manifest.scales), path) for run, arm in zip(runs, arms, strict=True)
    ]
    status: dict[str, str] = {run.summary.fingerprint: run.summary.status for run in runs}
    planned = list(dict.fromkeys([*manifest.runs, *status]))
    pending = [fingerprint for fingerprint in planned if status.get(fingerprint) not in record.TERMINAL]
    warnings = [*_pending_warning(planned, pending, status), *_mixture_warnings(runs)]
    return Source(_table(rows), manifest.sweep, not pending, tuple(warnings))


def _read_run(folder: Path) -> _Run:
    summary = _parsed(_Summary, folder / "summary.json", _content(folder / "summary.json"))
    config_path = folder / "config.json"
    config = _content(config_path).get("config")
    if not isinstance(config, Mapping):
        raise InputError("file", config_path, "holds no `config`", "Restore it, or delete its folder.")
    flat = record.flatten(config)
    values = {name: flat[key] for name, key in _CONFIG_KEYS.items() if key in flat}
    return _Run(folder, summary, _parsed(_Config, config_path, values, _CONFIG_KEYS), flat)


def _folder_row(run: _Run, arm: str, scale: str, sweep_folder: Path) -> dict[str, Any]:
    """One row; what the summary does not hold yet is taken from the config."""
    row = run.summary.model_dump()
    for key in ("n_params", "learning_rate", "seed", "data_seed"):
        if row[key] is None:
            row[key] = getattr(run.config, key)
    if row["data_seed"] is None:  # null in a config means: as `seed`
        row["data_seed"] = row["seed"]
    return {**row, "folder": run.folder.relative_to(sweep_folder).as_posix(), "scale": scale, "arm": arm}


def _content(path: Path) -> dict[str, Any]:
    try:
        return record.read_json(path)
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


_SAME_OVER_RUNS = ("device", "backend", "lanes", "versions.jax", "versions.stability")
"""What changes rounding at least: near the stability edge, that can change a result."""


def _mixture_warnings(runs: Sequence[_Run]) -> Iterator[str]:
    """One warning for each thing outside the fingerprint that differs between starts and may show in a curve."""
    paths = [run.folder / "provenance.json" for run in runs]
    starts = [record.flatten(start) for path in paths if path.exists() for start in _content(path).get("starts", [])]
    for key in _SAME_OVER_RUNS:
        values = sorted({str(start[key]) for start in starts if key in start})
        if len(values) > 1:
            yield f"The runs mix {key}: {', '.join(values)}. Differences near the stability edge may come from that."


# --- a CSV file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """One line of a CSV; its methods turn a cell into a value, or name the line in an InputError."""

    path: Path
    number: int
    cells: Mapping[str, str]

    def error(self, column: str, problem: str, fix: str) -> InputError:
        """An InputError that names this line."""
        return InputError(
            column, repr(self.cells.get(column, "")), f"{problem} (line {self.number} of {self.path})", fix
        )

    def text(self, column: str) -> str:
        """The cell without white space around it; empty when the column is missing."""
        return self.cells.get(column, "").strip()

    def real(self, column: str) -> float:
        """The cell as a number, which may be NaN or infinite; an empty one is NaN."""
        text = self.text(column)
        try:
            return float(text) if text else math.nan
        except ValueError:
            raise self.error(column, "is not a number", "Write a number such as 0.003 or 3e-3.") from None

    def real_or_none(self, column: str) -> float | None:
        """The cell as a finite number, or None."""
        value = self.real(column)
        return value if math.isfinite(value) else None

    def integer(self, column: str, smallest: int, default: int | None = None) -> int:
        """The cell as an integer; 2.4e6 is one."""
        text = self.text(column)
        if not text and default is not None:
            return default
        try:
            value = int(text)
        except ValueError:
            number = self.real(column)
            if not (math.isfinite(number) and number == int(number)):
                raise self.error(column, "is not a whole number", "Write one such as 2400000 or 2.4e6.") from None
            value = int(number)
        if not smallest <= value <= _LARGEST_INT:
            raise self.error(column, f"is not between {smallest} and {_LARGEST_INT}", "Write one that is.")
        return value


def _read_csv(path: Path) -> Source:
    header, lines = _lines(path)
    rows = [_csv_row(line) for line in lines]
    _refuse_duplicate_lines(lines, rows)
    names = size_names({row["n_params"] for row in rows})
    for row in rows:
        row["scale"] = names[row["n_params"]]
    unknown = [column for column in header if column not in (*CSV_REQUIRED, *CSV_OPTIONAL)]
    warnings = (f"Columns of {path.name} that were not used: {', '.join(unknown)}.",) if unknown else ()
    return Source(_table(rows), path.stem, True, warnings)


def _lines(path: Path) -> tuple[list[str], list[_Line]]:
    """The header and the lines that are not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            numbered = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("source", path, f"is not CSV text in UTF-8 ({error})", "Save it as UTF-8 CSV.") from error
    except OSError as error:
        raise InputError("source", path, f"cannot be read ({error.strerror})", "Check its permissions.") from error
    if not numbered:
        raise InputError("source", path, "has a header but no runs", "Add one line for each run.")
    for number, cells in numbered:
        if len(cells) != len(header):
            raise InputError(
                "source",
                path,
                f"has {len(cells)} cells on line {number} and {len(header)} columns",
                "Give every line one cell for each column.",
            )
    return header, [_Line(path, number, dict(zip(header, cells, strict=True))) for number, cells in numbered]


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise InputError("source", path, "is empty", f"Start it with a header: {','.join(CSV_REQUIRED)}.")
    missing = [column for column in CSV_REQUIRED if column not in header]
    if missing:
        raise InputError(
            "source",
            path,
            f"lacks the columns {', '.join(missing)}",
            f"The header must name {', '.join(CSV_REQUIRED)}, and may name {', '.join(CSV_OPTIONAL)}.",
        )
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise InputError("source", path, f"names the columns {', '.join(twice)} twice", "Name every column once.")


def _csv_row(line: _Line) -> dict[str, Any]:
    learning_rate = line.real("learning_rate")
    if not 0 < learning_rate < math.inf:
        raise line.error("learning_rate", "is not a positive number", "Write one such as 0.003 or 3e-3.")
    loss, loss_initial = line.real_or_none("loss"), line.real_or_none("loss_initial")
    # SCIENCE: a run is diverged when its loss is not finite, or ends above the loss at initialisation.
    diverged = loss is None or (loss_initial is not None and loss > loss_initial)
    return {
        "n_params": line.integer("n_params", smallest=1),
        "arm": line.text("arm") or ONLY_ARM,
        "learning_rate": learning_rate,
        "seed": line.integer("seed", smallest=-_LARGEST_INT, default=0),
        "status": "diverged" if diverged else "finished",
        "loss_initial": loss_initial,
        "loss_validation": loss,
        "attention_logit_max": line.real_or_none("attention_logit_max"),
    }


def _refuse_duplicate_lines(lines: Sequence[_Line], rows: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in zip(lines, rows, strict=True):
        key = tuple(row[name] for name in ("arm", "n_params", "learning_rate", "seed"))
        first = seen.setdefault(key, line.number)
        if first != line.number:
            raise InputError(
                "source",
                line.path,
                f"has the same arm, n_params, learning_rate and seed on lines {first} and {line.number}",
                "Delete one of them, or tell them apart by `arm` or `seed`.",
            )


def size_names(sizes: set[int]) -> dict[int, str]:
    """A readable name for each number of parameters (2400000 is `2.4M`), with as many digits as tell them apart."""
    for digits in range(3, 19):
        names = {size: size_name(size, digits) for size in sizes}
        if len(set(names.values())) == len(sizes):
            return names
    return {size: str(size) for size in sizes}


def size_name(size: int, digits: int = 3) -> str:
    """A number of parameters to so many significant digits, in units of k, M, B or T."""
    rounded = round(size, digits - len(str(size)))
    for factor, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if rounded >= factor:
            return f"{rounded / factor:.{digits}g}{unit}"
    return str(rounded)
