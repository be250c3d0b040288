"""Bad input is refused at once and in words; help explains; configs are found from everywhere."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TINY, Command

ROOT = Path(__file__).parent.parent


def test_wandb_online_without_a_key_is_refused_before_training(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    outcome = command("tracking.mode=online", *[word for word in TINY if word != "tracking=files"])
    assert outcome.code == 2
    assert "tracking.mode=online" in outcome.err
    assert not list(Path.cwd().rglob("*.json"))


def test_a_traceback_when_asked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABILITY_TRACEBACK", "1")
    outcome = command("optimizer.learning_rate=-1")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


def test_help_explains_itself(command: Command) -> None:
    text = command("--help").out
    for part in (
        "+sweep=quickstart",
        "dry_run=true",
        "stability.status",
        "stability.analyze",
        "data: kjv, shards, text",
    ):
        assert part in text


def test_cfg_shows_every_key(command: Command) -> None:
    shown = command("--cfg", "job").out
    for part in (
        "learning_rate: 0.01",
        "qk_layernorm: per_head",
        "z_loss: 0.0001",
        "warmup_steps: null",
        "lanes: auto",
    ):
        assert part in shown


def test_a_users_own_sweep_and_intervention_beside_the_working_directory(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "sweep").mkdir(parents=True)
    (tmp_path / "sweeps" / "intervention").mkdir()
    (tmp_path / "sweeps" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nsweep:\n  question: Why?\n  grids:\n    main:\n      seed: [0, 1, 2]\n"
        "      intervention: [bold]\n    other:\n      optimizer.eps: [1e-6]\n"
    )
    (tmp_path / "sweeps" / "intervention" / "bold.yaml").write_text("# @package _global_\nloss:\n  z_loss: 0.5\n")
    outcome = command("+sweep=mine", "dry_run=true")
    assert outcome.code == 0, outcome.err
    assert "4 runs, 1 pack, 1 program," in outcome.out
    assert re.search(r"z_loss=0.5, eps=1e-08\s", outcome.out)
    assert not (tmp_path / "results").exists()


def test_a_process_from_anywhere_refuses_bad_input_and_writes_nothing(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "stability.run", "+sweep=quickstart", "scale=w7"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("error: scale=w7")
    assert not list(tmp_path.iterdir())


def test_a_wheel_carries_its_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "stability.run", "+sweep=quickstart", "dry_run=true"],
        cwd=work, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "6 programs" in process.stdout
    assert not list(work.iterdir())


def test_analyze_reads_a_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stability.analyze import main

    monkeypatch.chdir(tmp_path)
    rows = [(1e6, 0.01, 2.0), (1e6, 0.1, 3.0), (4e6, 0.01, 1.5), (4e6, 0.1, 4.0)]
    (tmp_path / "t.csv").write_text("n_params,learning_rate,loss\n" + "".join(f"{n},{lr},{x}\n" for n, lr, x in rows))
    assert main(["source=t.csv", "output_dir=out"]) == 0
    assert "1.250" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.json").exists()
    assert (tmp_path / "out" / "analysis" / "loss_by_learning_rate.png").exists()


def test_the_process_starts_again_once_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    from stability import command_line

    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.append((arguments, environment)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(command_line.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: "always [madvise] never")
    for key in (command_line.REEXECUTED, command_line.NO_REEXECUTION):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    command_line.with_transparent_huge_pages()
    ((arguments, environment),) = started
    assert arguments == sys.orig_argv
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"

    for key in (command_line.REEXECUTED, command_line.NO_REEXECUTION):
        with monkeypatch.context() as patch:
            patch.setenv(key, "1")
            command_line.with_transparent_huge_pages()
    monkeypatch.setattr(command_line.platform, "libc_ver", lambda: ("glibc", "2.31"))
    command_line.with_transparent_huge_pages()
    assert len(started) == 1
