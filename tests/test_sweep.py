"""Whole sweeps through the command line: records, lanes, resume, divergence, extension."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import stability
from stability.tracking.record import RunFolder, read_rows, run_folders
from stability.training import lanes
from tests.conftest import TINY, Command

ROOT = Path(__file__).parent.parent
SWEEP = [*TINY, "optimizer.learning_rate=0.003,0.03,0.3", "model.qk_layernorm=none,per_head"]


def summary(folder: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return content


def story(run: RunFolder) -> list[dict[str, Any]]:
    """A run's rows without what the clock says."""
    return [
        {key: value for key, value in row.items() if not key.startswith("speed/")} for row in read_rows(run.metrics)
    ]


def stories(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    return {run.path.name: story(run) for run in run_folders(Path(folder))}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every program that is compiled while the test runs."""
    made: list[Any] = []
    compile_program = lanes.compile_program

    def counting(*arguments: Any) -> Any:
        made.append(compile_program(*arguments))
        return made[-1]

    monkeypatch.setattr(lanes, "compile_program", counting)
    return made


def test_a_sweep_from_start_to_results(command: Command, compiled: list[Any]) -> None:
    outcome = command(*SWEEP, "figures=[svg]", "report=true", "output_dir=results/s")
    assert outcome.code == 0, outcome.err
    assert len(compiled) == 2, "one program for each structure, not for each run"
    assert "sensitivity" in outcome.out
    assert "results/s" in outcome.out.splitlines()[-1]

    found = summary("results/s")
    schema = json.loads((ROOT / "stability/analysis/summary.schema.json").read_text())
    jsonschema.validate(found, schema)
    assert found["complete"]
    assert len(found["runs"]) == 6
    assert {run["arm"] for run in found["runs"]} == {"qk_layernorm=none", "qk_layernorm=per_head"}
    assert {run["status"] for run in found["runs"]} <= {"finished", "diverged"}
    assert all(run["attention_logit_max"] >= run["attention_logit_max_final"] for run in found["runs"])
    assert len(found["sensitivity"]) == 2 * 3
    assert (Path("results/s/analysis/loss_by_learning_rate.svg")).stat().st_size > 1000
    assert not list(Path("results/s/analysis").glob("*.pdf"))
    assert "qk_layernorm=per_head" in Path("results/s/report.html").read_text()

    rows = story(run_folders(Path("results/s"))[0])
    assert [row["step"] for row in rows] == [0, 0, 10, 20, 29, 30]
    assert rows[-1].keys() == {"step", "tokens", "loss/validation"}
    assert "attention_logit/max/block_00/head_01" in rows[1]
    assert len(stability.load("results/s")) == 6

    again = command(*SWEEP, "output_dir=results/s")
    assert again.code == 0
    assert "6 already done" in again.out
    assert len(compiled) == 2, "nothing is trained, or compiled, twice"


def test_a_sweep_is_extended_and_another_refused(command: Command) -> None:
    first = [*TINY, "optimizer.learning_rate=0.01", "output_dir=results/s"]
    assert command(*first).code == 0
    before = summary("results/s")["runs"]
    refused = command(*[word for word in first if "steps" not in word], "training.steps=31")
    assert refused.code == 2
    assert "training.steps=31" in refused.err
    assert summary("results/s")["runs"] == before
    assert command(*first, "seed=0,1").code == 0, "more seeds extend it"
    assert len(summary("results/s")["runs"]) == 2


def test_a_changed_text_is_refused(command: Command, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 200)
    (tmp_path / "sweeps" / "sweep").mkdir(parents=True)
    (tmp_path / "sweeps" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nsweep:\n  grids:\n    main:\n      seed: [0]\n"
    )
    words = [*TINY, "+sweep=mine", "data=text", "data.path=book.txt"]
    assert command(*words).code == 0
    assert summary("results/mine")["complete"]
    text.write_text("It was the age of wisdom, it was the age of foolishness. " * 200)
    refused = command(*words, "seed=0,1")
    assert refused.code == 2
    assert "the text has changed" in refused.err
    assert len(summary("results/mine")["runs"]) == 1


def test_sequential_lanes_are_bit_identical_to_solo_runs(command: Command) -> None:
    assert command(*SWEEP, "seed=0,1", "output_dir=results/together", "lanes=sequential").code == 0
    together = stories("results/together")
    assert len(together) == 12
    alone = [*TINY, "optimizer.learning_rate=0.3", "model.qk_layernorm=none", "seed=1", "output_dir=results/alone"]
    assert command(*alone).code == 0
    ((name, rows),) = stories("results/alone").items()
    assert together[name] == rows


def test_vmap_lanes_agree_with_sequential_ones(command: Command, compiled: list[Any]) -> None:
    words = [*TINY, "optimizer.learning_rate=0.003,0.01,0.03", "seed=0,1", "training.steps=20"]
    assert command(*words, "output_dir=results/one", "lanes=sequential").code == 0
    assert command(*words, "output_dir=results/all", "lanes=vmap").code == 0
    assert [program.lanes for program in compiled] == [None, 6]
    assert "mix" not in " ".join(summary("results/all")["warnings"])
    assert command(*words, "seed=2", "output_dir=results/all", "lanes=sequential").code == 0
    assert "The runs mix lanes: sequential, vmap" in " ".join(summary("results/all")["warnings"])
    one, together = stories("results/one"), stories("results/all")
    assert one.keys() < together.keys()
    for name in one:
        for a, b in zip(one[name], together[name], strict=True):
            assert a.keys() == b.keys()
            np.testing.assert_allclose([a[key] for key in a], [b[key] for key in a], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("strategy", ["sequential", "vmap"])
def test_a_run_that_blows_up_is_a_result(command: Command, strategy: str) -> None:
    words = [*TINY, "optimizer.learning_rate=0.01,1e30", f"lanes={strategy}", "output_dir=results/s"]
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    good, bad = sorted(summary("results/s")["runs"], key=lambda run: run["learning_rate"])
    assert good["status"] == "finished"
    assert bad["status"] == "diverged"
    assert bad["loss_validation"] is None
    assert bad["steps"] < 30
    assert command(*words).out.count("2 already done") == 1
    assert not [path for path in Path("results/s").rglob("*.json*") if "NaN" in path.read_text()]


def test_observation_is_passive(command: Command) -> None:
    ends = []
    for every in (1, 10, 1000):
        folder = f"results/every{every}"
        assert command(*TINY, f"training.observe_every={every}", f"output_dir={folder}").code == 0
        rows = next(iter(stories(folder).values()))
        ends.append((rows[0], rows[-2], rows[-1]))
        ends[-1][1].pop("loss/train_recent_max")
    assert ends[0] == ends[1] == ends[2]


class _StopAfter:
    """Asks to stop when the run has reached a step."""

    def __init__(self, dispatches: int) -> None:
        self.left = dispatches

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("strategy", ["sequential", "vmap", "sharded"])
@pytest.mark.parametrize("dispatches", [1, 4])
def test_an_interrupted_sweep_resumes_where_it_stood(
    command: Command, monkeypatch: pytest.MonkeyPatch, strategy: str, dispatches: int
) -> None:
    from contextlib import contextmanager

    from stability.launching import campaign

    words = [*TINY, "optimizer.learning_rate=0.01,0.1", f"lanes={strategy}", "training.checkpoint_every=15"]
    assert command(*words, "output_dir=results/whole").code == 0

    @contextmanager
    def stopping(say: Any) -> Any:
        yield _StopAfter(dispatches)

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "stop_flag", stopping)
        outcome = command(*words, "output_dir=results/broken")
    assert outcome.code == 130
    assert "python -m stability.run" in outcome.out
    unfinished = [
        run for run in run_folders(Path("results/broken")) if (run.read_summary() or {})["status"] == "running"
    ]
    assert unfinished
    assert not Path("results/broken/summary.json").exists()

    executed: list[int] = []
    steps_of = lanes.Program.step

    def counting(self: Any, config: Any, state: Any, tokens: Any, count: int, observe: bool) -> Any:
        executed.append(count)
        return steps_of(self, config, state, tokens, count, observe)

    with monkeypatch.context() as patch:
        patch.setattr(lanes.Program, "step", counting)
        assert command(*words, "output_dir=results/broken").code == 0
    assert 0 < sum(executed) < (60 if strategy == "sequential" else 30), "resumed from checkpoints, not from scratch"
    assert stories("results/broken") == stories("results/whole")
    assert not list(Path("results/broken").rglob("checkpoints"))
    ours, theirs = summary("results/broken")["runs"], summary("results/whole")["runs"]
    assert ours == theirs


def test_a_bug_in_one_run_leaves_the_others_and_is_tried_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stability.launching import work

    words = [*TINY, "optimizer.learning_rate=0.01,0.1", "output_dir=results/s", "lanes=sequential"]
    train, calls = work.train, []

    def broken(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a cosmic ray")
        train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(work, "train", broken)
        outcome = command(*words)
    assert outcome.code == 1
    assert sorted(run["status"] for run in summary("results/s")["runs"]) == ["failed", "finished"]
    (error,) = Path("results/s/runs").rglob("error.txt")
    assert "a cosmic ray" in error.read_text()
    assert not summary("results/s")["complete"]
    assert command(*words).code == 0
    assert summary("results/s")["complete"]
    assert not list(Path("results/s/runs").rglob("error.txt"))


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = [*TINY, "training.steps=20000", "training.observe_every=1000", "output_dir=out"]
    arguments = [sys.executable, "-m", "stability.run", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not [run for run in run_folders(tmp_path / "out") if read_rows(run.metrics)]:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "To go on" in out
    assert "Traceback" not in out
    status = subprocess.run(
        [sys.executable, "-m", "stability.status", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert status.returncode == 1
    assert "1 running" in status.stdout
    assert "training.steps=20000" in status.stdout
    (checkpoints,) = (tmp_path / "out").rglob("checkpoints")
    assert any(checkpoints.iterdir())


def test_by_default_every_run_is_a_wandb_run_offline(tmp_path: Path) -> None:
    words = [word for word in TINY if word != "tracking=files"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "STABILITY_"))}
    process = subprocess.run(
        [sys.executable, "-m", "stability.run", *words, "optimizer.learning_rate=0.01,0.1", "output_dir=out"],
        cwd=tmp_path, env=kept | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "NETRC": os.devnull},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Tracking is off" not in process.stdout
    files = list((tmp_path / "out" / "wandb").rglob("run-*.wandb"))
    ids = {run.path.name.rsplit("-", 1)[-1] for run in run_folders(tmp_path / "out")}
    assert {file.stem.split("-")[1] for file in files} == {*ids, "analysis"}
    assert len(files) == 3
    starts = [run.read_provenance()[0]["command"] for run in run_folders(tmp_path / "out")]
    assert all(command.startswith("python -m stability.run model.width=16") for command in starts)
