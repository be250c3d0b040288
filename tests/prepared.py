"""What tests of preparing data share: documents in every form, and a folder of shards read back."""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from stability.data.manifest import Manifest, read_manifest
from stability.data.preparation.packing import is_validation

WORDS = (
    "und",
    "the",
    "earth",
    "was",
    "without",
    "form,",
    "void;",
    "über",
    "naïve",
    "東京",
    "λόγος",
    "🙂",
    "moved",
    "upon",
)


def some_documents(count: int, seed: int = 0) -> list[str]:
    """Different documents of a few words each, on one line."""
    random = np.random.default_rng(seed)
    return [f"{i} " + " ".join(random.choice(WORDS, random.integers(1, 30))) for i in range(count)]


def expected_parts(documents: Sequence[str], fraction: float) -> dict[str, list[str]]:
    """Which documents belong to which part, in their order."""
    held = [is_validation(text.encode(), fraction) for text in documents]
    return {
        "train": [text for text, out in zip(documents, held, strict=True) if not out],
        "validation": [text for text, out in zip(documents, held, strict=True) if out],
    }


def tokens_of(folder: Path, part: str, manifest: Manifest) -> np.ndarray:
    """All tokens of a part."""
    shards = manifest.train if part == "train" else manifest.validation
    return np.concatenate([np.fromfile(folder / shard.file, manifest.token_dtype) for shard in shards])


def read_back(folder: Path, decode: Callable[[list[int]], str]) -> dict[str, list[str]]:
    """The documents of each part, as cut at the ends of sequence and decoded."""
    manifest = read_manifest(folder, "folder")
    parts = {}
    for part in ("train", "validation"):
        tokens = tokens_of(folder, part, manifest)
        end = manifest.tokenizer.end_of_sequence
        assert tokens[-1] == end
        parts[part] = [decode(one.tolist()) for one in np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]]
    return parts


def from_bytes(ids: list[int]) -> str:
    """What a document of the byte tokenizer says, its end left out."""
    return bytes(ids[:-1]).decode()


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content's hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def json_lines(documents: Sequence[str], **more: Any) -> bytes:
    return "".join(json.dumps({"text": text, "url": "x", **more}) + "\n" for text in documents).encode()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_parquet(path: Path, documents: Sequence[str], rows: int = 7, field: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"url": ["x"] * len(documents), field: list(documents)})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)


def write_card(path: Path, configs: Sequence[str]) -> None:
    """The page of a data set with its configurations, as C4's says them."""
    lines = [f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/c4-train.*\n" for c in configs]
    (path / "README.md").write_text("---\nlicense:\n- odc-by\nconfigs:\n" + "".join(lines) + "---\n\n# A card\n")


def write_hub_folder(path: Path, documents: Sequence[str], files: int = 3, ending: str = "json.gz") -> None:
    """One configuration of a data set as the hub has C4's: numbered files in a folder of their own."""
    path.mkdir(parents=True)
    for i, share in enumerate(np.array_split(np.arange(len(documents)), files)):
        texts = [documents[j] for j in share]
        file = path / f"c4-train.{i:05d}-of-{files:05d}.{ending}"
        if ending == "parquet":
            write_parquet(file, texts)
        else:
            file.write_bytes(gzip.compress(json_lines(texts, timestamp="2019-04-25T12:57:54Z"), mtime=0))
