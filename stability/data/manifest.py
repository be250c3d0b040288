"""What a folder of token shards holds: manifest.json, written last, so that a folder without one is not finished.

manifest.json       this file's `Manifest`
tokenizer.*         the tokenizer's own file, where it has one
train/00000.bin     token ids, little-endian, one after the other, nothing else; one file for each unit of work that
validation/...      left tokens in that part; the files of a part, in the manifest's order, are one sequence
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from pydantic import ConfigDict

from stability.errors import InputError
from stability.tracking.files import SCHEMA_VERSION, read_json, write_json
from stability.typed import Whole, from_mapping

MANIFEST = "manifest.json"
PREPARING = "preparing"
"""The folder of what is there only until the manifest is."""
CORPUS_FORMAT = "stability-shards-1"
"""Part of a corpus's hash: what is hashed, and how."""
PREPARE_AGAIN = "Prepare it again with `python -m stability.prepare`."

Dtype = Literal["uint16", "uint32"]
Size = Annotated[Whole, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens: its name below the folder with forward slashes, how many, and the SHA-256 of its bytes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    tokens: Annotated[Whole, Ge(1)]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """Which tokenizer made the tokens.

    Attributes:
        kind: `bytes`, `tokenizers` (Hugging Face JSON, trained here or not) or `sentencepiece`.
        file: its file in the folder; null for bytes.
        sha256: of that file; null for bytes.
        vocabulary_size: ids that the tokenizer itself knows.
        end_of_sequence: the id after every document.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["bytes", "tokenizers", "sentencepiece"]
    file: str | None
    sha256: str | None
    vocabulary_size: Size
    end_of_sequence: Size


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was read and what came of it; `text_bytes` are those of the documents kept, as UTF-8."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    documents: Size = 0
    documents_validation: Size = 0
    documents_empty: Size = 0
    documents_bad: Size = 0
    text_bytes: Size = 0
    tokens: Size = 0
    tokens_validation: Size = 0

    def __add__(self, other: "Counts") -> "Counts":
        mine, others = asdict(self), asdict(other)
        return Counts(**{name: value + others[name] for name, value in mine.items()})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A folder of shards, whole.

    Attributes:
        corpus: the hash that stands for the tokens in fingerprints; see `corpus_hash`.
        dtype: of a token in the files.
        vocabulary_size: every token is below it; at least the tokenizer's own.
        counts: of documents, text and tokens.
        plan: what was asked for and which files it was read from; decides whether a command is the same.
        licence: of the text, in words.
        versions: of the libraries that read and tokenized.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    corpus: str
    dtype: Dtype
    vocabulary_size: Size
    tokenizer: TokenizerRecord
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    counts: Counts
    plan: Mapping[str, Any]
    licence: str
    versions: Mapping[str, str]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All files, training first."""
        return self.train + self.validation

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The dtype of a token, little-endian on every machine."""
        return little_endian(self.dtype)

    @property
    def bytes(self) -> int:
        """Size of all files of tokens."""
        return sum(shard.tokens for shard in self.shards) * self.token_dtype.itemsize


def little_endian(dtype: Dtype) -> np.dtype[np.unsignedinteger]:
    """The dtype as it is on disk."""
    return np.dtype(dtype).newbyteorder("<")


def dtype_for(vocabulary_size: int) -> Dtype:
    """The smallest dtype that holds every token of a vocabulary."""
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


def corpus_hash(
    dtype: Dtype,
    vocabulary_size: int,
    tokenizer: TokenizerRecord,
    train: Sequence[Shard],
    validation: Sequence[Shard],
) -> str:
    """SHA-256, in hexadecimal, of canonical JSON of what the tokens are: vocabulary, tokenizer, and every file's hash.

    It is made of the files' hashes, so that many files are hashed at once.
    """
    content = {
        "format": CORPUS_FORMAT,
        "dtype": dtype,
        "vocabulary_size": vocabulary_size,
        "tokenizer": [tokenizer.kind, tokenizer.sha256, tokenizer.end_of_sequence],
        "train": [[shard.tokens, shard.sha256] for shard in train],
        "validation": [[shard.tokens, shard.sha256] for shard in validation],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare the folder finished."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path, key: str) -> Manifest:
    """Read and check a folder's manifest, by itself: the files that it lists are not looked at.

    Args:
        folder: where the shards are.
        key: what the user called the folder by, for errors.

    Raises:
        InputError: there is no manifest, or it is not one, or it contradicts itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise _without_manifest(folder, key)
    content = read_json(path)
    try:
        manifest = from_mapping(Manifest, content)
    except InputError as error:
        raise InputError(key, path, f"{error.key}={error.value} {error.problem}", PREPARE_AGAIN) from None
    found = corpus_hash(
        manifest.dtype, manifest.vocabulary_size, manifest.tokenizer, manifest.train, manifest.validation
    )
    if found != manifest.corpus:
        problem = f"has been changed: what it lists has the hash {found[:16]}, not corpus={manifest.corpus[:16]}"
        raise InputError(key, path, problem, f"Restore it. {PREPARE_AGAIN}")
    for name in (*(shard.file for shard in manifest.shards), manifest.tokenizer.file or ""):
        if name.startswith(("/", "~")) or ".." in name.split("/") or not name.isprintable():
            raise InputError(key, path, f"lists {name!r}, which is outside its folder", PREPARE_AGAIN)
    highest = 2 ** (8 * manifest.token_dtype.itemsize)
    if not manifest.tokenizer.vocabulary_size <= manifest.vocabulary_size <= highest:
        problem = (
            f"has vocabulary_size={manifest.vocabulary_size}, which the tokenizer's "
            f"{manifest.tokenizer.vocabulary_size} or {manifest.dtype} contradicts"
        )
        raise InputError(key, path, problem, PREPARE_AGAIN)
    return manifest


def _without_manifest(folder: Path, key: str) -> InputError:
    if not folder.is_dir():
        fix = "Name a folder that `python -m stability.prepare` wrote."
        return InputError(key, folder, "is not a folder", fix)
    if (folder / PREPARING).is_dir():
        fix = "Give the `stability.prepare` command that began it again: it goes on from there."
        return InputError(key, folder, f"is not finished: it holds {PREPARING}/ and no {MANIFEST}", fix)
    return InputError(key, folder, f"holds no {MANIFEST}", "Name a folder that `python -m stability.prepare` wrote.")
