"""The rows of a table file, typed: cells to numbers and words, and rows to the runs they are of."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import polars as pl

from stability.analysis.source import SEAT
from stability.analysis.table_cells import LARGEST_INT, BadCell, Column, reals
from stability.analysis.table_columns import MEASURED, PLACE, RUN, Roles, rest
from stability.analysis.table_parts import Part, TableFile
from stability.arms import ONLY_ARM
from stability.tracking import record

STATUSES = pl.Enum(get_args(record.Status))


class Rows:
    """The typed rows of a file while its parts go by.

    Attributes:
        frames: one for each part: `RUN` (a number for each run), `PLACE`, and every column that is not of `SEAT`.
    """

    def __init__(self, file: TableFile, roles: Roles) -> None:
        self.file, self.roles = file, roles
        self.frames: list[pl.DataFrame] = []
        self._others, self._taken = rest(file, roles)
        self._numeric: set[str] = set()
        self._texts: dict[str, tuple[int, Any]] = {}
        self._runs: dict[tuple[Any, ...], int] = {}

    @property
    def has_steps(self) -> bool:
        """One row a step."""
        return "step" in self.roles

    @property
    def others(self) -> list[str]:
        """The columns beyond the contract that hold numbers, and nothing else."""
        return [name for name in self._others if name in self._numeric and name not in self._texts]

    @property
    def metrics(self) -> dict[str, str]:
        """What a quantity can be made of, by its names: in the file and in the contract."""
        own = {name: name for name in self.others}
        measured = {name: self.roles[name][0] for name in MEASURED if name in self.roles}
        return own | {column: name for name, column in measured.items()} | {name: name for name in measured}

    def add(self, part: Part) -> None:
        """Type a part's rows; raises InputError for the first cell that cannot be."""
        if not part.cells.height:
            return
        columns = {name: self._column(name, part) for name in self.roles if name != "arm"}
        seats = self._seats(columns, self._arms(part))
        series = {
            name: column.reals() if name in MEASURED else column.wholes(0, required=name == "step")
            for name, column in columns.items()
            if name in (*MEASURED, "step", "steps")
        }
        if "status" in columns:
            series["status"] = _statuses(columns["status"])
        series |= self._numbers(part)
        self.frames.append(pl.DataFrame({RUN: self._number_runs(seats), PLACE: part.places, **series}))

    def frame(self) -> pl.DataFrame:
        """All rows; the parts are let go."""
        kept = set(self._others) - set(self.others)
        frames, self.frames = [frame.drop(kept, strict=False) for frame in self.frames], []
        return pl.concat(frames, rechunk=True)

    def seats(self) -> pl.DataFrame:
        """The runs by number, with what tells them apart."""
        schema = dict(zip(SEAT, (pl.String, pl.String, pl.Int64, pl.Float64, pl.Int64), strict=True))
        return pl.DataFrame(list(self._runs), schema=schema, orient="row")

    def seat(self, run: int) -> str:
        """A run as an error names it."""
        arm, _, n_params, learning_rate, seed = list(self._runs)[run]
        return f"arm {arm}, n_params {n_params}, learning_rate {learning_rate:g}, seed {seed}"

    def warnings(self) -> Iterator[str]:
        """Of columns that were not used."""
        name = self.file.path.name
        words_only = [one for one in self._others if one not in self._numeric]
        if not all(self.file.header):
            words_only.append("one without a name")
        if words_only:
            yield f"Columns of {name} that were not used: {', '.join(words_only)}."
        for column, (place, text) in self._texts.items():
            if column in self._numeric:
                where = f"{self.file.unit} {place}"
                yield f"The column {column} of {name} was not used: it holds {text!r} on {where} beside numbers."
        if self._taken:
            yield f"Columns of {name} that were not used, their names being taken: {', '.join(self._taken)}."

    def _column(self, name: str, part: Part, column: str | None = None) -> Column:
        cells = part.cells[column or self.roles[name][0]]
        return Column(name, cells, part.places, self.file.path, self.file.unit)

    def _arms(self, part: Part) -> pl.Series:
        columns = self.roles.get("arm", ())
        if not columns:
            return pl.Series([ONLY_ARM]).new_from_index(0, part.cells.height)
        values = [self._column("arm", part, column).words() for column in columns]
        if len(columns) == 1:
            return values[0].fill_null(ONLY_ARM)
        named = [pl.lit(f"{name}=") + value.fill_null("null") for name, value in zip(columns, values, strict=True)]
        return pl.select(pl.concat_str(named, separator=", ").alias("arm"))["arm"]

    def _seats(self, columns: Mapping[str, Column], arms: pl.Series) -> pl.DataFrame:
        n_params = columns["n_params"].wholes(1, required=True)
        learning_rates = columns["learning_rate"].reals()
        wrong = ~(learning_rates.is_finite() & (learning_rates > 0)).fill_null(False)
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise columns["learning_rate"].error(row, "is not a positive number", "Write one such as 0.003 or 3e-3.")
        count = arms.len()
        scales = columns["scale"].words() if "scale" in columns else pl.repeat(None, count, dtype=pl.String, eager=True)
        seeds = columns["seed"].wholes(-LARGEST_INT).fill_null(0) if "seed" in columns else pl.zeros(count, eager=True)
        values = (arms, scales, n_params, learning_rates, seeds.cast(pl.Int64))
        return pl.DataFrame(dict(zip(SEAT, values, strict=True)))

    def _number_runs(self, seats: pl.DataFrame) -> pl.Series:
        """The number of each row's run, runs being counted as they appear in the file."""
        is_first = pl.int_range(pl.len()) == 0
        changes = seats.select(is_first | pl.any_horizontal(pl.all().ne_missing(pl.all().shift()))).to_series()
        stretches = seats.filter(changes)  # most files hold the rows of a run one after the other
        seen = stretches.unique(maintain_order=True)
        numbers = [self._runs.setdefault(seat, len(self._runs)) for seat in seen.iter_rows()]
        numbered = seen.with_columns(pl.Series(RUN, numbers, dtype=pl.UInt32))
        found = stretches.join(numbered, on=list(SEAT), how="left", nulls_equal=True, maintain_order="left")[RUN]
        return found.gather(changes.cum_sum() - 1)

    def _numbers(self, part: Part) -> dict[str, pl.Series]:
        """The columns beyond the contract, as long as they hold nothing but numbers."""
        found = {}
        for name in self._others:
            if name in self._texts:
                continue
            cells = part.cells[name]
            try:
                found[name] = reals(cells)
                is_numeric = found[name].null_count() < cells.len()
            except BadCell as bad:
                self._texts[name] = (part.places[bad.row], cells[bad.row])
                is_numeric = (
                    cells.dtype == pl.String and cells.cast(pl.Float64, strict=False).null_count() < cells.len()
                )
            if is_numeric:
                self._numeric.add(name)
        return found


def _statuses(column: Column) -> pl.Series:
    """The cells of a column as statuses, null where they are empty."""
    texts = column.words()
    known = STATUSES.categories
    strange = texts.is_not_null() & ~texts.is_in(known)
    if strange.any():
        row = int(strange.arg_max() or 0)
        raise column.error(row, "is no status of a run", f"Write {', '.join(known)}, or nothing.")
    return texts.cast(STATUSES)
