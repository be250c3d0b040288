"""Token shards for training: memory-mapped, larger than memory, checked before anything is compiled."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from stability.data.manifest import PREPARE_AGAIN, Manifest, Shard, read_manifest
from stability.data.scan import scan, scan_once
from stability.data.sequence import JoinedTokens, Split
from stability.errors import InputError

OTHER_OPEN_FILES = 256
"""What a training process may have open beside its shards."""


@dataclass(frozen=True, eq=False)
class ShardedCorpus:
    """A folder of token shards. Compare corpora by `hash`.

    Attributes:
        name: what the corpus is called in configs and records.
        folder: where its files are.
        manifest: what they are.
        parts: the training and the validation tokens, uint16 or uint32, read from the files as they are asked for.
    """

    name: str
    folder: Path
    manifest: Manifest
    parts: Split

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there can be; every token is below it."""
        return self.manifest.vocabulary_size

    @property
    def hash(self) -> str:
        """The corpus's identity; see `stability.data.manifest.corpus_hash`."""
        return self.manifest.corpus


def load_shards(path: str | None) -> ShardedCorpus:
    """Open a folder that `python -m stability.prepare` wrote.

    Sizes and types are checked at every start; the first start also reads every token, for its file's hash and for ids
    outside the vocabulary, and leaves a note of that in the user's cache folder.

    Raises:
        InputError: no path, no such folder, one that is not finished, or one that is not what its manifest says; the
            file is named, and the offset of what is wrong in it.
    """
    key = "data.path"
    if not path:
        raise InputError(key, path, "data.name=shards needs to know its folder", "Set data.path=FOLDER.")
    folder = Path(path).expanduser()
    manifest = _checked(folder, key)
    scan_once(folder, manifest, key)
    _allow_open_files(len(manifest.shards) + OTHER_OPEN_FILES)
    parts = Split(*(_joined(folder, shards, manifest) for shards in (manifest.train, manifest.validation)))
    return ShardedCorpus("shards", folder, manifest, parts)


def check(folder: Path, key: str) -> Manifest:
    """Read all of a folder of shards, whatever was checked before, and return its manifest.

    Raises:
        InputError: see `load_shards`.
    """
    manifest = _checked(folder, key)
    scan(folder, manifest, key)
    return manifest


def _checked(folder: Path, key: str) -> Manifest:
    """The manifest, if every file that it lists has the size that it says."""
    manifest = read_manifest(folder, key)
    for shard in manifest.shards:
        _check_size(folder / shard.file, shard.tokens, manifest, key)
    return manifest


def _check_size(file: Path, tokens: int, manifest: Manifest, key: str) -> None:
    fix = f"Restore the file. {PREPARE_AGAIN}"
    try:
        size = file.stat().st_size
    except OSError as error:
        raise InputError(key, file, f"is listed in the manifest and cannot be read ({error.strerror})", fix) from None
    width = manifest.token_dtype.itemsize
    if size == tokens * width:
        return
    if size == tokens * (6 - width):  # 2 bytes where 4 are declared, or the other way round
        problem = f"holds {tokens:,} tokens of {6 - width} bytes, and the manifest says {manifest.dtype}"
    elif size < tokens * width:
        problem = f"ends at byte {size:,} (token {size // width:,}); the manifest says {tokens:,} tokens"
    else:
        problem = f"goes on beyond byte {tokens * width:,}, where the manifest says that its {tokens:,} tokens end"
    raise InputError(key, file, problem, fix)


def _joined(folder: Path, shards: tuple[Shard, ...], manifest: Manifest) -> JoinedTokens:
    return JoinedTokens([_mapped(folder / shard.file, manifest) for shard in shards], manifest.token_dtype)


def _mapped(file: Path, manifest: Manifest) -> UInt[np.ndarray, " tokens"]:
    """A file's tokens, read page by page as they are asked for; read-only."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Windows are read in a random order: the pages around them would be read for nothing.
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, manifest.token_dtype)


def _allow_open_files(count: int) -> None:
    """Let this process hold so many files, where its soft limit is lower: each map keeps its file open."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count and (hard == resource.RLIM_INFINITY or hard >= count):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
