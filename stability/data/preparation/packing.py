"""One unit of work: its documents tokenized and packed, without padding, into one file of tokens for each part."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from stability.data.manifest import Counts, Shard, TokenizerRecord, little_endian
from stability.data.manifest import Dtype as TokenDtype
from stability.data.preparation.documents import Document, Reader
from stability.data.preparation.settings import PreparationSettings
from stability.data.preparation.sources import Unit
from stability.data.preparation.tokenizers import Tokenizer

PARTS = ("train", "validation")
SPLIT_KEY = b"stability split 1"
BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 1024
"""How much text is tokenized at a time, unless a document alone is more."""


@dataclass(frozen=True)
class Packed:
    """What a unit came to.

    Attributes:
        shards: its file of each part; a part that got no document has none.
        counts: of its documents and tokens.
        seconds: of one core, for all of it.
        tokenizer_seconds: of these, in the tokenizer itself.
    """

    shards: dict[str, Shard]
    counts: Counts
    seconds: float
    tokenizer_seconds: float


def is_validation(content: bytes, fraction: float) -> bool:
    """Whether a document is held out: by a keyed hash of its text, so that duplicates fall on the same side."""
    digest = hashlib.blake2b(content, digest_size=8, key=SPLIT_KEY).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


@dataclass
class _ShardFile:
    """A file of tokens under way. It gets its name once it is whole; the same unit always gives the same bytes."""

    folder: Path
    name: str
    dtype: TokenDtype
    tokens: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        (self.folder / self.name).parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.folder / f"{self.name}.{os.getpid()}.partial"
        self._file = self._partial.open("wb")

    def write(self, ids: UInt32[np.ndarray, " tokens"]) -> None:
        """Add tokens."""
        content = ids.astype(little_endian(self.dtype)).tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.tokens += len(ids)

    def close(self) -> Shard | None:
        """Put the file in its place, on disk; a file without tokens is no file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self.tokens:
            self._partial.unlink()
            return None
        self._partial.replace(self.folder / self.name)
        return Shard(file=self.name, tokens=self.tokens, sha256=self.digest.hexdigest())

    def abandon(self) -> None:
        """Leave nothing; does nothing after `close`."""
        if not self._file.closed:
            self._file.close()
            self._partial.unlink()


def pack_unit(
    number: int,
    unit: Unit,
    settings: PreparationSettings,
    tokenizer: Tokenizer,
    record: TokenizerRecord,
    dtype: TokenDtype,
    folder: Path,
) -> Packed:
    """Tokenize a unit's documents and write them, each followed by the end of sequence, to their part's file.

    Args:
        number: the unit's, from which its files have their names.
        unit: what to read.
        settings: how, and which documents are held out.
        tokenizer: text to ids.
        record: the tokenizer's, for the end of sequence.
        dtype: of the files.
        folder: where the shards go.

    Raises:
        InputError: see `Reader.documents`.
    """
    reader, counts, clock = Reader(settings), Counts(), time.process_time()
    in_tokenizer = 0.0
    with ExitStack() as stack:
        files = {part: _ShardFile(folder, f"{part}/{number:05d}.bin", dtype) for part in PARTS}
        for file in files.values():
            stack.callback(file.abandon)
        for batch in _batches(reader.documents(unit)):
            began = time.process_time()
            encoded = tokenizer.encode([document.text for document in batch])
            in_tokenizer += time.process_time() - began
            counts += _write(batch, encoded, files, reader, record.end_of_sequence)
        shards = {part: shard for part, file in files.items() if (shard := file.close()) is not None}
    counts = replace(counts, documents_empty=reader.empty, documents_bad=reader.bad)
    return Packed(shards, counts, time.process_time() - clock, in_tokenizer)


def _write(
    batch: list[Document],
    encoded: list[UInt32[np.ndarray, " tokens"]],
    files: dict[str, _ShardFile],
    reader: Reader,
    end_of_sequence: int,
) -> Counts:
    end = np.array([end_of_sequence], np.uint32)
    kept: dict[str, list[UInt32[np.ndarray, " tokens"]]] = {part: [] for part in PARTS}
    documents = dict.fromkeys(PARTS, 0)
    text_bytes = 0
    for document, ids in zip(batch, encoded, strict=True):
        if (ids == end_of_sequence).any():
            reader.refuse(document.where, f"holds the end-of-sequence token ({end_of_sequence}) inside")
            continue
        part = PARTS[is_validation(document.content, reader.settings.validation_fraction)]
        kept[part] += [ids, end]
        documents[part] += 1
        text_bytes += len(document.content)
    tokens = {part: sum(map(len, kept[part])) for part in PARTS}
    for part, arrays in kept.items():
        if arrays:
            files[part].write(np.concatenate(arrays))
    return Counts(
        documents=sum(documents.values()),
        documents_validation=documents["validation"],
        text_bytes=text_bytes,
        tokens=sum(tokens.values()),
        tokens_validation=tokens["validation"],
    )


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = list[Document](), 0
    for document in documents:
        batch.append(document)
        size += len(document.content)
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
