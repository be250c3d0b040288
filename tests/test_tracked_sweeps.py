"""Sweeps tracked by W&B, read back with its own tool and through its API, and by a tracker of a user's own."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import TINY
from fake_wandb import KEY, FakeWandb, environment, inspect, known_run, serve
from polars.testing import assert_frame_equal
from quick import QUICKLY

from stability.analysis import load, read
from stability.tracking.files import read_json
from stability.tracking.highlights import first_step_above
from stability.tracking.names import RECORD, SECTIONS, tracked_name
from stability.tracking.record import read_rows, run_folders

SWEEP = """
# @package _global_
sweep:
  question: Does W&B hold all of it?
  grids:
    main:
      loss.z_loss: [0.0, 1.0]
      optimizer.learning_rate: [0.01, 0.1, 1e30]
  quantities:
    early_logit: {metric: attention_logit/max, at_step: 10}
    gradient: {metric: gradient/rms/head, last_steps: 15, reduce: mean}
    bad_loss: {metric: loss/train}
    recent: {metric: loss/train_recent_max, reduce: max}
  claims:
    apart: {kind: sensitivity_below, arm: z_loss=1.0, than: z_loss=0.0}
"""


def start(folder: Path, cache: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m stability.run WORDS` in a process of its own, compiled quickly and once for all."""
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
    more = {
        "STABILITY_NO_REEXECUTION": "1",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **variables,
    }
    command = [sys.executable, "-m", "stability.run", *[word for word in TINY if word != "tracking=files"], *words]
    env = environment(folder / "home", **more)
    env["PYTHONPATH"] += os.pathsep + str(folder)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Tracked:
    """A finished sweep, what its command said, and what W&B's files hold: run id -> run."""

    root: Path
    out: str
    wandb: dict[str, dict[str, Any]]
    records: dict[str, list[dict[str, Any]]]

    @property
    def folder(self) -> Path:
        return self.root / "out"

    @property
    def analysis(self) -> dict[str, Any]:
        (run,) = [run for run in self.wandb.values() if run["jobType"] == "analysis"]
        return run


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    root = tmp_path_factory.mktemp("sweep")
    (root / "sweeps" / "sweep").mkdir(parents=True)
    (root / "sweeps" / "sweep" / "tiny.yaml").write_text(SWEEP)
    shown = ("figures=[svg,png]", "report=true")
    done = start(root, root / "compiled", "+sweep=tiny", "training.evaluate_every=10", *shown, "output_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tracking is off" not in done.stdout
    files = sorted((root / "out" / "wandb").glob("*/run-*.wandb"))
    records = {file.stem.removeprefix("run-"): inspect(file, root / "home") for file in files}
    assert len(records) == len(files) == 7
    return Tracked(root, done.stdout, {key: known_run(value) for key, value in records.items()}, records)


def test_wandb_holds_every_number_of_the_record(tracked: Tracked) -> None:
    sections = set()
    for folder in run_folders(tracked.folder):
        (run,) = [run for id_, run in tracked.wandb.items() if id_.startswith(folder.path.name.rsplit("-", 1)[-1])]
        rows: dict[int, dict[str, Any]] = {}
        for row in read_rows(folder.metrics):
            kept = {tracked_name(name): value for name, value in row.items() if "/head_" not in name}
            rows.setdefault(int(row["step"] or 0), {}).update(kept)
        sent = [{name: value for name, value in row.items() if not name.startswith("_")} for row in run["history"]]
        for ours, theirs in zip(rows.values(), sent, strict=True):
            assert {name: None if isinstance(value, str) else value for name, value in theirs.items()} == ours
        assert [row["_step"] for row in run["history"]] == [row["step"] for row in sent]
        sections |= {name.split("/")[0] for row in sent for name in row if "/" in name}
        summary = {
            key: value for key, value in (folder.read_summary() or {}).items() if key != "metrics"
        }  # of the file
        assert {key: run["summary"].get(key) for key in summary} == {**summary, "schema_version": None}
        record = json.loads(run["config"][RECORD])
        assert record["config"] == folder.read_config()
        assert (run["group"], run["jobType"], run["state"]) == ("tiny", "train", "finished")
        assert ("diverged" in run["tags"]) == (summary["status"] == "diverged")
    assert sections == set(SECTIONS)


def test_summaries_have_extremes_and_first_steps(tracked: Tracked) -> None:
    stable, diverged = 0, 0
    for run in tracked.wandb.values():
        if run["jobType"] == "analysis":
            continue
        logits = {row["_step"]: row.get("attention_logit/max") for row in run["history"]}
        known = {step: value for step, value in logits.items() if isinstance(value, int | float)}
        assert run["summary"]["max/attention_logit/max"] == max(known.values())
        losses = [row["loss/validation"] for row in run["history"] if isinstance(row.get("loss/validation"), float)]
        assert run["summary"]["min/loss/validation"] == min(losses)
        above = [step for step, value in known.items() if value > 1e2]
        assert run["summary"].get(first_step_above("attention_logit/max", 1e2)) == min(above, default=None)
        diverged += run["summary"]["status"] == "diverged"
        stable += run["summary"]["status"] == "finished"
    assert (stable, diverged) == (4, 2)


def test_the_analysis_is_a_run_of_its_own(tracked: Tracked) -> None:
    run, summary = tracked.analysis, read_json(tracked.folder / "summary.json")
    assert (run["group"], run["state"]) == ("tiny", "finished")
    (row,) = run["history"]
    tables = {name.split(".")[0] for name in row if name.startswith("table/")}
    assert {"table/runs", "table/curves", "table/sensitivity", "table/claims"} <= tables
    assert row["table/runs.nrows"] == 6
    assert row["table/sensitivity.nrows"] == len(summary["sensitivity"])
    figures = {path.stem for path in (tracked.folder / "analysis").glob("*.png")}
    assert figures
    assert {name.split(".")[0].removeprefix("figure/") for name in row if name.startswith("figure/")} == figures
    assert row["figure/loss_by_learning_rate.caption"] == "Loss by learning rate"
    assert {"chart/loss_by_learning_rate_table.nrows", "chart/sensitivity_by_n_params_table.nrows"} <= row.keys()
    assert (run["summary"]["n_runs"], run["summary"]["n_diverged"], run["summary"]["complete"]) == (6, 2, True)
    (claim,) = summary["claims"]
    assert run["summary"]["claim/apart"] == claim["verdict"]
    scale = summary["sensitivity"][0]["scale"]
    means = {row["arm"]: row["value"] for row in summary["sensitivity"] if row["estimator"] == "mean"}
    assert {arm: run["summary"][f"sensitivity/{arm}/{scale}"] for arm in means} == means


def test_the_table_of_runs_holds_what_the_summary_does(tracked: Tracked) -> None:
    (file,) = (tracked.folder / "wandb").rglob("runs_*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for row, run in zip(rows, read_json(tracked.folder / "summary.json")["runs"], strict=True):
        plain = {key: value for key, value in run.items() if key != "quantities"} | run["quantities"]
        assert {key: row[key] for key in plain} == plain
        assert row["log10_learning_rate"] == math.log10(run["learning_rate"])


def test_the_artifacts_can_be_analysed_as_they_are(tracked: Tracked, tmp_path: Path) -> None:
    (id_,) = [id_ for id_, run in tracked.wandb.items() if run["jobType"] == "analysis"]
    artifacts = {one["artifact"]["type"]: one["artifact"] for one in tracked.records[id_] if one["type"] == "artifact"}
    analysis = {entry["path"] for entry in artifacts["analysis"]["manifest"]["contents"]}
    assert {"summary.json", "report.html", "analysis/loss_by_learning_rate.svg"} <= analysis
    (packed,) = artifacts["records"]["manifest"]["contents"]
    assert packed["path"] == "records.tar.gz"
    with tarfile.open(packed["local_path"]) as archive:
        archive.extractall(tmp_path / "records", filter="data")
    assert_frame_equal(load(tmp_path / "records"), load(tracked.folder))
    assert Path(packed["local_path"]).is_relative_to(tracked.folder), "what is still to be sent lies with the sweep"


def test_no_key_and_no_home_folder_in_what_is_sent(tracked: Tracked) -> None:
    assert KEY not in json.dumps(tracked.records)
    assert list((tracked.root / "home").iterdir()) == []


def test_the_end_tells_commands_for_exactly_its_runs(tracked: Tracked) -> None:
    lines = tracked.out.splitlines()
    assert "W&B: 7 runs on this disk only. To send, and to look at here:" in lines
    (sync,) = [line for line in lines if line.strip().startswith("wandb sync ")]
    (leet,) = [line for line in lines if line.strip().startswith("wandb leet ")]
    assert shlex.split(sync)[2:] == shlex.split(leet)[2:] == ["out/wandb"]
    words = [sys.executable, "-m", *shlex.split(sync), "--dry-run", "--verbose"]
    env = environment(tracked.root / "home")
    shown = subprocess.run(words, cwd=tracked.root, env=env, capture_output=True, text=True, check=True)
    assert "Would sync 7 run(s)" in shown.stdout + shown.stderr
    files = {line.split()[-1] for line in (shown.stdout + shown.stderr).splitlines() if line.endswith(".wandb")}
    assert {Path(file).stem.removeprefix("run-") for file in files} == tracked.wandb.keys()


READ = """
import json, sys, wandb
import stability.analysis.wandb_source as wandb_source
from stability.analysis import analyze, read
from stability.errors import InputError

wandb_source.RETRIES = 1
wandb.setup(wandb.Settings(silent=True))
for source in json.loads(sys.argv[1]):
    try:
        found = read(source)
        known = {"warnings": found.warnings, "complete": found.complete, "sweep": found.sweep}
        print(json.dumps({"table": found.table.write_json(), **known}))
    except InputError as error:
        print(json.dumps({"key": error.key, "value": error.value, "error": str(error)}))
"""


def read_through_wandb(home: Path, url: str, *sources: str, **more: str) -> list[dict[str, Any]]:
    (home / "scratch").mkdir(exist_ok=True)
    ours = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_CACHE_DIR": str(home / "cache")}
    env = environment(home, **{**ours, "TMPDIR": str(home / "scratch"), **more})
    command = [sys.executable, "-c", READ, json.dumps(sources)]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (home / "scratch" / "someone").exists()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(tracked: Tracked, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What reading each of several sources came to."""
    runs = list(tracked.wandb.values())
    trained = [run for run in runs if run["jobType"] == "train"]
    unfinished = [{**run, "summary": {}, "group": "unfinished"} for run in trained]
    foreign = [{**runs[0], "group": "foreign", "config": {"lr": 1}}]
    again = [
        {**run, "name": run["name"] + id_, "group": "twice", "config": run["config"] | {"sweep_id": id_}}
        for id_ in "ab"
        for run in runs
    ]
    no_analysis = [{**run, "group": "no_analysis"} for run in trained]
    project = [*runs, *unfinished, *foreign, *again, *no_analysis]
    fake = FakeWandb({("someone", "stability"): project})
    names = {
        "sweep": "wandb:someone/stability?group=tiny",
        "default_entity": "wandb:stability?group=tiny",
        "no_analysis": "wandb:someone/stability?group=no_analysis",
        "one_of_two": "wandb:someone/stability?group=twice&sweep_id=b",
        "two": "wandb:someone/stability?group=twice",
        "unfinished": "wandb:someone/stability?group=unfinished",
        "foreign": "wandb:someone/stability?group=foreign",
        "empty": "wandb:someone/stability?group=nothing",
        "no_project": "wandb:someone/nothing?group=tiny",
        "no_group": "wandb:someone/stability",
    }
    home = tmp_path_factory.mktemp("reader")
    with serve(fake) as url:
        found = dict(zip(names, read_through_wandb(home, url, *names.values()), strict=True))
    assert fake.unknown == []
    (found["down"],) = read_through_wandb(home, url, names["sweep"])
    (found["no_key"],) = read_through_wandb(home, url, names["sweep"], WANDB_API_KEY="")
    return found


def as_table(answer: dict[str, Any], like: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(json.loads(answer["table"]), schema=like.schema)


@pytest.mark.parametrize("name", ["sweep", "default_entity", "one_of_two"])
def test_a_sweep_on_wandb_is_the_table_that_its_folder_is(
    name: str, tracked: Tracked, answers: dict[str, dict[str, Any]]
) -> None:
    answer, ours = answers[name], read(tracked.folder)
    assert "error" not in answer
    theirs = as_table(answer, ours.table)
    assert_frame_equal(theirs.drop("folder"), ours.table.drop("folder"), check_exact=True)
    places = {folder.removesuffix("b") if name == "one_of_two" else folder for folder in theirs["folder"]}
    assert places == {f"someone/stability/{id_}" for id_ in tracked.wandb if "analysis" not in id_}
    assert (answer["sweep"], answer["complete"]) == ("tiny", True)
    assert answer["warnings"] == list(ours.warnings)
    assert ours.table["early_logit"].null_count() < ours.table.height
    assert ours.table["bad_loss"].null_count() == 2, "null, not passed over: the last value was not finite"


def test_without_an_analysis_run_the_sizes_are_named_by_their_numbers(
    tracked: Tracked, answers: dict[str, dict[str, Any]]
) -> None:
    answer = answers["no_analysis"]
    (warning,) = answer["warnings"]
    assert "no run of job type analysis" in warning
    ours = load(tracked.folder)
    theirs = as_table(answer, ours)
    assert theirs["loss_validation"].equals(ours["loss_validation"])
    assert theirs["arm"].equals(ours["arm"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two", "holds 2 sweeps of this name"),
        ("unfinished", "has 6 runs, and none has a result yet"),
        ("foreign", "which `stability` did not log"),
        ("empty", "holds no runs"),
        ("no_project", "Could not find project nothing"),
        ("no_group", "is no address on W&B"),
        ("down", "cannot be read from W&B"),
        ("no_key", "needs a W&B API key, and none is configured. Run `wandb login`."),
    ],
)
def test_what_cannot_be_read_is_said(name: str, said: str, answers: dict[str, dict[str, Any]]) -> None:
    answer = answers[name]
    assert answer["key"] == "source"
    assert answer["value"].startswith("wandb:")
    assert said in answer["error"]
    assert KEY not in answer["error"]


WORKSPACE = """
import sys
from stability.workspace import main
from stability.tracking.workspace import sweep_workspace
model = sweep_workspace("someone", "stability", "tiny")._to_model()
print(model.model_dump_json(by_alias=True, exclude_none=True))
sys.exit(main(sys.argv[1:]))
"""


def test_the_workspace_shows_what_the_runs_hold(tracked: Tracked, tmp_path: Path) -> None:
    fake = FakeWandb({("someone", "stability"): []})
    words = ["project=someone/stability", "sweep=tiny"]
    with serve(fake) as url:
        env = environment(tmp_path / "home", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
        command = [sys.executable, "-c", WORKSPACE, *words]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert fake.unknown == []
    shown, address = done.stdout.strip().splitlines()
    assert "/someone/stability?nw=" in address
    (saved,) = fake.saved
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("someone", "stability", "Sweep tiny")
    section = json.loads(saved["spec"])["section"]
    ours = json.loads(shown)["spec"]["section"]
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    assert [panel["viewType"] for panel in panels] == [
        panel["viewType"] for part in ours["panelBankConfig"]["sections"] for panel in part["panels"]
    ]
    assert section["panelBankConfig"]["settings"]["autoOrganizePrefix"] == 1, "a section for each first part of a name"
    (runs,) = section["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"], chosen["op"], chosen["value"]) == ({"section": "run", "name": "group"}, "=", "tiny")

    trained = [run for run in tracked.wandb.values() if run["jobType"] == "train"]
    titles = set()
    for panel in panels:
        config = panel["config"]
        titles.add(config.get("chartTitle") or config["stringSettings"]["title"])
        if panel["viewType"] == "Scatter Plot":
            assert config["xAxisLogScale"]
            for axis in ("xAxis", "yAxis", "zAxis"):
                kind, name = config[axis].split(":")
                assert all(name.removesuffix(".value") in run[kind] for run in trained), config[axis]
            for name in re.findall(r"\$\{config:(\w+)\}", config["legendTemplate"]):
                assert all(name in run["config"] for run in trained)
        elif panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] == "_step"
            assert all(config["groupBy"].removesuffix(".value") in run["config"] for run in trained)
            for metric in config["metrics"]:
                assert all(any(metric in row for row in run["history"]) for run in trained), metric
        else:
            key = config["userQuery"]["queryFields"][0]["fields"][0]["args"][0]["value"]
            (row,) = tracked.analysis["history"]
            (file,) = (tracked.folder / "wandb").rglob(row[f"{key}.path"])
            assert set(config["fieldSettings"].values()) == set(json.loads(file.read_text())["columns"])
    assert titles == {
        "Final validation loss by learning rate",
        "Max attention logit by learning rate",
        "Learning-rate sensitivity by model size",
        "Max attention logit over steps, by learning rate",
        "Log Z over steps, by learning rate",
        "Gradient RMS over Adam's epsilon, by size",
        "Training loss over steps, by learning rate",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["project=someone/stability", "sweep=tiny"],
            "needs a W&B API key, and none is configured. Run `wandb login`.",
        ),
        (["project=stability", "sweep=tiny"], "names no entity"),
        (["project=someone/stability"], "sweep=: is missing"),
        (["someone/stability"], "Did you mean project=someone/stability?"),
        (["project=a/b", "sweep=c", "colour=red"], "colour"),
    ],
)
def test_a_workspace_that_cannot_be_saved_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stability.workspace", *words]
    env = environment(tmp_path / "home")
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


OWN = """
import json
from stability.tracking.tracker import NoTracker

class Notes(NoTracker):
    def __init__(self, settings):
        self.path = settings.folder / "notes.jsonl"
        self.note("settings", settings.project)

    def note(self, *words):
        with self.path.open("a") as file:
            file.write(json.dumps(words) + "\\n")

    def start(self, run):
        self.note("start", run.id, run.name)

    def log(self, run_id, row):
        self.note("log", run_id, row)

    def finish(self, run_id, summary):
        self.note("finish", run_id, summary["status"])

    def analysed(self, sweep):
        self.note("analysed", sweep.name, sorted(sweep.tables), len(sweep.tables["runs"]))

    def close(self):
        self.note("close")

    def closing_words(self):
        return [f"Notes: {self.path}"]
"""


def test_anyones_tracker_in_one_file_follows_a_sweep(tracked: Tracked, tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(OWN)
    (tmp_path / "conf" / "tracking").mkdir(parents=True)
    (tmp_path / "conf" / "tracking" / "notes.yaml").write_text("name: notes:Notes\nproject: mine\n")
    # Observed at every step and evaluated between: rows ascend in step, whatever is read from the device when.
    grid = ["training.observe_every=1", "training.evaluate_every=10", "optimizer.learning_rate=0.01,0.1"]
    done = start(tmp_path, tracked.root / "compiled", "tracking=notes", *grid, "output_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Notes: out/notes.jsonl" in done.stdout.splitlines()
    noted = [json.loads(line) for line in (tmp_path / "out" / "notes.jsonl").read_text().splitlines()]
    folders = run_folders(tmp_path / "out")
    assert noted[0] == ["settings", "mine"]
    assert noted[-2][:2] == ["analysed", "out"]
    assert {"runs", "curves", "sensitivity", "claims"} <= set(noted[-2][2])
    assert noted[-2][3] == len(folders) == 2
    assert noted[-1] == ["close"]
    for folder in folders:
        (id_,) = {note[1] for note in noted if note[0] == "start" and note[1].startswith(folder.path.name[-16:])}
        rows = read_rows(folder.metrics)
        assert [note[2] for note in noted if note[:2] == ["log", id_]] == rows
        steps = [row["step"] for row in rows]
        assert steps == sorted(steps)
        assert ["finish", id_, "finished"] in noted
