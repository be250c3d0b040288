"""Finding and opening files: here or, through fsspec, remote; as they are or compressed."""

import glob
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stability.data.preparation.libraries import library
from stability.data.preparation.settings import Format
from stability.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """A file of the source.

    Attributes:
        name: its path or address.
        bytes: its size, None where the server does not say.
        modified: when it was changed, or its version, as its file system says it; None where that says nothing.
        spans: whether it can be read from the middle.
    """

    name: str
    bytes: int | None
    modified: str | None
    spans: bool


def find_files(source: str) -> list[InputFile]:
    """The files that a path, a pattern, an address or several of them, separated by commas, mean.

    A pattern's files come in the order of their paths.

    Raises:
        InputError: nothing is there, or it is a folder, or a file is named twice.
    """
    whole = Path(source).expanduser()
    names = [source] if whole.exists() else [part.strip() for part in source.split(",")]
    files = [file for name in names for file in _matching(name)]
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise InputError("source", source, f"names {twice[0]} twice", "Name every file once.")
    return files


def _matching(name: str) -> list[InputFile]:
    if not name:
        raise InputError("source", name, "names no file", "Give a path, a pattern or an address.")
    try:
        system, path = _filesystem(name)
        is_pattern = "*" in name or ("://" not in name and glob.has_magic(name) and not system.exists(path))
        paths = sorted(system.glob(path), key=lambda one: PurePosixPath(one).parts) if is_pattern else [path]
        infos = {path: system.info(path) for path in paths}
    except (OSError, ValueError, ImportError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error) or repr(error)
        raise InputError("source", name, reason, "Correct the path, the pattern or the address.") from error
    if not is_pattern and infos[path].get("type") == "directory":
        raise InputError("source", name, "is a folder", f"Write source={name.rstrip('/')}/**/*.txt or the like.")
    files = {path: info for path, info in infos.items() if info.get("type") != "directory"}
    if not files:
        raise InputError("source", name, f"no file matches in {Path.cwd()}", "Correct the path or the pattern.")
    return [_input(system, path, info) for path, info in files.items()]


def _input(system: Any, path: str, info: dict[str, Any]) -> InputFile:
    version = next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(key)), None)
    local = "file" in _protocols(system)
    return InputFile(
        path if local else system.unstrip_protocol(path),
        info.get("size"),
        None if version is None else str(version),
        spans=bool(info.get("partial", "http" not in _protocols(system))),
    )


def _filesystem(name: str) -> tuple[Any, str]:
    system, path = library("fsspec").core.url_to_fs(name if "://" in name else str(Path(name).expanduser()))
    return system, path


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def compression_of(name: str) -> str | None:
    """How a file is compressed, by its name."""
    return COMPRESSIONS.get(PurePosixPath(name).suffix.lower())


def format_of(name: str, given: Format | None) -> Format:
    """What a file holds, as given or by its name.

    Raises:
        InputError: the name does not tell.
    """
    if given is not None:
        return given
    path = PurePosixPath(name)
    stem = PurePosixPath(path.stem) if compression_of(name) else path
    if (known := FORMATS.get(stem.suffix.lower())) is not None:
        return known
    raise InputError("source", name, "its name does not say what it holds", "Add format=text, jsonl or parquet.")


@contextmanager
def opened(name: str, spans: bool = False) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed where its name says that it is compressed.

    Args:
        name: its path or address.
        spans: whether it is to be read from the middle; otherwise a server need not be able to.

    Raises:
        InputError: it cannot be opened or read; a compressed file that is cut off or damaged is one.
    """
    pyarrow, compression = library("pyarrow"), compression_of(name)
    streaming = {"block_size": 0} if not spans and name.startswith(("http://", "https://")) else {}
    try:
        with library("fsspec").open(name, "rb", **streaming) as raw:
            if compression is None:
                stream = io.BufferedReader(raw, BUFFER_BYTES)
            else:
                # Not fsspec's: its zstd ends without a word where a frame does, though another follows or bytes lack.
                file = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
                stream = io.BufferedReader(file, BUFFER_BYTES)
            try:
                yield stream
            finally:
                stream.detach()
    except InputError:
        raise
    except Exception as error:  # every file system has its own
        reason = f"cannot be read ({error})"
        raise InputError("source", name, reason, "Restore the file, or leave it out.") from error
