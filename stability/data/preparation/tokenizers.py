"""Text to ids: bytes, any Hugging Face `tokenizers` JSON, any SentencePiece model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import UInt32

from stability.data.corpus import BYTE_VOCABULARY_SIZE, END_OF_SEQUENCE
from stability.data.manifest import TokenizerRecord
from stability.data.preparation.files import opened
from stability.data.preparation.libraries import library
from stability.errors import InputError

KINDS: dict[str, Literal["tokenizers", "sentencepiece"]] = {".json": "tokenizers", ".model": "sentencepiece"}
BPE = "bpe:"
END_OF_TEXT = "<|endoftext|>"
"""What a tokenizer trained here calls the end of a document."""
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[EOS]")
"""Names under which published tokenizers have it; one with several of them must be told which."""


class Tokenizer(Protocol):
    """Made for one core: several at once work on several units."""

    @property
    def vocabulary_size(self) -> int:
        """Ids that it knows: the highest and one."""
        ...

    def encode(self, texts: Sequence[str]) -> list[UInt32[np.ndarray, " tokens"]]:
        """The ids of each text, nothing put before or after."""
        ...

    def id_of(self, token: str | None) -> int | None:
        """The id of a token by its text; of the end of a sequence for None; None where there is none."""
        ...


@dataclass(frozen=True)
class TokenizerChoice:
    """What the setting `tokenizer` names.

    Attributes:
        kind: which class reads it.
        content: its file's bytes; None for bytes, and for one that is still to be trained.
        train_to: the vocabulary size of one to be trained.
    """

    kind: Literal["bytes", "tokenizers", "sentencepiece"]
    content: bytes | None = None
    train_to: int | None = None

    @property
    def sha256(self) -> str | None:
        """Of its file."""
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()

    @property
    def file(self) -> str | None:
        """What its file is called in the folder of shards."""
        return {"bytes": None, "tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}[self.kind]


def choose_tokenizer(setting: str) -> TokenizerChoice:
    """Read the setting `tokenizer`: `bytes`, `bpe:SIZE`, or the path or address of a .json or .model file.

    Raises:
        InputError: it is none of these, or the file cannot be read.
    """
    if setting == "bytes":
        return TokenizerChoice("bytes")
    if setting.startswith(BPE):
        size = setting.removeprefix(BPE)
        smallest = BYTE_VOCABULARY_SIZE + 1
        if not size.isdecimal() or int(size) < smallest:
            fix = f"Write tokenizer={BPE}8192, say; {smallest} is every byte and the end of a document."
            raise InputError("tokenizer", setting, f"is no vocabulary size of {smallest} or more", fix)
        return TokenizerChoice("tokenizers", train_to=int(size))
    kind = KINDS.get(PurePosixPath(setting).suffix)
    if kind is None:
        fix = f"Choose bytes, {BPE}SIZE, or a file: a `tokenizers` .json or a SentencePiece .model."
        raise InputError("tokenizer", setting, "is no tokenizer", fix)
    try:
        with opened(str(Path(setting).expanduser()) if "://" not in setting else setting) as stream:
            return TokenizerChoice(kind, stream.read())
    except InputError as error:
        raise InputError("tokenizer", setting, error.problem, "Correct the path.") from error


def load_tokenizer(kind: str, content: bytes | None) -> Tokenizer:
    """The tokenizer of a kind from its file's bytes.

    Raises:
        InputError: the file is none.
    """
    if content is None:
        return ByteTokenizer()
    return JsonTokenizer(content) if kind == "tokenizers" else SentencePieceTokenizer(content)


def record_of(choice: TokenizerChoice, tokenizer: Tokenizer, end_of_sequence: str | None) -> TokenizerRecord:
    """What a manifest says of a tokenizer; `end_of_sequence` is a token or an id, None for the tokenizer's own.

    Raises:
        InputError: the tokenizer has no such token, or none that is known to end a sequence.
    """
    size = tokenizer.vocabulary_size
    if end_of_sequence is not None and end_of_sequence.isdecimal():
        end: int | None = int(end_of_sequence)
    else:
        end = tokenizer.id_of(end_of_sequence)
    if end is None or end >= size:
        problem = f"the tokenizer has {'no such token' if end_of_sequence else 'none that is known to end a sequence'}"
        fix = f"Set end_of_sequence to one of its tokens, or to an id below {size}."
        raise InputError("end_of_sequence", end_of_sequence, problem, fix)
    return TokenizerRecord(
        kind=choice.kind, file=choice.file, sha256=choice.sha256, vocabulary_size=size, end_of_sequence=end
    )


class ByteTokenizer:
    """A token is a byte of UTF-8; NUL, which no text holds, ends a document."""

    vocabulary_size = BYTE_VOCABULARY_SIZE

    def encode(self, texts: Sequence[str]) -> list[UInt32[np.ndarray, " tokens"]]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def id_of(self, token: str | None) -> int | None:
        """See `Tokenizer`."""
        if token is None:
            return END_OF_SEQUENCE
        content = token.encode()
        return content[0] if len(content) == 1 else None


class JsonTokenizer:
    """A tokenizer of Hugging Face `tokenizers`, from its JSON."""

    def __init__(self, content: bytes) -> None:
        tokenizers = library("tokenizers")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exceptions
            raise InputError("tokenizer", "", f"is no tokenizer's JSON ({error})", "Give a tokenizer.json.") from None
        # "</s>" in a document is four characters that someone wrote, not the end of it.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocabulary_size(self) -> int:
        """See `Tokenizer`; ids may have gaps."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, texts: Sequence[str]) -> list[UInt32[np.ndarray, " tokens"]]:
        """See `Tokenizer`."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in encoded]

    def id_of(self, token: str | None) -> int | None:
        """See `Tokenizer`."""
        if token is not None:
            found: int | None = self._tokenizer.token_to_id(token)
            return found
        known = [one for one in map(self._tokenizer.token_to_id, KNOWN_ENDS) if one is not None]
        return known[0] if len(known) == 1 else None


class SentencePieceTokenizer:
    """A SentencePiece model."""

    def __init__(self, content: bytes) -> None:
        self._model: Any = library("sentencepiece").SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise InputError("tokenizer", "", f"is no SentencePiece model ({error})", "Give a .model file.") from None

    @property
    def vocabulary_size(self) -> int:
        """See `Tokenizer`."""
        return int(self._model.vocab_size())

    def encode(self, texts: Sequence[str]) -> list[UInt32[np.ndarray, " tokens"]]:
        """See `Tokenizer`."""
        return [np.array(ids, np.uint32) for ids in self._model.encode(list(texts), out_type=int, num_threads=1)]

    def id_of(self, token: str | None) -> int | None:
        """See `Tokenizer`."""
        found = int(self._model.eos_id() if token is None else self._model.piece_to_id(token))
        if token is not None and found == self._model.unk_id() and self._model.id_to_piece(found) != token:
            return None
        return found if found >= 0 else None
