"""Results folders whose records are damaged, for every command that reads them; and words for these commands."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bad_input.case import Case, Content, Files, cases, files_cases
from tests.test_analysis_load import add_run, config, manifest, result

DAMAGED: list[tuple[str, str, str, Sequence[str]]] = [
    # what is wrong, the file, what stands there instead, and what the message must name
    ("sweep.json is cut off", "sweep.json", '{"schema_version": 1, "sw', ["sweep.json", "not valid JSON"]),
    ("sweep.json is empty", "sweep.json", "", ["sweep.json", "not valid JSON"]),
    ("sweep.json is a list", "sweep.json", "[1]", ["sweep.json", "JSON object"]),
    ("sweep.json is of another version", "sweep.json", '{"schema_version": 9}', ["sweep.json", "schema_version 9"]),
    ("sweep.json holds nothing else", "sweep.json", '{"schema_version": 1}', ["sweep.json", "`sweep`"]),
    (
        "sweep.json has runs of no kind",
        "sweep.json",
        '{"schema_version": 1, "sweep": "s", "scales": {}, "runs": 7, "commands": []}',
        ["sweep.json", "`runs`"],
    ),
    (
        "sweep.json has a search of no kind",
        "sweep.json",
        '{"schema_version": 1, "sweep": "s", "scales": {}, "runs": [], "commands": [], "search": 3}',
        ["sweep.json", "`search`"],
    ),
    ("sweep.json is nested without end", "sweep.json", '{"a":' * 100_000, ["sweep.json", "not valid JSON"]),
    ("summary.json is cut off", "runs/run-a/summary.json", '{"schema_version": 1,', ["summary.json", "not valid JSON"]),
    ("summary.json is a number", "runs/run-a/summary.json", "3", ["summary.json", "JSON object"]),
    ("summary.json holds nothing", "runs/run-a/summary.json", '{"schema_version": 1}', ["summary.json", "`"]),
    (
        "summary.json has an unknown status",
        "runs/run-a/summary.json",
        '{"schema_version": 1, "fingerprint": "a", "status": "happy"}',
        ["summary.json", "`status`"],
    ),
    (
        "summary.json has a loss that is a word",
        "runs/run-a/summary.json",
        '{"schema_version": 1, "fingerprint": "a", "status": "finished", "loss_validation": "low"}',
        ["summary.json", "`loss_validation`"],
    ),
]
OF_ANALYSIS: list[tuple[str, str, str, Sequence[str]]] = [
    ("config.json is cut off", "runs/run-a/config.json", "{", ["config.json", "not valid JSON"]),
    ("config.json has no config", "runs/run-a/config.json", '{"schema_version": 1}', ["config.json", "`config`"]),
    (
        "config.json has an empty config",
        "runs/run-a/config.json",
        '{"schema_version": 1, "config": {}}',
        ["config.json", "`optimizer.learning_rate`"],
    ),
    (
        "config.json has a width that is a word",
        "runs/run-a/config.json",
        json.dumps({"schema_version": 1, "config": {**config(), "model": {**config()["model"], "width": "wide"}}}),
        ["config.json", "`model.width`"],
    ),
    ("provenance.json is cut off", "runs/run-a/provenance.json", "{", ["provenance.json", "not valid JSON"]),
    (
        "provenance.json has starts of no kind",
        "runs/run-a/provenance.json",
        '{"schema_version": 1, "starts": 5}',
        ["provenance.json", "`starts`"],
    ),
]
EVERYONE = "analyze early_warning status"
METRICS: dict[str, tuple[str, str]] = {
    # what is wrong -> metrics.jsonl, and the commands that have to notice it; the message must name the file
    "a line that is no JSON": (
        '{"step": 0, "loss/train": 6.0}\n{"step": 10, "loss/t\n{"step": 20}\n',
        "early_warning status",
    ),
    "a line that is no row": ('{"step": 0}\n[1, 2]\n', EVERYONE),
    "a row without a step": ('{"step": 0, "loss/train": 6.0}\n{"loss/train": 5.0}\n', EVERYONE),
    "a step that is a word": ('{"step": "first", "loss/train": 6.0}\n', EVERYONE),
    "a value that is a word": ('{"step": 0, "loss/train": "high"}\n', "analyze early_warning"),
    "a value that is a list": ('{"step": 0, "loss/train": [6.0]}\n', "analyze early_warning"),
    "bytes that are no text": ('{"step": 0, "loss/train": \udcff}\n', EVERYONE),
}


def records(file: str = "", content: str = "", **more: Any) -> Content:
    """A results folder of two runs, one finished and one under way, with one file replaced."""

    def make(folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = {"time": "2026-01-01", "command": "python -m stability.run +sweep=s"}
        manifest(folder, ["a", "b"], commands=[command], settings={}, sweep_id="00", **more)
        add_run(folder, "a", config(), **result(config()))
        add_run(folder, "b", {**config(seed=1), "training": {"steps": 500}})
        for run in ("run-a", "run-b"):
            (folder / "runs" / run / "metrics.jsonl").write_text('{"step": 0, "loss/train": 6.0}\n')
        if file:
            (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))

    return make


def damaged_cases(program: str, words: str, table: Sequence[tuple[str, str, str, Sequence[str]]]) -> list[Case]:
    """A command on the folder `results/s`, once for each damage; one on `results` has a good folder beside it."""
    files: dict[str, tuple[Files, Sequence[str]]] = {
        about: ({"results/r": records(), "results/s": records(file, content)}, named)
        for about, file, content, named in table
    }
    return files_cases(program, words, files)


def metrics_cases() -> list[Case]:
    """Damaged metrics, for the commands that read rows: of the run under way, and of one that is over."""
    quantity = {"quantities": {"loss_mean": {"metric": "loss/train", "reduce": "mean"}}}
    found = []
    for about, (content, readers) in METRICS.items():
        for program in readers.split():
            run = "run-b" if program == "status" else "run-a"
            words = ("results/s",) if program == "status" else ("source=results/s",)
            if program == "early_warning":
                program, words = "analyze", (*words, "early_warning=true")
            more = quantity if words == ("source=results/s",) else {}
            files: Files = {"results/s": records(f"runs/{run}/metrics.jsonl", content, **more)}
            found.append(Case(program, words, (f"{run}/metrics.jsonl",), files, about))
    return found


STATUS = [
    ("nowhere", ["folder=nowhere", "results/NAME"]),
    ("foreign", ["folder=foreign", "results/NAME"]),
    ("a.txt", ["folder=a.txt", "results/NAME"]),
    ("", ["argument=", "folder"]),
    ("foreign nowhere", ["argument=nowhere", "--help"]),
    ("--all foreign", ["argument=--all", "--help"]),
    ("x" * 5000, ["file=xxx", "too long"]),
]
ALARMS = [
    ("source=nowhere", ["source=nowhere", "results folder"]),
    ("source=foreign", ["source=foreign", "results folder"]),
    ("source=a.txt", ["source=a.txt", "results folder"]),
    ("source=", ["source="]),
    ("choose=a", ["source=", "is missing"]),
    ("results", ["argument=results", "source=results"]),
    ("source=results choose=nope", ["choose=nope", "r, s"]),
    ("source=results choose=r,s", ["choose=r,s", "not all"]),
    ("source=results/r", ["choose=r", "not all"]),
    ("source=results output=nowhere/rates.json", ["output=nowhere/rates.json", "Name a file"]),
    ("source=results output=foreign", ["output=foreign", "folder"]),
    ("source=results output=", ["output="]),
    ("source=results output=/proc/x.json", ["output=/proc/x.json"]),
    ("source=results sorce=x", ["sorce=x", "source"]),
    ("", ["source=", "is missing"]),
]
WORKSPACE = [
    ("project=me/mine", ["sweep=", "is missing"]),
    ("sweep=one", ["project=", "is missing"]),
    ("project=mine sweep=one", ["project=mine", "ENTITY/PROJECT"]),
    ("project=/mine sweep=one", ["project=/mine", "ENTITY/PROJECT"]),
    ("project=me/ sweep=one", ["project=me/", "ENTITY/PROJECT"]),
    ("project=a/b/c sweep=one", ["project=a/b/c", "ENTITY/PROJECT"]),
    ("project= sweep=one", ["project=", "ENTITY/PROJECT"]),
    ("project=me/mine sweep=one", ["project=me/mine", "wandb login"]),
    ("me/mine", ["argument=me/mine", "project=me/mine"]),
    ("", ["project=", "is missing"]),
]
NEARBY: Files = {"a.txt": "precious", "foreign/thesis.tex": "precious"}
RESULTS: Files = {**NEARBY, "results/r": records(), "results/s": records()}


def record_cases() -> list[Case]:
    """All of them."""
    return [
        *damaged_cases("analyze", "source=results/s", [*DAMAGED, *OF_ANALYSIS]),
        *damaged_cases("alarms", "source=results", [*DAMAGED[:2], *DAMAGED[8:], *OF_ANALYSIS]),
        *damaged_cases("status", "results/s", DAMAGED[:8]),
        *metrics_cases(),
        *cases("status", STATUS, NEARBY),
        *cases("alarms", ALARMS, RESULTS),
        *cases("workspace", WORKSPACE),
        Case("status", ("results/s",), ("sweep.json", "cannot be read"), {"results/s": records()}, "unreadable",
             {"results/s/sweep.json": 0o000}),
        Case("analyze", ("source=results/s",), ("sweep.json", "cannot be read"), {"results/s": records()}, "unreadable",
             {"results/s/sweep.json": 0o000}),
        Case("analyze", ("source=results/s",), ("results/s", "cannot be written"), {"results/s": records()},
             "read-only", {"results/s": 0o555}),
    ]  # fmt: skip
