"""A unit's documents, one after the other, as text that can be tokenized; what cannot is named by file and place."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stability.data.preparation import hub
from stability.data.preparation.files import opened
from stability.data.preparation.libraries import library
from stability.data.preparation.settings import PreparationSettings
from stability.data.preparation.sources import Piece, Unit
from stability.errors import InputError


class Found(NamedTuple):
    """A document as it was found: where it begins (byte or row), what it holds, or why it holds nothing of use."""

    place: int
    text: bytes | str | None
    problem: str = ""


class Document(NamedTuple):
    """Text to tokenize, and its UTF-8."""

    text: str
    content: bytes
    where: str
    """The file and the byte or row, for messages."""


@dataclass
class Reader:
    """Reads units under one policy, counting what it leaves out.

    Attributes:
        settings: of them the format's, and whether a bad document is an error or left out.
        empty: documents without a character that is not white space; never an error.
        bad: documents left out: invalid UTF-8, no JSON, no text.
    """

    settings: PreparationSettings
    empty: int = field(default=0, init=False)
    bad: int = field(default=0, init=False)

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in their order.

        Raises:
            InputError: a file cannot be read, a record has no field `text_field`, or, unless they are to be skipped, a
                document is bad.
        """
        for piece in unit:
            for found in READERS[piece.format](piece, self.settings):
                document = self._usable(piece, found)
                if document is not None:
                    yield document

    def refuse(self, where: str, problem: str) -> None:
        """Count a bad document, or raise: whichever the settings say."""
        if self.settings.bad_documents == "error":
            fix = "Correct it, or leave such documents out with bad_documents=skip (they are counted)."
            raise InputError("source", where, problem, fix)
        self.bad += 1

    def _usable(self, piece: Piece, found: Found) -> Document | None:
        unit = "row" if piece.format in ("parquet", "hub") else "byte"
        where = f"{piece.name}, {unit} {found.place}"
        text, content, problem, at = "", b"", found.problem, found.place
        try:
            if isinstance(found.text, bytes):
                text, content = found.text.decode(), found.text
            elif isinstance(found.text, str):
                text, content = found.text, found.text.encode()
        except UnicodeDecodeError as error:
            problem = f"is not valid UTF-8 (0x{error.object[error.start]:02x} as byte {error.start} of its text)"
            if unit == "byte":
                where = f"{piece.name}, byte {at + error.start}"
        except UnicodeEncodeError as error:
            problem = f"is no Unicode text (half of a surrogate pair as character {error.start})"
        if problem:
            self.refuse(where, problem)
            return None
        if not text.strip():
            self.empty += 1
            return None
        return Document(text, content, where)


def _text(piece: Piece, settings: PreparationSettings) -> Iterator[Found]:
    with opened(piece.name, spans=piece.start > 0) as stream:
        if settings.documents == "file":
            yield Found(0, stream.read())
        elif settings.documents == "line":
            for offset, line in _lines(stream, piece):
                yield Found(offset, line.rstrip(b"\r\n"))
        else:
            yield from _paragraphs(stream, piece)


def _paragraphs(stream: Any, piece: Piece) -> Iterator[Found]:
    """What stands between blank lines."""
    start, lines = 0, list[bytes]()
    for offset, line in _lines(stream, piece):
        if line.strip():
            if not lines:
                start = offset
            lines.append(line)
        elif lines:
            yield Found(start, b"".join(lines).rstrip(b"\r\n"))
            lines = []
    if lines:
        yield Found(start, b"".join(lines).rstrip(b"\r\n"))


def _json_lines(piece: Piece, settings: PreparationSettings) -> Iterator[Found]:
    with opened(piece.name, spans=piece.start > 0) as stream:
        for offset, line in _lines(stream, piece):
            if line.strip():
                yield _record(piece.name, offset, line, settings.text_field)


def _record(name: str, offset: int, line: bytes, field: str) -> Found:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Found(offset + error.start, None, f"is not valid UTF-8 (0x{line[error.start]:02x})")
    except (ValueError, RecursionError) as error:
        return Found(offset, None, f"is no JSON ({error})")
    if not isinstance(record, dict):
        return Found(offset, None, "is no JSON object")
    if field not in record:
        fields = ", ".join(record) or "none"
        raise InputError("text_field", field, f"{name}, byte {offset} has no such field", f"Its fields: {fields}.")
    text = record[field]
    if text is None or isinstance(text, str):
        return Found(offset, text)
    return Found(offset, None, f"its field {field} is no text")


def _lines(stream: Any, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines that begin within the piece's span, each with its offset."""
    offset = piece.start
    if offset:
        stream.seek(offset - 1)
        offset += len(stream.readline()) - 1  # the line that began before, or the line end just before
    while piece.stop is None or offset < piece.stop:
        line = stream.readline()
        if not line:
            return
        yield offset, line
        offset += len(line)


def _parquet(piece: Piece, settings: PreparationSettings) -> Iterator[Found]:
    parquet, field = library("pyarrow.parquet"), settings.text_field
    with opened(piece.name, spans=True) as stream, parquet.ParquetFile(stream) as table:
        row = sum(table.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, piece.stop or table.metadata.num_row_groups))
        for batch in table.iter_batches(hub.ROWS, row_groups=groups, columns=[field], use_threads=False):
            yield from _column(batch.column(0), row, piece.name, field)
            row += batch.num_rows


def _hub(piece: Piece, settings: PreparationSettings) -> Iterator[Found]:
    assert piece.stop is not None
    row, name = 0, settings.text_field
    try:
        for table in hub.tables(hub.HubSource.of(settings), piece.start, piece.stop, name):
            if name not in table.column_names:
                fix = f"Choose one of {', '.join(table.column_names)}."
                raise InputError("text_field", name, f"{piece.name} has no such column", fix)
            yield from _column(table.column(name), row, piece.name, name)
            row += table.num_rows
    except InputError:
        raise
    except Exception as error:  # of the network, of whatever reads the data set's format
        problem = f"cannot be read beyond row {row} ({error})"
        raise InputError(
            "source", piece.name, problem, "Restore the file, or leave it out with data_files=."
        ) from error


def _column(column: Any, row: int, name: str, field: str) -> Iterator[Found]:
    """A column of text as the bytes that it holds: Arrow does not look whether they are UTF-8."""
    pyarrow = library("pyarrow")
    types = pyarrow.types
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(test(kind) for test in tests):
        raise InputError("text_field", field, f"{name} holds {kind} there, no text", "Name a column of text.")
    for i, text in enumerate(column.cast(kind).cast(pyarrow.large_binary()).to_pylist()):
        yield Found(row + i, text)


READERS: dict[str, Callable[[Piece, PreparationSettings], Iterator[Found]]] = {
    "text": _text,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "hub": _hub,
}
