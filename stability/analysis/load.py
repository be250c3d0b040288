"""Records of one or several sweeps, or any CSV or Parquet tables, as one table with one row a run.

Everything that the analysis knows about runs comes through `read`; past it there is a polars DataFrame with the columns
of `COLUMNS`, one column for each quantity, and nothing that depends on where the runs came from.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import polars as pl

from stability.analysis.folders import FolderRuns, SweepRecords, open_folder, read_folders
from stability.analysis.quantities import Quantity, parse_quantities, unknown_metric_warning
from stability.analysis.source import (
    COLUMNS,
    RUN_INDEX,
    SEAT,
    About,
    History,
    Source,
    history_schema,
    joined,
    size_name,
    size_names,
)
from stability.analysis.table_columns import PLACE, check_aliases
from stability.analysis.table_parts import TableFile, open_table
from stability.analysis.tables import TableRuns, read_table
from stability.analysis.wandb_source import WandbGroup, is_wandb, open_group, write_records
from stability.errors import InputError
from stability.tracking.record import TERMINAL

__all__ = ["COLUMNS", "Source", "load", "read", "size_name", "size_names"]

Paths = str | Path | Sequence[str | Path]
Definitions = Mapping[str, Mapping[str, Any] | Quantity]


def load(
    source: Paths, *, aliases: Mapping[str, str] | None = None, quantities: Definitions | None = None
) -> pl.DataFrame:
    """The runs of results folders and table files as one table, one row a run, which every measure takes.

    Args:
        source: a results folder, a CSV or a Parquet file, or several of them. The arms of folders are derived over all
            of them together, those of tables are as given.
        aliases: for tables of other frameworks: name of the contract -> column of the file. For `arm` it may name
            several columns with commas between them.
        quantities: name -> what to read from each run's metrics: `{"metric": ..., "at_step": ...}` or `last_steps` and
            `reduce` (docs/records.md, "Quantities"). Beside those that the sweeps declare.

    Returns:
        A table sorted by arm, n_params, learning rate and seed, with the columns

        - `fingerprint`, `folder`: what identifies the run, and where it is; null for a table's runs;
        - `scale`, `n_params`: its size, by name and in parameters without embedding and head;
        - `arm`: what sets it apart other than learning rate, size and seed;
        - `learning_rate`: the peak of its schedule;
        - `seed`, `data_seed`: of initialisation and data order;
        - `status`: `finished`, `diverged`, `failed` or `running`;
        - `steps`: updates made;
        - `loss_initial`, `loss_validation`: at initialisation and at the end, in nats per token;
        - `attention_logit_max`, `attention_logit_max_final`: over the training, and at its end;
        - and one for each quantity.

        What a run does not have is null. `stability.analysis.read` gives the same table with its warnings.

    Raises:
        InputError: there is no such source, a record file is damaged, a row of a table is no run, two sources
            contradict each other, or an alias or a quantity is bad.
    """
    return read(source, aliases=aliases, quantities=quantities).table


def read(source: Paths, *, aliases: Mapping[str, str] | None = None, quantities: Definitions | None = None) -> Source:
    """Read sweeps' results folders (they hold `sweep.json`), CSV or Parquet tables (docs/records.md) and groups on W&B.

    Args:
        source: one or several; they may be mixed. `wandb:ENTITY/PROJECT?group=SWEEP` is a sweep that was tracked by W&B
            (docs/wandb.md), and read as its folder would be. The arms of folders are derived over all of them together,
            those of tables are as given.
        aliases: for tables of other frameworks: name of the contract -> column of the file. For `arm` it may name
            several columns with commas between them.
        quantities: name -> `Quantity` or its fields; beside those of the folders' manifests, and instead of one of the
            same name.

    Raises:
        InputError: there is no such source, a record file is damaged, a row of a table is no run, two sources
            contradict each other, or an alias or a quantity is bad.
    """
    paths = _paths(source)
    several = len(paths) > 1
    opened = [_open(given) for given in paths]
    sweeps = [one for one in opened if not isinstance(one, TableFile)]
    files = [one for one in opened if isinstance(one, TableFile)]
    definitions = _definitions(sweeps, quantities or {})
    check_aliases(files, aliases or {})
    with ExitStack() as stack:
        folders = [_records(one, stack, history=bool(definitions)) for one in sweeps]
        from_folders = read_folders(folders, definitions, prefix=several) if folders else None
    tables = [read_table(file, aliases or {}, definitions) for file in files]
    parts = _parts(from_folders, tables, several)
    runs = _joined(parts, tables, definitions)
    histories = [one.history for one in (from_folders, *tables) if one]
    return Source(
        table=runs,
        sweep="+".join(one.path.stem if isinstance(one, TableFile) else one.manifest.sweep for one in opened),
        complete=(from_folders is None or from_folders.complete)
        and all(table.runs["status"].is_in(list(TERMINAL)).all() for table in tables),
        warnings=(
            *(warning for one in sweeps if isinstance(one, WandbGroup) for warning in one.warnings),
            *(from_folders.warnings if from_folders else ()),
            *(warning for table in tables for warning in table.warnings),
            *_null_everywhere(runs, from_folders, tables, definitions),
        ),
        claims=_merged("claims", [(sweep, sweep.manifest.claims) for sweep in sweeps]),
        forecasts=_merged("forecasts", [(sweep, sweep.manifest.forecasts) for sweep in sweeps]),
        about=from_folders.about if from_folders else About(),
        # Those from W&B were on disk for the reading only.
        records={name: path for name, path in from_folders.records.items() if path.exists()} if from_folders else {},
        history=_joined_history(runs, parts, histories),
    )


def _paths(source: Paths) -> list[str]:
    """The sources as they were named."""
    given = [str(one) for one in ([source] if isinstance(source, str | Path) else source)]
    if not given:
        raise InputError("source", "", "is missing", "Name a sweep's results folder, or a CSV or Parquet file.")
    seen: dict[Path, str] = {}
    for one in given:
        if seen.setdefault(Path(one).resolve(), one) != one or given.count(one) > 1:
            raise InputError("source", one, "is named twice", "Name every source once.")
    return given


def _open(given: str) -> SweepRecords | WandbGroup | TableFile:
    path = Path(given)
    if is_wandb(given):
        return open_group(given)
    if path.is_dir():
        return open_folder(path)
    if path.exists():
        return open_table(path)
    raise InputError("source", path, "does not exist", "Name a sweep's results folder, or a CSV or Parquet file.")


def _records(sweep: SweepRecords | WandbGroup, stack: ExitStack, *, history: bool) -> SweepRecords:
    """A sweep's records on disk, those of W&B for as long as the stack is open."""
    if isinstance(sweep, SweepRecords):
        return sweep
    return write_records(sweep, Path(stack.enter_context(TemporaryDirectory())), history=history)


