"""A table file in parts: its cells as they stand there, and the line of each, so that an error can name it.

A part is some hundred thousand rows, so that a file of any length needs little memory beside what is kept of it. CSV
text is cut up by polars where every line is plain, and by the csv module where one is not. Nothing is evaluated.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from stability.errors import InputError

_BLOCK = 1 << 25
"""Bytes of plain CSV text read at a time."""
_ROWS = 200_000
"""Rows in a part made by the csv module, or of a Parquet file."""
_MOST_CELLS = 500_000_000
"""Of a Parquet file: 4 GB as numbers. A file of some kilobytes may hold a million times as many."""
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Part:
    """Some rows of a table file, in their order and without blank ones.

    Attributes:
        cells: the named columns: text, or whatever type a Parquet file has; null or white space where a cell is empty.
        places: the line, or row, that each row stands on.
    """

    cells: pl.DataFrame
    places: pl.Series


@dataclass(frozen=True)
class TableFile:
    """A table file whose header has been read.

    Attributes:
        path: where it is.
        header: the names of its columns; those of a CSV may be empty.
        unit: what `places` count, from 1: "line" of text (the header is one), or "row" of a Parquet file.
        parts: reads the rows.
    """

    path: Path
    header: tuple[str, ...]
    unit: str
    parts: Callable[[], Iterator[Part]]


def open_table(path: Path) -> TableFile:
    """Look at a CSV, tab-separated (.tsv) or Parquet file; the last is known by its first bytes, whatever its name.

    Raises:
        InputError: it cannot be read, is none of these, or has no header or a doubtful one. Iterating over its parts
            raises for the rest: a wrong number of cells, a stray quote, text that is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_PARQUET))
    except OSError as error:
        raise _unreadable(path, error) from error
    if start == _PARQUET:
        return _open_parquet(path)
    if path.suffix.lower() in (".parquet", ".pq"):
        raise InputError("source", path, "is not a Parquet file", "Write it again, or name it .csv if it is CSV.")
    return _open_text(path, "\t" if path.suffix.lower() == ".tsv" else ",")


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError("source", path, f"cannot be read ({error.strerror or error})", "Check its permissions.")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> TableFile:
    try:
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        header = tuple(scan.collect_schema())
        height = scan.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged_parquet(path, error) from error
    if height * len(header) > _MOST_CELLS:
        problem = f"has {height:,} rows of {len(header)} columns, and {_MOST_CELLS:,} cells are the most"
        raise InputError("source", path, problem, "Write fewer steps, or only the columns that are needed.")
    return TableFile(path, header, "row", lambda: _parquet_parts(path))


def _parquet_parts(path: Path) -> Iterator[Part]:
    try:
        cells = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged_parquet(path, error) from error
    for start in range(0, cells.height, _ROWS):
        part = cells.slice(start, _ROWS)
        places = pl.Series(np.arange(start + 1, start + part.height + 1))
        known = ~part.select(pl.all_horizontal(pl.all().is_null())).to_series()
        yield Part(part.filter(known), places.filter(known))


def _damaged_parquet(path: Path, error: Exception) -> InputError:
    first = str(error).split("\n", 1)[0]
    return InputError("source", path, f"is a damaged Parquet file ({first})", "Write it again.")


# --- text -------------------------------------------------------------------------------------------------------------


def _open_text(path: Path, separator: str) -> TableFile:
    try:
        with path.open("rb") as file:
            header = [name.strip() for name in next(_records(path, separator, file, 0), (1, []))[1]]
    except OSError as error:
        raise _unreadable(path, error) from error
    if not any(header):
        raise InputError("source", path, "is empty", "Start it with a header: n_params,learning_rate,loss.")
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise InputError("source", path, f"names the columns {', '.join(twice)} twice", "Name every column once.")
    return TableFile(path, tuple(header), "line", lambda: _text_parts(path, separator, header))


