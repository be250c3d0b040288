"""Every token of a folder of shards read once: do the files have their hashes, and is every id in the vocabulary?

A scan reads about 1 GB/s a core. That it went well is noted in the user's cache folder with every file's size and time
of change, so that the next start of the same folder is instant.
"""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stability.cache import cache_folder
from stability.data.manifest import MANIFEST, PREPARE_AGAIN, Manifest, Shard
from stability.errors import InputError
from stability.tracking.files import SCHEMA_VERSION, read_json, write_json
from stability.untrusted.printable import tell

BLOCK_BYTES = 1 << 24
TELL_FROM_BYTES = 1 << 30
"""A scan of more than this is announced: it takes seconds."""


def scan_once(folder: Path, manifest: Manifest, key: str) -> None:
    """`scan` the folder, unless it was scanned since its files last changed.

    Raises:
        InputError: see `scan`.
    """
    stamp, state = _stamp_path(folder), _state(folder, manifest)
    if _read_stamp(stamp) == state:
        return
    if manifest.bytes > TELL_FROM_BYTES:
        tell(f"Checking {manifest.bytes / 1e9:.1f} GB of tokens in {folder}, once.", sys.stderr, flush=True)
    scan(folder, manifest, key)
    _write_stamp(stamp, state)


def scan(folder: Path, manifest: Manifest, key: str) -> None:
    """Read every token.

    Raises:
        InputError: a file's hash is not the manifest's, or a token is outside the vocabulary; names the file, and the
            token's place in it.
    """
    tokenizer = manifest.tokenizer
    if tokenizer.file is not None:
        _check_tokenizer(folder / tokenizer.file, tokenizer.sha256, key)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter's lock
        for _ in pool.map(partial(_scan_shard, folder, manifest, key), manifest.shards):
            pass


def _check_tokenizer(file: Path, expected: str | None, key: str) -> None:
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        fix = f"Restore it. {PREPARE_AGAIN}"
        raise InputError(key, file, f"is the tokenizer, and cannot be read ({error.strerror})", fix) from None
    if found != expected:
        raise InputError(key, file, "is not the tokenizer that made the tokens", f"Restore it. {PREPARE_AGAIN}")


def _scan_shard(folder: Path, manifest: Manifest, key: str, shard: Shard) -> None:
    file, digest, position = folder / shard.file, hashlib.sha256(), 0
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
            tokens = np.frombuffer(block, manifest.token_dtype)
            if tokens.max() >= manifest.vocabulary_size:
                first = int(np.argmax(tokens >= manifest.vocabulary_size))
                problem = (
                    f"holds {tokens[first]} as token {position + first:,} (byte "
                    f"{(position + first) * tokens.itemsize:,}), outside the vocabulary of {manifest.vocabulary_size:,}"
                )
                raise InputError(key, file, problem, PREPARE_AGAIN)
            position += len(tokens)
    if digest.hexdigest() != shard.sha256:
        problem = f"has changed: its SHA-256 is {digest.hexdigest()[:16]}, the manifest says {shard.sha256[:16]}"
        raise InputError(key, file, problem, f"Restore it. {PREPARE_AGAIN}")


def _state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What has to be as it was for a scan not to be repeated."""
    names = [MANIFEST, *([manifest.tokenizer.file] if manifest.tokenizer.file else [])]
    names += [shard.file for shard in manifest.shards]
    files = {}
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            continue  # the scan itself says what is missing
        files[name] = [status.st_size, status.st_mtime_ns]
    header = {"schema_version": SCHEMA_VERSION, "folder": str(folder.resolve()), "corpus": manifest.corpus}
    return {**header, "files": files}


def _stamp_path(folder: Path) -> Path:
    """Where the note about a folder is."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "scanned" / f"{name}.json"


def _read_stamp(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, InputError):  # none yet, or another version's: scan again
        return None


def _write_stamp(path: Path, state: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, state)
    except OSError:
        pass  # no place for a note: the next start scans again
