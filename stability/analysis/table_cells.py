"""One column of a part of a table file as numbers or words, or an error that names the first cell that is none."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from stability.errors import InputError

LARGEST_INT = 2**63 - 1
LONGEST_WORD = 1000
"""Characters of a name: it stands in every table and figure. A small compressed file may hold a cell of gigabytes."""

V = TypeVar("V", int, float)


class BadCell(Exception):
    """The cell of this row of a part is not what its column must hold."""

    def __init__(self, row: int, problem: str, fix: str) -> None:
        self.row, self.problem, self.fix = row, problem, fix
        super().__init__(problem)


@dataclass(frozen=True)
class Column:
    """One column of one part, read under a name of the contract.

    Attributes:
        name: what it is read as.
        cells: text, or whatever type the file has.
        places: the line, or row, of each cell.
        path: the file.
        unit: what `places` count.
    """

    name: str
    cells: pl.Series
    places: pl.Series
    path: Path
    unit: str

    def error(self, row: int, problem: str, fix: str) -> InputError:
        """An InputError that names the cell of this row."""
        value = self.cells[row]
        column = "" if self.cells.name == self.name else f"column {self.cells.name}, "
        where = f"{column}{self.unit} {self.places[row]} of {self.path}"
        text = "''" if value is None else repr(value[:LONGEST_WORD] if isinstance(value, str) else value)
        return InputError(self.name, text if len(text) < 80 else f"{text[:70]}...", f"{problem} ({where})", fix)

    def reals(self) -> pl.Series:
        """Float64: null where a cell is empty; NaN and infinities stay.

        Raises:
            InputError: a cell is not a number.
        """
        return self._read(reals)

    def wholes(self, smallest: int, required: bool = False) -> pl.Series:
        """Int64: null where a cell is empty; 2.4e6 is a whole number.

        Raises:
            InputError: a cell is no whole number or too small, or is empty where one is required.
        """
        return self._read(lambda cells: wholes(cells, smallest, required))

    def words(self) -> pl.Series:
        """String, without white space around it: null where a cell is empty.

        Raises:
            InputError: the column's type has no words, such as a list.
        """
        return self._read(words)

    def _read(self, reader: Callable[[pl.Series], pl.Series]) -> pl.Series:
        try:
            return reader(self.cells)
        except BadCell as bad:
            raise self.error(bad.row, bad.problem, bad.fix) from None


def reals(cells: pl.Series) -> pl.Series:
    """Cells as Float64, null where they are empty.

    Raises:
        BadCell: the first that is not a number.
    """
    return _numbers(cells, pl.Float64, float, BadCell(0, "is not a number", "Write a number such as 0.003 or 3e-3."))


def wholes(cells: pl.Series, smallest: int, required: bool = False) -> pl.Series:
    """Cells as Int64, null where they are empty.

    Raises:
        BadCell: the first that is not a whole number, too small, or empty where that is not allowed.
    """
    bad = BadCell(0, "is not a whole number", "Write one such as 2400000 or 2.4e6.")
    values = _numbers(cells, pl.Int64, _whole, bad)
    if required and values.null_count():
        raise BadCell(_first(values.is_null()), bad.problem, bad.fix)
    if values.len() and (values < smallest).any():
        row = _first(values < smallest)
        raise BadCell(row, f"is not between {smallest} and {LARGEST_INT}", "Write one that is.")
    return values


def words(cells: pl.Series) -> pl.Series:
    """Cells as String without white space around them, null where they are empty.

    Raises:
        BadCell: the first, when the column's type has no words.
    """
    dtype = cells.dtype
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        cells = cells.cast(pl.String)
        too_long = cells.str.len_chars() > LONGEST_WORD
        if too_long.any():
            raise BadCell(_first(too_long), f"has more than {LONGEST_WORD:,} characters", "Write a name.")
        stripped = cells.str.strip_chars()
        return stripped.set(stripped == "", None)
    if not (dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean):
        raise BadCell(0, f"is of the type {dtype}, which is not text", "Write text or numbers.")
    seen = cells.unique().drop_nulls()
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in seen]
    return cells.replace_strict(seen, pl.Series(texts, dtype=pl.String), default=None, return_dtype=pl.String)


def _first(mask: pl.Series) -> int:
    return int(mask.fill_null(False).arg_max() or 0)


def _numbers(
    cells: pl.Series, dtype: type[pl.Float64] | type[pl.Int64], parse: Callable[[str], V], bad: BadCell
) -> pl.Series:
    if cells.dtype in (pl.Categorical, pl.Enum):
        cells = cells.cast(pl.String)
    if cells.dtype == pl.String:
        return _parsed(cells, dtype, parse, bad)
    if cells.dtype == pl.Null:
        return cells.cast(dtype)
    if not cells.dtype.is_numeric():
        raise BadCell(0, f"is of the type {cells.dtype}, which is not a number", bad.fix)
    values = cells.cast(dtype, strict=False)
    if dtype == pl.Int64:  # a cast would cut 1.5 to 1, and turn what does not fit into null
        exact = cells.cast(pl.Float64)
        wrong = cells.is_not_null() & (values.is_null() | (exact != exact.floor()))
        if wrong.any():
            raise BadCell(_first(wrong), bad.problem, bad.fix)
    return values


def _parsed(
    cells: pl.Series, dtype: type[pl.Float64] | type[pl.Int64], parse: Callable[[str], V], bad: BadCell
) -> pl.Series:
    """Text as polars reads it, and as Python does where polars does not (` 1 `, `1_000`, `2.4e6` as a whole number)."""
    values = cells.cast(dtype, strict=False)
    rest = (cells.is_not_null() & values.is_null()).arg_true()
    if not rest.len():
        return values
    found: dict[str, V | None] = {}
    odd = cells.gather(rest)
    for text in odd.unique(maintain_order=True):
        try:
            found[text] = parse(text) if text.strip() else None
        except ValueError:
            raise BadCell(int(rest[_first(odd == text)]), bad.problem, bad.fix) from None
    return values.scatter(rest, odd.replace_strict(found, return_dtype=dtype))


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        number = float(text)
        if not (math.isfinite(number) and number.is_integer()):
            raise
        value = int(number)
    if abs(value) > LARGEST_INT:
        raise ValueError(text)
    return value
