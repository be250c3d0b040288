"""Tables that `stability.analyze` cannot read: every kind of wrong cell, line, column and file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tests.bad_input.case import Case, Content, Files, cases, files_cases
from tests.test_tables import BAD_CELLS, BAD_LINES, LONG, SHORT, good_line

GOOD = f"{SHORT}\n1000,0.01,2.0\n1000,0.1,2.5\n1000,1.0,3.0\n"


def line_cases() -> list[Case]:
    """Each wrong line of `tests.test_tables`, the fourth of a file; the suite has them there."""
    found = []
    for about, (header, line, key) in BAD_LINES.items():
        text = "\n".join([header, good_line(header), "", line, ""])
        named = (f"{key}=", "line 4", "t.csv")
        found.append(Case("analyze", ("source=t.csv",), named, {"t.csv": text}, about, in_suite=False))
    return found


def cell_cases() -> list[Case]:
    """Each wrong cell of `tests.test_tables`, the second of a Parquet file; the suite has them there."""
    found = []
    for about, (column, cells) in BAD_CELLS.items():
        content = {"n_params": [10, 10], "learning_rate": [0.1, 0.2], "loss": [2.0, 2.0], column: cells}
        files: Files = {"t.parquet": parquet(content)}
        named = (f"{column}=", "row 2", "t.parquet")
        found.append(Case("analyze", ("source=t.parquet",), named, files, about, in_suite=False))
    return found


def parquet(content: Mapping[str, Sequence[Any]]) -> Content:
    """A Parquet file of these columns."""
    return lambda path: pl.DataFrame(content).write_parquet(path)


def truncated(path: Path) -> None:
    """A Parquet file whose second half is missing."""
    pl.DataFrame({"n_params": [10] * 99, "learning_rate": [0.1] * 99, "loss": [2.0] * 99}).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


TEXT: dict[str, tuple[Files, Sequence[str]]] = {
    # what is wrong -> (t.csv, what the message must name)
    "empty": ({"t.csv": ""}, ["source=t.csv", "is empty", "n_params,learning_rate,loss"]),
    "blank lines": ({"t.csv": "\n\n\n"}, ["source=t.csv", "is empty"]),
    "a byte-order mark and nothing": ({"t.csv": b"\xef\xbb\xbf"}, ["source=t.csv", "is empty"]),
    "a header alone": ({"t.csv": f"{SHORT}\n"}, ["source=t.csv", "no runs"]),
    "a header and blank lines": ({"t.csv": f"{SHORT}\n,,\n\n"}, ["source=t.csv", "no runs"]),
    "no header": ({"t.csv": "1000,0.1,2\n1000,0.2,3\n"}, ["source=t.csv", "lacks the columns"]),
    "a missing column": ({"t.csv": "n_params,learning_rate\n10,0.1\n"}, ["source=t.csv", "column.loss="]),
    "columns of other names": ({"t.csv": "size,lr,eval\n10,0.1,2\n"}, ["source=t.csv", "column.learning_rate=lr"]),
    "a header in capitals": (
        {"t.csv": "N_PARAMS,LEARNING_RATE,LOSS\n10,0.1,2\n"},
        ["source=t.csv", "lacks the columns"],
    ),
    "a column twice": ({"t.csv": f"{SHORT},loss\n10,0.1,2,3\n"}, ["source=t.csv", "loss twice"]),
    "semicolons throughout": ({"t.csv": GOOD.replace(",", ";")}, ["source=t.csv", "lacks the columns"]),
    "tabs in a .csv": ({"t.csv": GOOD.replace(",", "\t")}, ["source=t.csv", "lacks the columns"]),
    "spaces": ({"t.csv": GOOD.replace(",", " ")}, ["source=t.csv", "lacks the columns"]),
    "a ragged line": ({"t.csv": GOOD + "1000,2.0\n"}, ["source=t.csv", "line 5"]),
    "a quote that never ends": ({"t.csv": GOOD + '"1000,2.0,3.0\n'}, ["source=t.csv", "line 5"]),
    "UTF-16": ({"t.csv": GOOD.encode("utf-16")}, ["source=t.csv", "UTF-8"]),
    "Latin-1": ({"t.csv": f"{SHORT},arm\n10,0.1,2,caf".encode() + b"\xe9\n"}, ["source=t.csv", "line 2"]),
    "NUL bytes": ({"t.csv": GOOD.replace("2.5", "2\x005")}, ["loss=", "line 3"]),
    "JSON": ({"t.csv": '[{"n_params": 10}]'}, ["source=t.csv", "lacks the columns"]),
    "a web page": ({"t.csv": "<!doctype html>\n<html></html>\n"}, ["source=t.csv", "lacks the columns"]),
    "NaN for a learning rate": ({"t.csv": GOOD.replace("0.1,", "NaN,")}, ["learning_rate='NaN'", "line 3"]),
    "a negative N": ({"t.csv": GOOD.replace("1000,0.1,", "-1000,0.1,")}, ["n_params='-1000'", "line 3"]),
    "text for a loss": ({"t.csv": GOOD.replace("2.5", "diverged")}, ["loss='diverged'", "line 3"]),
    "a run twice": ({"t.csv": GOOD + "1000,0.1,9\n"}, ["lines 3 and 5"]),
    "a step twice": ({"t.csv": f"{LONG}\n10,0.1,0,5\n10,0.1,0,4\n"}, ["lines 2 and 3"]),
    "two statuses": (
        {"t.csv": f"{LONG},status\n10,0.1,0,5,running\n10,0.1,1,4,finished\n"},
        ["status=", "lines 2 and 3"],
    ),
    "an executable": ({"t.csv": b"\x7fELF\x02\x01\x01" + bytes(200)}, ["source=t.csv"]),
    "a folder": ({"t.csv": None}, ["source=t.csv", "sweep.json"]),
    "a compressed file": ({"t.csv": b"\x1f\x8b\x08\x00" + bytes(range(100, 200))}, ["source=t.csv"]),
    "a line of a million cells": ({"t.csv": GOOD + "," * 1_000_000 + "\n1,\n"}, ["source=t.csv", "line"]),
    "a cell of a megabyte": ({"t.csv": GOOD + "1" * 1_000_000 + ",0.1,2\n"}, ["n_params=", "line 5"]),
}

OTHERS: list[tuple[str, Files, Sequence[str]]] = [
    ("t.tsv", {"t.tsv": GOOD}, ["source=t.tsv", "lacks the columns"]),
    ("t.tsv", {"t.tsv": ""}, ["source=t.tsv", "is empty"]),
    ("t.parquet", {"t.parquet": GOOD}, ["source=t.parquet", "not a Parquet file"]),
    ("t.parquet", {"t.parquet": ""}, ["source=t.parquet", "not a Parquet file"]),
    ("t.parquet", {"t.parquet": truncated}, ["source=t.parquet", "damaged Parquet"]),
    ("t.parquet", {"t.parquet": b"PAR1" + bytes(1000) + b"PAR1"}, ["source=t.parquet", "damaged Parquet"]),
    ("t.parquet", {"t.parquet": b"PAR1"}, ["source=t.parquet", "damaged Parquet"]),
    ("t.parquet", {"t.parquet": parquet({"a": [1]})}, ["source=t.parquet", "lacks the columns"]),
    (
        "t.parquet",
        {"t.parquet": parquet({"n_params": [[1]], "learning_rate": [0.1], "loss": [2.0]})},
        ["n_params=", "List"],
    ),
    (
        "t.parquet",
        {"t.parquet": parquet({"n_params": [], "learning_rate": [], "loss": []})},
        ["source=t.parquet", "no runs"],
    ),
    ("t.xlsx", {"t.xlsx": b"PK\x03\x04" + bytes(100)}, ["source=t.xlsx"]),
    ("a.csv,b.csv", {"a.csv": GOOD, "b.csv": GOOD}, ["source=", "a.csv", "b.csv"]),
    ("a.csv,b.csv", {"a.csv": GOOD}, ["source=b.csv", "does not exist"]),
    ("a.csv,a.csv", {"a.csv": GOOD}, ["source=a.csv", "twice"]),
]

WORDS = [
    # of stability.analyze, with a good table beside
    ("runs.csv", ["argument=runs.csv", "source=runs.csv"]),
    ("output_dir=x", ["source=", "is missing"]),
    ("source=", ["source="]),
    ("source=,", ["source="]),
    ("source=nowhere", ["source=nowhere", "does not exist"]),
    ("source=/dev/null", ["source=/dev/null", "is empty"]),
    ("source=foreign", ["source=foreign", "sweep.json"]),
    ("source=runs.csv colour=red", ["colour=red", "source"]),
    ("source=runs.csv =red", ["=red"]),
    ("source=runs.csv column.loss=eval", ["column.loss=eval", "'eval' is not a column"]),
    ("source=runs.csv column.losss=loss", ["column.losss=loss", "column.loss"]),
    ("source=runs.csv column.=loss", ["column.=loss"]),
    ("source=runs.csv column.loss=", ["column.loss="]),
    ("source=runs.csv column.arm=loss,nope", ["column.arm=loss,nope", "'nope' is not a column"]),
    ("source=runs.csv claims=absent.yaml", ["claims=absent.yaml", "YAML file"]),
    ("source=runs.csv claims=foreign", ["claims=foreign", "cannot be read"]),
    ("source=runs.csv claims=runs.csv", ["claims=runs.csv", "`claims`"]),
    ("source=runs.csv forecasts=absent.yaml", ["forecasts=absent.yaml", "YAML file"]),
    ("source=runs.csv forecasts=runs.csv", ["forecasts=runs.csv", "`claims`"]),
    ("source=runs.csv forecast_n_params=1e6,many", ["forecast_n_params", "many"]),
    ("source=runs.csv forecast_n_params=-5", ["forecast_n_params", "-5"]),
    ("source=runs.csv learning_rate_min=1 learning_rate_max=0.1", ["learning_rate_min=1", "learning_rate_max=0.1"]),
    ("source=runs.csv learning_rate_min=7", ["learning_rate_min=7", "every learning rate", "Widen"]),
    ("source=runs.csv figures=svg,gif", ["figures", "gif", "'svg'"]),
    ("source=runs.csv output_dir=runs.csv", ["output_dir=runs.csv", "folder"]),
    ("source=runs.csv output_dir=runs.csv/x", ["output_dir=runs.csv/x"]),
    ("source=runs.csv output_dir=/proc/x", ["output_dir=/proc/x"]),
    ("source=runs.csv output_dir=other", ["output_dir=other", "'theirs'"]),
    ("source=runs.csv output_dir=strange", ["output_dir=strange", "summary.json"]),
    ("source=wandb:", ["source=wandb:", "wandb:ENTITY/PROJECT?group=SWEEP"]),
    ("source=wandb:a/b/c?group=x", ["source=wandb:a/b/c?group=x", "wandb:ENTITY/PROJECT?group=SWEEP"]),
    ("source=wandb:me/mine", ["source=wandb:me/mine", "wandb:ENTITY/PROJECT?group=SWEEP"]),
    ("source=wandb:me/mine?group=x", ["source=wandb:me/mine?group=x", "wandb login"]),
    ("--nope", ["argument=--nope", "--help"]),
    ("", ["source=", "is missing"]),
]
NEARBY: Files = {
    "runs.csv": GOOD,
    "foreign/thesis.tex": "precious",
    "other/summary.json": '{"schema_version": 1, "sweep": "theirs"}',
    "strange/summary.json": "not ours",
}

CLAIMS: dict[str, tuple[Content, Sequence[str]]] = {
    # what is wrong -> (claims.yaml, what the message must name)
    "claims of a list": ("claims: [1, 2]", ["claims=[1, 2]", "claims.yaml"]),
    "a claim of no kind": ("claims: {a: {kind: nonsense}}", ["claims.a.kind=nonsense", "sensitivity_below"]),
    "a reference": (
        "claims: {a: {kind: stable_edge_falls_with_n, arm: '${ladder.series.main}'}}",
        ["${ladder.series.main}"],
    ),
    "a reserved name": ("quantities: {loss: {metric: x}}", ["quantities.loss"]),
    "a misspelt key": ("quantities: {q: {metric: x, at_stp: 3}}", ["quantities.q.at_stp=3", "at_step"]),
    "neither": ("colour: red", ["claims=claims.yaml", "`claims`"]),
    "a list": ("- 1", ["claims=claims.yaml", "`claims`"]),
    "empty": ("", ["claims=claims.yaml", "`claims`"]),
    "broken": ("a: [", ["claims=claims.yaml", "YAML", "line 1"]),
    "an object of Python": ("!!python/object/apply:os.getcwd []", ["claims=claims.yaml", "YAML"]),
    "no UTF-8": (b"claims: caf\xe9", ["claims=claims.yaml", "YAML"]),
    "NUL bytes": (b"claims: {a: \0}", ["claims=claims.yaml", "YAML"]),
    "a name that is a number": ("claims: {1: {kind: stable_edge_falls_with_n}, 2: 3}", ["claims.2=3"]),
    "a key that is a list": ("? [a, b]\n: 3\nclaims: {}", ["claims=claims.yaml"]),
    "a name that is null": ("quantities: {null: {metric: x}}", ["quantities="]),
    "aliases without end": ("claims: &a {it: *a}", ["claims"]),
}


def table_cases() -> list[Case]:
    """All of them."""
    claims = {about: ({"runs.csv": GOOD, "claims.yaml": content}, named) for about, (content, named) in CLAIMS.items()}
    return [
        *line_cases(),
        *cell_cases(),
        *files_cases("analyze", "source=t.csv", TEXT),
        *(
            Case("analyze", (f"source={name}",), tuple(named), files, f"{name}, {i}")
            for i, (name, files, named) in enumerate(OTHERS)
        ),
        *cases("analyze", WORDS, NEARBY),
        *files_cases("analyze", "source=runs.csv claims=claims.yaml", claims),
        Case("analyze", ("source=runs.csv",), ("source=runs.csv", "cannot be read"), {"runs.csv": GOOD},
             "unreadable", {"runs.csv": 0o000}),
        Case("analyze", ("source=runs.csv", "output_dir=locked/x"), ("output_dir=locked/x", "cannot be written"),
             {"runs.csv": GOOD, "locked": None}, "into a locked folder", {"locked": 0o555}),
    ]  # fmt: skip
