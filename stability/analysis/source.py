"""The table of runs that every measurement works on, wherever the runs came from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

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
"""The columns of a table of runs, in order. docs/records.md defines them. Quantities follow, as Float64."""

SEAT = ("arm", "scale", "n_params", "learning_rate", "seed")
"""What tells the runs of a table apart."""

RESERVED = frozenset({*COLUMNS, "loss", "step", "diverged"})
"""Names that a quantity cannot have: they mean something else in a table of runs."""


RUN_INDEX = "_run"
"""In a history: which row of the table of runs a row is of."""

History = Callable[[Sequence[str], int], pl.DataFrame]
"""(metrics, count) -> up to so many rows of each run, evenly spread over its training, the last among them.

Columns: `RUN_INDEX`, `step` and the metrics as Float64, null where a row does not have one. Runs ascend, and in a run
the steps. A run without any of the metrics has no rows.
"""


def no_history(metrics: Sequence[str], count: int) -> pl.DataFrame:
    """The history of runs that are known by their results only."""
    return pl.DataFrame(schema=history_schema(metrics))


def history_schema(metrics: Sequence[str]) -> dict[str, type[pl.DataType]]:
    """The columns of a history."""
    return {RUN_INDEX: pl.Int64, "step": pl.Int64, **dict.fromkeys(metrics, pl.Float64)}


@dataclass(frozen=True)
class About:
    """What a reader is told of how the results came about; all of it empty where that is not known.

    Attributes:
        question: what the sweep asks.
        source: paper, section and figure that the question is from.
        ladder: the ladder's name.
        commands: every command that trained runs of it, oldest first.
        made_with: device, lanes and versions -> every value that the runs' starts have.
    """

    question: str = ""
    source: str = ""
    ladder: str = ""
    commands: tuple[str, ...] = ()
    made_with: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The runs of one or several sources, and what is known about them as a whole.

    Attributes:
        table: one row a run, columns as in `COLUMNS` and then one Float64 column for each quantity, sorted by arm,
            n_params, learning rate and seed.
        sweep: the sweep's name, or the stem of the table's file; of several sources, joined by "+".
        complete: every planned run has finished or diverged.
        warnings: what a reader of the results ought to know.
        claims: name -> a statement that the sweep makes, as its manifest holds it.
        forecasts: name -> a quantity to forecast, as its manifest holds it.
        about: where the results are from.
        records: fingerprint -> the run's folder, for those that have one.
        history: the runs step by step; its `RUN_INDEX` counts the rows of `table`.
    """

    table: pl.DataFrame
    sweep: str
    complete: bool
    warnings: tuple[str, ...]
    claims: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forecasts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: About = field(default_factory=About)
    records: Mapping[str, Path] = field(default_factory=dict)
    history: History = no_history


def joined(tables: Iterable[pl.DataFrame], quantities: Iterable[str]) -> pl.DataFrame:
    """Tables with any of the columns of `COLUMNS` and of the quantities as one that has them all, sorted."""
    schema: dict[str, type[pl.DataType]] = {**COLUMNS, **dict.fromkeys(quantities, pl.Float64)}
    whole = [
        table.select(
            (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in schema.items()
        )
        for table in tables
    ]
    return pl.concat([pl.DataFrame(schema=schema), *whole]).sort(
        "arm", "n_params", "learning_rate", "seed", "data_seed", "fingerprint"
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
