"""The source cut into units of work: the same units whoever does them, in whatever order, and however often."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from stability.data.preparation.files import InputFile, compression_of, find_files, format_of, opened
from stability.data.preparation.hub import HubSource, facts
from stability.data.preparation.libraries import library
from stability.data.preparation.settings import PreparationSettings
from stability.errors import InputError


@dataclass(frozen=True)
class Piece:
    """What is read in one go.

    Attributes:
        format: how.
        name: of the file.
        start: the first byte (of text and JSON lines), row group (of Parquet) or, of the hub, the shard's number.
        stop: the end of it, exclusive; of the hub, how many shards there are. None: to the end of the file.
        bytes: how large it is, None where that is not known.
    """

    format: Literal["text", "jsonl", "parquet", "hub"]
    name: str
    start: int
    stop: int | None
    bytes: int | None


Unit = tuple[Piece, ...]
"""Pieces that one worker reads and packs into one file for each part."""


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        units: the work.
        inputs: the files, as a plan records them: [name, bytes, modified].
        revision: the commit of a data set of the hub.
        licence: what the source says of it.
    """

    units: tuple[Unit, ...]
    inputs: tuple[tuple[str, int | None, str | None], ...]
    revision: str | None
    licence: str | None

    @property
    def bytes(self) -> int | None:
        """Of all the units together; None where one is not known."""
        return _size([piece for unit in self.units for piece in unit])


def find_source(settings: PreparationSettings) -> Source:
    """Look the source up and cut it into units; reads no documents.

    Raises:
        InputError: there is no such source, or it is none that can be read.
    """
    if settings.hub_name is not None:
        return _hub(settings)
    files = find_files(settings.source)
    pieces = [piece for file in files for piece in _pieces(file, settings)]
    if not pieces:
        raise InputError("source", settings.source, "holds no rows", "Give text.")
    inputs = tuple((file.name, file.bytes, file.modified) for file in files)
    return Source(tuple(_grouped(pieces, settings.unit_bytes)), inputs, None, None)


def unit_bytes(unit: Unit) -> int | None:
    """How much a unit reads."""
    return _size(unit)


def _size(pieces: Iterable[Piece]) -> int | None:
    sizes = [piece.bytes for piece in pieces]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _hub(settings: PreparationSettings) -> Source:
    found = facts(HubSource.of(settings))
    _check_field(settings.text_field, found.columns, settings.source)
    count = len(found.files)
    sized = tuple(zip(found.files, found.sizes, strict=True))
    units = tuple((Piece("hub", file, i, count, size),) for i, (file, size) in enumerate(sized))
    # A commit says which files they are; sizes are known only while the hub answers.
    inputs = tuple((file, size if found.revision is None else None, None) for file, size in sized)
    return Source(units, inputs, found.revision, found.licence)


def _check_field(field: str, columns: Iterable[str] | None, name: str) -> None:
    if columns is not None and field not in columns:
        raise InputError("text_field", field, f"{name} has no such column", f"Choose one of {', '.join(columns)}.")


def _pieces(file: InputFile, settings: PreparationSettings) -> list[Piece]:
    kind = format_of(file.name, settings.format)
    if kind == "parquet":
        return _row_groups(file, settings)
    by_line = kind == "jsonl" or settings.documents == "line"
    if not by_line or not file.spans or file.bytes is None or compression_of(file.name):
        return [Piece(kind, file.name, 0, None, file.bytes)]
    step = settings.unit_bytes
    starts = range(0, max(file.bytes, 1), step)
    return [Piece(kind, file.name, at, min(at + step, file.bytes), min(step, file.bytes - at)) for at in starts]


def _row_groups(file: InputFile, settings: PreparationSettings) -> list[Piece]:
    parquet = library("pyarrow.parquet")
    with opened(file.name, spans=True) as stream, parquet.ParquetFile(stream) as table:
        metadata = table.metadata
        _check_field(settings.text_field, table.schema_arrow.names, file.name)
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    return [Piece("parquet", file.name, i, i + 1, size) for i, size in enumerate(sizes)]


def _grouped(pieces: Iterable[Piece], target: int) -> Iterable[Unit]:
    """Neighbouring pieces together, as long as they do not exceed the target."""
    unit: list[Piece] = []
    for piece in pieces:
        together = _size([*unit, piece])
        if unit and (together is None or together > target):
            yield tuple(unit)
            unit = []
        unit.append(piece)
    if unit:
        yield tuple(unit)


def describe(source: Source) -> dict[str, Any]:
    """What a plan records of the source."""
    return {"revision": source.revision, "inputs": [list(entry) for entry in source.inputs]}