def _text_parts(path: Path, separator: str, header: Sequence[str]) -> Iterator[Part]:
    with path.open("rb") as file:
        if not _is_plain(file.readline()):
            file.seek(0)
            yield from _careful_parts(path, separator, header, islice(_records(path, separator, file, 0), 1, None))
            return
        line = 1
        while block := file.read(_BLOCK) + file.readline():
            if not _is_plain(block):  # a quoted cell may hold anything, the end of the block included
                file.seek(-len(block), io.SEEK_CUR)
                yield from _careful_parts(path, separator, header, _records(path, separator, file, line))
                return
            if lines := _even_lines(block, separator, len(header)):
                yield _fast_part(path, separator, header, block, line)
            else:
                records = _records(path, separator, io.BytesIO(block), line)
                yield from _careful_parts(path, separator, header, records)
            line += lines or block.count(b"\n")


def _is_plain(block: bytes) -> bool:
    """Lines are what newlines end, and cells are what separators part."""
    return b'"' not in block and (b"\r" not in block or block.count(b"\r") == block.count(b"\r\n"))


def _even_lines(block: bytes, separator: str, columns: int) -> int:
    """The number of lines, if every one has one cell for each column; else 0."""
    codes = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    newline = ord("\n")
    marks = codes[(codes == newline) | (codes == ord(separator))]
    lines = marks.size // columns
    ends = marks[columns - 1 :: columns] == newline
    even = marks.size == lines * columns and ends.all() and np.count_nonzero(marks == newline) == lines
    return lines if even else 0


def _fast_part(path: Path, separator: str, header: Sequence[str], block: bytes, line: int) -> Part:
    schema = {str(i): pl.String for i in range(len(header))}
    try:
        cells = pl.read_csv(block, has_header=False, separator=separator, quote_char=None, schema=schema)
    except pl.exceptions.PolarsError as error:
        raise _not_text(path, error) from error
    places = pl.Series(np.arange(line + 1, line + 1 + cells.height))
    empty = cells.to_series(0).fill_null("").str.strip_chars() == ""
    if empty.any():
        blank = cells.select(pl.all_horizontal(pl.all().fill_null("").str.strip_chars() == "")).to_series()
        cells, places = cells.filter(~blank), places.filter(~blank)
    return Part(_named(cells, header), places)


def _careful_parts(
    path: Path, separator: str, header: Sequence[str], records: Iterator[tuple[int, list[str]]]
) -> Iterator[Part]:
    filled = ((line, cells) for line, cells in records if any(cell.strip() for cell in cells))
    while rows := list(islice(filled, _ROWS)):
        for line, cells in rows:
            if len(cells) != len(header):
                raise InputError(
                    "source",
                    path,
                    f"has {len(cells)} cells on line {line} and {len(header)} columns",
                    "Give every line one cell for each column.",
                )
        columns = zip(*(cells for _, cells in rows), strict=True)
        table = pl.DataFrame([pl.Series(str(i), column, pl.String) for i, column in enumerate(columns)])
        yield Part(_named(table, header), pl.Series([line for line, _ in rows], dtype=pl.Int64))


def _named(cells: pl.DataFrame, header: Sequence[str]) -> pl.DataFrame:
    return cells.select(pl.col(str(i)).alias(name) for i, name in enumerate(header) if name)


def _records(path: Path, separator: str, file: BinaryIO, line: int) -> Iterator[tuple[int, list[str]]]:
    """The records of CSV text that follows so many lines, each with the number of its last line. Closes the file."""
    last = line
    with io.TextIOWrapper(file, "utf-8" if line else "utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            for cells in reader:
                last = line + reader.line_num
                yield last, cells
        except csv.Error as error:
            problem = f"is not CSV text ({error}, in what begins on line {last + 1})"
            raise InputError("source", path, problem, "Close every quote, and double one inside a cell.") from error
        except UnicodeDecodeError as error:
            raise _not_text(path, error) from error


def _not_text(path: Path, error: Exception) -> InputError:
    """Where the first byte stands that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                problem = f"is not CSV text in UTF-8 (line {number})"
                return InputError("source", path, problem, "Save it as UTF-8 CSV, or as Parquet.")
    return InputError("source", path, f"is not CSV text ({error})", "Save it as UTF-8 CSV, or as Parquet.")
