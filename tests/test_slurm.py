"""Sweeps in the tasks of a job array, under a real Slurm where one can be started: shared, preempted, gone on with."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stability import status
from stability.tracking.locks import LOCKS, read_holder
from stability.tracking.record import read_rows, run_folders
from tests.conftest import Command
from tests.kills import WORDS, differences, evidence, states
from tests.one_machine_slurm import Cluster, cluster, why_not
from tests.quick import QUICKLY

ROOT = Path(__file__).parent.parent
PACKS = [
    *(word for word in WORDS if not word.startswith(("training.steps=", "training.checkpoint_every="))),
    "training.steps=1500",
    "training.checkpoint_every=500",
    "training.observe_every=50",
    "model.qk_layernorm=none,per_head",
    "lanes=sequential",
]
"""Two runs of two programs, each long enough to be met in its midst."""
SUBMITTED = ["output_dir=out", "launcher=slurm", "slurm.timeout_min=30"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A Slurm for all tests of this module."""
    if why := why_not():
        pytest.skip(f"no Slurm: {why}")
    with cluster() as found:
        yield found


@pytest.fixture
def submit(slurm: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that hands its sweep to that Slurm; what it prints."""
    kept = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(f"--{name}={int(value)}" for name, value in QUICKLY.items())}
    for name, value in {**slurm.environment, **kept}.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> str:
        outcome = command(*words)
        assert outcome.code == 0, outcome.err
        return outcome.out

    return run


def outputs(folder: Path) -> str:
    """All that the tasks of a sweep have said."""
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").rglob("*.out")))


def starts(folder: Path) -> dict[str, tuple[int, ...]]:
    """The step at which each start of each run began."""
    return {name: state.starts for name, state in states(folder).items()}


def result(folder: Path) -> dict[str, object]:
    """What came out of a sweep, without what Slurm left there."""
    found = evidence(folder)
    return {**found, "files": [name for name in found["files"] if not name.startswith("slurm")]}


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep that the array of the first test trains has its results; made by that test."""
    return tmp_path_factory.mktemp("undisturbed") / "out"


def test_an_array_shares_a_sweep(submit: Callable[..., str], slurm: Cluster, undisturbed: Path) -> None:
    submitted = [*PACKS, *SUBMITTED, f"output_dir={undisturbed}"]
    said = submit(*submitted)
    job = re.search(r"Submitted Slurm job (\d+): 2 tasks for 2 runs", said)
    assert job, said
    assert f"scancel {job[1]}" in said
    assert slurm.queue().keys() == {f"{job[1]}_0", f"{job[1]}_1"}
    again = submit(*submitted)
    assert "Nothing more is submitted" in again
    assert f"{job[1]}_0 (" in again, "it says what is queued or running"
    assert len(slurm.queue()) <= 2
    slurm.wait()
    assert set(starts(undisturbed).values()) == {(0,)}, "each run is trained once"
    assert "sensitivity" in outputs(undisturbed), "the last task has analysed"
    assert status.main([str(undisturbed)]) == 0
    done = submit(*submitted)
    assert "Submitted" not in done
    assert "sensitivity" in done, "nothing is left to submit, and what there is, is analysed here"


def met_in_its_midst(folder: Path, deadline_s: float = 120.0) -> Iterator[tuple[str, str]]:
    """Each run of a sweep when it has begun to train, with the task of Slurm's that trains it."""
    met: set[str] = set()
    deadline = time.monotonic() + deadline_s
    while len(met) < 2:
        assert time.monotonic() < deadline, outputs(folder)
        for run in run_folders(folder):
            holder = read_holder(folder / LOCKS / run.path.name)
            if run.path.name not in met and holder and holder.job and read_rows(run.metrics)[2:]:
                met.add(run.path.name)
                yield run.path.name, holder.job
        time.sleep(0.02)


def test_preempted_tasks_save_and_go_on_as_if_nothing_had_been(
    submit: Callable[..., str], slurm: Cluster, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is queued again by an administrator (SIGTERM), the other is told that its time is up (SIGUSR2)."""
    submit(*PACKS, *SUBMITTED)
    folder, strikes = Path("out"), [("scontrol", "requeue"), ("scancel", "--signal=USR2")]
    struck: dict[str, str] = {}
    for (run, task), words in zip(met_in_its_midst(folder), strikes, strict=True):
        slurm.ask(*words, task)
        struck[run] = task
    assert len(set(struck.values())) == 2, "both programs are trained at the same time, by a task each"
    capsys.readouterr()
    assert status.main([str(folder)]) == 1
    assert "Slurm job" in capsys.readouterr().out
    slurm.wait()
    said = outputs(folder)
    assert "Requeued job" in said, "by submitit's own flow"
    assert said.count("Stopping after this step") == 2
    assert {name: begun[0] for name, begun in starts(folder).items()} == dict.fromkeys(struck, 0)
    assert all(len(begun) == 2 and begun[1] > 0 for begun in starts(folder).values()), starts(folder)
    assert differences(result(folder), result(undisturbed)) == []