def _definitions(folders: Sequence[SweepRecords | WandbGroup], given: Definitions) -> dict[str, Quantity]:
    """The quantities of all manifests and of the caller, who has the last word."""
    declared = []
    for folder in folders:
        own = {name: fields for name, fields in folder.manifest.quantities.items() if name not in given}
        try:
            declared.append((folder, parse_quantities(own)))
        except InputError as error:
            problem = f"{error.problem} (in the manifest of {folder.path})"
            raise InputError(error.key, error.value, problem, error.fix) from None
    return {**_merged("quantities", declared), **parse_quantities(given)}


T = TypeVar("T")


def _merged(key: str, parts: Sequence[tuple[SweepRecords | WandbGroup, Mapping[str, T]]]) -> dict[str, T]:
    """What several manifests hold under one key; refused where they hold different things under one name."""
    merged: dict[str, T] = {}
    for folder, part in parts:
        for name, value in part.items():
            if merged.setdefault(name, value) != value:
                raise InputError(
                    f"{key}.{name}", value, f"is {merged[name]} in another source than {folder.path}", "Leave one out."
                )
    return merged


def _parts(folders: FolderRuns | None, tables: Sequence[TableRuns], several: bool) -> list[pl.DataFrame]:
    """The runs of the folders, if any, then those of each table, with what only shows over all tables together."""
    names = size_names({size for table in tables for size in table.runs.filter(pl.col("scale").is_null())["n_params"]})
    parts = [folders.runs] if folders else []
    for table in tables:
        scale = pl.col("scale").fill_null(
            pl.col("n_params").replace_strict(names, default=None, return_dtype=pl.String)
        )
        folder = pl.lit(str(table.file.path) if several else None, pl.String).alias("folder")
        parts.append(table.runs.with_columns(scale, folder))
    return parts


