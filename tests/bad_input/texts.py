"""Texts and folders of token shards that cannot be trained on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bad_input.case import Case, Content, Files, cases, files_cases
from tests.test_shards import DAMAGE, tokens_of, write_shards

LONG = "In the beginning God created the heaven and the earth.\n" * 200

TEXTS: dict[str, tuple[Files, Sequence[str]]] = {
    "is empty": ({"a.txt": ""}, ["data.path=a.txt", "is empty"]),
    "is one letter": ({"a.txt": "a"}, ["data.path=", "longer text"]),
    "is too short for a validation part": ({"a.txt": "nineteen letters !!"}, ["data.path=", "longer text"]),
    "is too short for a sequence": ({"a.txt": LONG[:1000]}, ["training.sequence_length=64", "longer text"]),
    "is no UTF-8": ({"a.txt": LONG.encode() + b"caf\xe9\n"}, ["data.path=a.txt", "line 201", "0xe9", "UTF-8"]),
    "is UTF-8 cut off": ({"a.txt": LONG.encode() + "é".encode()[:1]}, ["data.path=a.txt", "UTF-8"]),
    "is UTF-16": ({"a.txt": LONG.encode("utf-16")}, ["data.path=a.txt", "UTF-8"]),
    "holds a NUL": ({"a.txt": LONG + "\0" + LONG}, ["data.path=a.txt", "NUL"]),
    "is binary": ({"a.txt": bytes(range(256)) * 40}, ["data.path=a.txt", "NUL"]),
    "is a folder": ({"a.txt/b.txt": LONG}, ["data.path=a.txt", "a.txt/**/*.txt"]),
    "is an empty folder": ({"a.txt": None}, ["data.path=a.txt", "is a folder"]),
    "is not there": ({}, ["data.path=a.txt", "no file matches"]),
    "is a link to nothing": (
        {"a.txt": lambda path: path.symlink_to("nowhere")},
        ["data.path=a.txt", "cannot be read"],
    ),
    "is a link to itself": ({"a.txt": lambda path: path.symlink_to("a.txt")}, ["data.path=a.txt"]),
}

PATHS = [
    ("data=text", ["data.path", "FILE"]),
    ("data=text data.path=", ["data.path=", "FILE"]),
    ("data=text data.path=/nowhere/*.txt", ["data.path=/nowhere/*.txt", "no file matches"]),
    ("data=text data.path=*.rst", ["data.path=*.rst", "no file matches"]),
    ("data=text data.path=*.txt", ["data.path=b.txt", "is empty"]),
    ("data=text data.path=a.txt,b.txt", ["data.path=a.txt,b.txt", "one value"]),
    ("data=text data.path=[a.txt]", ["data.path=['a.txt']", "string"]),
    ("data=text data.path=/dev/null", ["data.path=/dev/null", "is empty"]),
    ("data=text data.path=/proc/self/mem", ["data.path=/proc/self/mem", "cannot be read"]),
    (f"data=text data.path={'x' * 5000}", ["data.path=xxx"]),
    ("data=shards", ["data.path=None", "data.path=FOLDER"]),
    ("data=shards data.path=", ["data.path=", "data.path=FOLDER"]),
    ("data=shards data.path=nowhere", ["data.path=nowhere", "is not a folder"]),
    ("data=shards data.path=a.txt", ["data.path=a.txt", "is not a folder"]),
    ("data=shards data.path=foreign", ["data.path=foreign", "stability.prepare"]),
    ("data.name=shards data.path=foreign", ["data.path=foreign", "stability.prepare"]),
]
AROUND: Files = {"a.txt": LONG, "b.txt": "", "foreign/thesis.tex": "precious"}


def shards(damage: Callable[[Path], object] = lambda folder: None, **manifest: Any) -> Content:
    """A good folder of shards, then damaged."""

    def make(folder: Path) -> None:
        write_shards(folder, [tokens_of(700), tokens_of(1), tokens_of(333)], [tokens_of(200)], **manifest)
        damage(folder)

    return make


def edited(**values: Any) -> Content:
    """A folder of shards whose manifest says other things."""

    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return shards(edit)


SHARDS: dict[str, tuple[Files, Sequence[str]]] = {
    **{f"damaged {i}": ({"s": shards(damage)}, ["=s"]) for i, (damage, _) in enumerate(DAMAGE)},
    "a manifest of no bytes": ({"s/manifest.json": ""}, ["s/manifest.json", "not valid JSON"]),
    "a manifest that is a folder": ({"s/manifest.json": None}, ["data.path=s"]),
    "a manifest of NaN": ({"s/manifest.json": "NaN"}, ["s/manifest.json"]),
    "a manifest of a number that is too long": (
        {"s/manifest.json": '{"schema_version": 1, "corpus": ' + "9" * 5000 + "}"},
        ["s/manifest.json"],
    ),
    "shards outside of the folder": (
        {"s": edited(train=[{"file": "../../secret.bin", "tokens": 5, "sha256": "0" * 64}])},
        ["data.path=s/manifest.json"],
    ),
    "counts that are words": ({"s": edited(counts={"documents": "many"})}, ["s/manifest.json", "many"]),
    "no counts": ({"s": edited(counts=None)}, ["s/manifest.json", "counts"]),
    "a tokenizer of no kind": ({"s": edited(tokenizer={"kind": "words"})}, ["s/manifest.json", "tokenizer"]),
    "a vocabulary of a fraction": ({"s": edited(vocabulary_size=300.5)}, ["s/manifest.json", "300.5"]),
    "a part of a list": ({"s": edited(train=[3])}, ["s/manifest.json", "train.0=3"]),
    "too few tokens for a sequence": ({"s": shards()}, ["training.sequence_length=600", "longer text"]),
}


def text_cases() -> list[Case]:
    """All of them."""
    words = "data=shards data.path=s training.sequence_length={} dry_run=true"
    return [
        *files_cases("run", "data=text data.path=a.txt dry_run=true", TEXTS),
        *cases("run", PATHS, AROUND),
        *files_cases("run", words.format(600), SHARDS),
        Case("run", ("data=text", "data.path=a.txt"), ("data.path=a.txt", "cannot be read", "Permission"),
             {"a.txt": LONG}, "unreadable", {"a.txt": 0o000}),
        Case("run", ("data=text", "data.path=a/*.txt"), ("data.path=a/*.txt", "no file matches"),
             {"a/b.txt": LONG}, "in an unreadable folder", {"a": 0o000}),
        Case("run", ("data=shards", "data.path=s"), ("s/manifest.json", "cannot be read"),
             {"s": shards()}, "unreadable manifest", {"s/manifest.json": 0o000}),
    ]  # fmt: skip
