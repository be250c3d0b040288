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

BAD = [
    # arguments, and what the message must name: key, value, fix
    ("+sweep=nope", ["sweep=nope", "quickstart"]),
    ("sweep=quickstart", ["sweep=quickstart", "+sweep=quickstart"]),
    ("+sweep=quickstart scale=w7", ["scale=w7", "w48, w64, w96"]),
    ("+sweep=quickstart scale=w32,w7", ["scale=w7", "w48, w64, w96"]),
    ("+sweep=quickstart model.qk_layernorm=off", ["model.qk_layernorm=off", "'none', 'per_head' or 'whole_width'"]),
    ("+sweep=quickstart model.qk_layernorm=none,sideways", ["model.qk_layernorm=sideways", "per_head"]),
    ("+sweep=quickstart +intervention=foo", ["intervention=foo", "qk_layernorm_none"]),
    ("ladder=huge", ["ladder=huge", "micro"]),
    ("tracking=mlflow", ["tracking=mlflow", "files, wandb"]),
    ("data=tweets", ["data=tweets", "kjv, shards, text"]),
    ("optimizer.lr=1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("+optimizer.lr=1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("optimizer.lr=1,2", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("foo=1", ["foo=1", "--cfg job"]),
    ("+foo=1", ["foo=1", "--cfg job"]),
    ("+model.wdth=1", ["model.wdth=1", "model.width"]),
    ("+model.width.inner=3", ["model.width"]),
    ("optimizer.learning_rate=-1", ["optimizer.learning_rate=-1", "greater than 0"]),
    ("optimizer.learning_rate=0.1,-1", ["optimizer.learning_rate=-1", "greater than 0"]),
    ("optimizer.learning_rate=nan", ["optimizer.learning_rate=nan", "finite"]),
    ("optimizer.learning_rate=inf", ["optimizer.learning_rate=inf", "finite"]),
    ("optimizer.learning_rate=high", ["optimizer.learning_rate=high", "number"]),
    ("optimizer.learning_rate=true", ["optimizer.learning_rate=True", "boolean"]),
    ("optimizer.learning_rate=null", ["optimizer.learning_rate=None", "number"]),
    ("optimizer.learning_rate=1e-6", ["optimizer.learning_rate=1e-06", "schedule.minimum_learning_rate=1e-05"]),
    ("schedule.warmup_steps=400", ["schedule.warmup_steps=400", "training.steps=400"]),
    ("training.steps=0", ["training.steps=0", "greater than or equal to 1"]),
    ("training.steps=1.5", ["training.steps=1.5", "integer"]),
    ("training.precision=float16", ["training.precision=float16", "bfloat16"]),
    ("model.width=50", ["model.width=50", "model.head_dim=32", "64"]),
    ("model.head_dim=3", ["model.head_dim=3", "even"]),
    ("training.sequence_length=10000000", ["training.sequence_length=10000000", "208895"]),
    ("data=text", ["data.path", "FILE"]),
    ("data=text data.path=/nowhere/*.txt", ["data.path=/nowhere/*.txt", "no file matches"]),
    ("data=text data.path=empty.txt", ["empty.txt", "is empty"]),
    ("data=kjv,text", ["data=kjv,text", "one value"]),
    ("output_dir=a,b", ["output_dir=a,b", "one value"]),
    ("output_dir=/dev/null/x", ["output_dir=/dev/null/x", "not a folder"]),
    ("output_dir=/proc/x", ["output_dir=/proc/x", "cannot be written"]),
    ("output_dir=foreign", ["output_dir=foreign", "not empty"]),
    ("lanes=many", ["lanes=many", "'sequential', 'vmap' or 'sharded'"]),
    ("dry_run=perhaps", ["dry_run=perhaps", "boolean"]),
    ("progress=loud", ["progress=loud", "'quiet'"]),
    ("report=perhaps", ["report=perhaps", "boolean"]),
    ("figures=svg,pdf", ["figures=svg,pdf", "figures=[svg,pdf]"]),
    ("figures=[gif]", ["figures", "gif", "'svg'"]),
    ("seed=-1", ["seed=-1", "greater than or equal to 0"]),
    ("seed=interval(1,2)", ["seed=interval(1,2)", "A,B,C"]),
    ("model.width=[1", ["[1"]),
    ("hydra.mode=RUN", ["hydra.mode=RUN"]),
]


@pytest.fixture
def surroundings(tmp_path: Path) -> Path:
    """An empty text file and a folder that holds something foreign, to point bad input at."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    return tmp_path


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_is_one_paragraph_with_key_value_and_fix(
    command: Command, surroundings: Path, arguments: str, named: list[str]
) -> None:
    before = sorted(surroundings.rglob("*"))
    outcome = command(*arguments.split())
    assert outcome.code == 2
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in outcome.err
    for part in named:
        assert part in error
    assert sorted(surroundings.rglob("*")) == before


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("source=nowhere", "source=nowhere"),
        ("output_dir=x", "source="),
        ("results/x", "source=results/x"),
        ("source=t.csv unstable_excess=-1", "unstable_excess=-1"),
        ("source=t.csv colour=red", "colour=red"),
    ],
)
def test_analyze_refuses_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, named: str
) -> None:
    from stability.analyze import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("n_params,learning_rate,loss\n1e6,0.1,2\n")
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_status_refuses_what_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stability.status import main

    assert main([str(tmp_path)]) == 2
    assert f"folder={tmp_path}" in capsys.readouterr().err


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