def _joined(
    parts: Sequence[pl.DataFrame], tables: Sequence[TableRuns], definitions: Mapping[str, Quantity]
) -> pl.DataFrame:
    """One table of all runs."""
    if tables:
        _refuse_twins(parts, tables)
    read = dict.fromkeys([*definitions, *(name for table in tables for name in table.quantities)])
    return joined(parts, read)


_IDENTITY = (*SEAT, "data_seed", "fingerprint")
"""What tells the runs of all kinds of sources apart; tables leave the last two null."""


def _joined_history(runs: pl.DataFrame, parts: Sequence[pl.DataFrame], histories: Sequence[History]) -> History:
    """The histories of all parts as one, of the rows of `runs`."""
    seats = runs.select(*_IDENTITY, pl.int_range(pl.len(), dtype=pl.Int64).alias("place"))
    places = [part.select(name for name in _IDENTITY if name in part.columns) for part in parts]
    places = [
        part.with_row_index(RUN_INDEX).cast({RUN_INDEX: pl.Int64}).join(seats, on=part.columns, nulls_equal=True)
        for part in places
    ]

    def history(metrics: Sequence[str], count: int) -> pl.DataFrame:
        found = [
            one(metrics, count).join(place.select(RUN_INDEX, "place"), on=RUN_INDEX).drop(RUN_INDEX)
            for one, place in zip(histories, places, strict=True)
        ]
        schema = history_schema(metrics)
        return (
            pl.concat(found).rename({"place": RUN_INDEX}).select(*schema).sort(RUN_INDEX, "step", maintain_order=True)
        )

    return history


def _refuse_twins(parts: Sequence[pl.DataFrame], tables: Sequence[TableRuns]) -> None:
    """No run of a table may stand in a folder or in a table again, its own under a scale's name included."""
    first_table = len(parts) - len(tables)
    places = [pl.col("folder").alias("place")] * first_table
    places += [
        pl.format("{} {} of {}", pl.lit(table.file.unit), pl.col(PLACE), pl.lit(str(table.file.path))).alias("place")
        for table in tables
    ]
    seats = pl.concat(
        part.select(*SEAT, place, pl.lit(number).alias("part"))
        for number, (part, place) in enumerate(zip(parts, places, strict=True))
    )
    twins = seats.filter(pl.struct(SEAT).is_duplicated())
    for row in twins.filter(pl.col("part") >= first_table).head(1).iter_rows(named=True):
        same = twins.filter(pl.all_horizontal(pl.col(name) == row[name] for name in SEAT))["place"]
        raise InputError(
            "source",
            same[0],
            f"has the same arm, scale, n_params, learning_rate and seed as {same[1]}",
            "Delete one of them, or tell them apart by `arm`, `scale` or `seed`.",
        )


def _null_everywhere(
    runs: pl.DataFrame,
    folders: FolderRuns | None,
    tables: Sequence[TableRuns],
    definitions: Mapping[str, Quantity],
) -> Iterator[str]:
    """One warning for each quantity that no run has, though one that could have it was read."""
    known = {name for one in (folders, *tables) if one for name in one.metrics}
    read = {name for table in tables for name in table.quantities} | (set(definitions) if folders else set())
    for name, quantity in definitions.items():
        if runs[name].null_count() < runs.height or runs.is_empty():
            continue
        if quantity.metric not in known:
            yield unknown_metric_warning(name, quantity, known)
        elif name in read:
            yield (
                f"The quantity {name} is null everywhere: no run has a finite value of {quantity.metric} at the steps "
                "that it asks for."
            )
