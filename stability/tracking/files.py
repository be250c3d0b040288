"""Files that are whole or not there, and that show when they are no longer what was written. Imports no JAX.

A file is replaced in one step, from a temporary neighbour whose name ends in `.partial`; what a killed process left of
those is removed by whoever holds the folder's lock next (`stability.tracking.locks`). A JSON file may carry its own
checksum; of other files a `Measure` is kept elsewhere.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stability.errors import InputError
from stability.untrusted.secrets import without_secrets

SCHEMA_VERSION = 1
CHECKSUM = "sha256"
"""The key under which a JSON file of ours carries the checksum of all its other keys."""
PARTIAL = ".partial"
"""How the names of files and folders end that are not whole yet."""

DEEPEST = 50
"""Objects and arrays within each other in a JSON file of ours; what reads one may go through it by recursion."""

_BLOCK = 1 << 20


class DamagedError(InputError):
    """A file of ours is not what was written: cut off, changed, or gone."""


@dataclass(frozen=True)
class Measure:
    """What tells a file, or its beginning, from any other: its length in bytes and its SHA-256."""

    bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> "Measure | None":
        """From JSON; None where that is no measure."""
        if not isinstance(content, Mapping):
            return None
        size, digest = content.get("bytes"), content.get("sha256")
        return cls(size, digest) if isinstance(size, int) and isinstance(digest, str) else None


def measure(path: Path, end: int | None = None) -> Measure:
    """Length and checksum of a file, or of its first `end` bytes; a file that does not exist counts as an empty one.

    Raises:
        OSError: it cannot be read.
    """
    found, left = hashlib.sha256(), math.inf if end is None else end
    read = 0
    if path.exists():
        with path.open("rb") as file:
            while left > 0 and (block := file.read(int(min(_BLOCK, left)))):
                found.update(block)
                read, left = read + len(block), left - len(block)
    return Measure(read, found.hexdigest())


def without_nonfinite(value: Any) -> Any:
    """The same JSON value with every NaN and infinity replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(item) for item in value]
    return value


def write_json(path: Path, content: Mapping[str, Any], *, checksum: bool = False) -> None:
    """Replace `path` by `content`, secrets in it hidden, in one step, as `write_whole` does.

    Args:
        path: the file.
        content: what JSON can hold; numbers that are not finite become null.
        checksum: whether the file carries its own, so that `read_json` sees any later change.
    """
    plain = without_secrets(without_nonfinite(content))
    if checksum:
        plain = {**plain, CHECKSUM: _checksum(plain)}
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)
    # What was no UTF-8 on a command line is half of a surrogate pair, which JSON can write as an escape.
    write_whole(path, f"{text}\n".encode("utf-8", "backslashreplace"))


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, never a part, also after a power cut.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _keep_name(path.parent)


def append(path: Path, text: str) -> None:
    """Add text to a file; where that fails, the file is as it was.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, text.encode())
        except OSError:
            file.truncate(before)
            raise


def cut(path: Path, end: int) -> None:
    """Leave the first `end` bytes of a file, and put them on the disk; a file that does not exist is made where 0.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk; one that does not exist has none."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of ours, refusing one that is not ours to read. Its checksum is not part of what is returned.

    Raises:
        DamagedError: the file is no JSON object, or not the one that was written.
        InputError: another version of this program wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError("file", path, f"is not valid JSON ({error})", "Restore it, or delete its folder.") from error
    if text.count("{") + text.count("[") > DEEPEST and _depth(content) > DEEPEST:
        problem = f"nests more than {DEEPEST} objects and arrays within each other"
        raise DamagedError("file", path, problem, "Restore it, or delete its folder.")
    if not isinstance(content, dict):
        raise DamagedError("file", path, "holds no JSON object", "Restore it, or delete its folder.")
    if CHECKSUM in content and content.pop(CHECKSUM) != _checksum(content):
        fix = f"Restore it; or, where it was changed on purpose, take its line {CHECKSUM!r} out."
        raise DamagedError("file", path, "is not what was written: its checksum differs", fix)
    if content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            "file",
            path,
            f"has schema_version {content.get('schema_version')!r}, and this program reads {SCHEMA_VERSION}",
            "Use the version of `stability` that wrote it.",
        )
    return content


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half-written directly in a folder; only for who holds its lock."""
    for path in folder.glob(f"*{PARTIAL}") if folder.is_dir() else ():
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _depth(content: Any) -> int:
    """How many objects and arrays of a JSON value stand within each other."""
    depth, level = 0, [content]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    return depth


def _write_all(file: BinaryIO, content: bytes) -> None:
    """All of it: an unbuffered file may take a part at a time, on a full disk for instance."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _keep_name(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where the file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems have no such thing
        pass
    finally:
        os.close(descriptor)
