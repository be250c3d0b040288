"""Sweeps in the tasks of a job array, under a real Slurm where one can be started: shared, preempted, gone on with."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Container, Iterator
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability import status
from stability.config import RunConfig
from stability.launching.plan import Pack, PlannedRun
from stability.launching.settings import Slurm
from stability.launching.signals import stop_flag
from stability.launching.slurm import plan_array
from stability.tracking.locks import LOCKS, read_holder
from stability.tracking.record import read_rows, run_folders
from stability.tracking.slurm import note_submission, submitted_jobs, told
from stability.typed import from_mapping
from tests.conftest import TINY, Command
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


# --- without a Slurm --------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), asked=st.none() | st.integers(1, 60))
def test_every_task_has_something_to_train(sizes: list[int], asked: int | None) -> None:
    packs = [Pack(tuple(planned(width, seed) for seed in range(size))) for width, size in enumerate(sizes, 1)]
    array = plan_array(Slurm(array=asked), packs)
    assert array.tasks == max(1, min(asked or len(packs), sum(sizes)))
    groups = sum(ceil(len(pack.runs) / array.lanes[pack.structure]) for pack in packs)
    assert groups >= min(array.tasks, len(packs))
    if array.tasks <= len(packs):
        assert [array.lanes[pack.structure] for pack in packs] == sizes, "packs stay whole"
    fewer = [Pack(pack.runs[: 1 + len(pack.runs) // 2]) for pack in packs]
    assert array.lanes.keys() == {pack.structure for pack in fewer}


def planned(width: int, seed: int) -> PlannedRun:
    """A run of a structure of its own for each width."""
    config = from_mapping(RunConfig, {"seed": seed, "training": {"steps": width}})
    return PlannedRun(config, f"{width}-{seed}", "any", "any")


SQUEUE = {
    "nothing is queued": ("exit 0", []),
    "a single job ended long ago": ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", []),
    "some of each": (
        "printf '7_0|RUNNING|None\\n7_2|PENDING|Resources\\n7_3|PENDING|Resources\\n9|PENDING|BeginTime\\n'",
        ["Slurm job 7: 1 running, 2 pending (Resources)", "Slurm job 9: 1 pending (BeginTime)"],
    ),
    "its controller is down": (
        "exit 1",
        ["Slurm jobs 7, 9: squeue does not say here what is queued or running of them"],
    ),
}


@pytest.mark.parametrize("about", SQUEUE)
def test_status_tells_what_squeue_says_and_never_fails(
    about: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, lines = SQUEUE[about]
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "slurm").mkdir()
    note_submission(tmp_path, 1, "7", 4)
    note_submission(tmp_path, 2, "9", 1)
    (tmp_path / "slurm/3.json").write_text("{")
    (tmp_path / "slurm/4.json").write_text('{"schema_version": 1, "job": "1; rm -r /"}')
    assert submitted_jobs(tmp_path) == {1: "7", 2: "9"}
    assert list(told(submitted_jobs(tmp_path).values())) == lines


def test_where_nothing_can_be_submitted_that_is_said_before_anything_is_written(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    outcome = command(*TINY, *SUBMITTED)
    assert outcome.code == 2
    assert "there is no sbatch here" in outcome.err
    plan = command(*TINY, *SUBMITTED, "seed=0,1,2", "slurm.array=9", "dry_run=true")
    assert "As a Slurm array of 3 tasks" in plan.out, "a plan is made anywhere"
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = command(*TINY, *SUBMITTED)
    assert outcome.code == 2
    assert "submitit is not installed" in outcome.err
    assert not Path("out").exists()


def test_only_ctrl_c_is_impatience() -> None:
    said: list[str] = []
    with stop_flag(said.append) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# --- with one ---------------------------------------------------------------------------------------------------------


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
    with slurm.closed():
        said = submit(*submitted)
        job = re.search(r"Submitted Slurm job (\d+): 2 tasks for 2 runs", said)
        assert job, said
        assert f"scancel {job[1]}" in said
        assert slurm.queue().keys() == {f"{job[1]}_0", f"{job[1]}_1"}
        again = submit(*submitted)
        assert "Nothing more is submitted" in again
        assert f"{job[1]}_0 (" in again, "it says what is queued or running"
        assert len(slurm.queue()) == 2
    slurm.wait()
    assert set(starts(undisturbed).values()) == {(0,)}, "each run is trained once"
    assert "sensitivity" in outputs(undisturbed), "the last task has analysed"
    assert status.main([str(undisturbed)]) == 0
    done = submit(*submitted)
    assert "Submitted" not in done
    assert "sensitivity" in done, "nothing is left to submit, and what there is, is analysed here"


def met_in_its_midst(folder: Path, known: Container[str], deadline_s: float = 120.0) -> tuple[str, str]:
    """A run that trains and is not known, by name, when there is one; with the task that trains it."""
    deadline = time.monotonic() + deadline_s
    while True:
        assert time.monotonic() < deadline, outputs(folder)
        for run in run_folders(folder):
            holder = read_holder(folder / LOCKS / run.path.name)
            if holder and holder.job and run.path.name not in known and read_rows(run.metrics)[2:]:
                return run.path.name, holder.job
        time.sleep(0.02)


REQUEUE, TIME_IS_UP = ("scontrol", "requeue"), ("scancel", "--signal=USR2")
"""What an administrator does, and clusters that preempt: SIGTERM, then the job waits again. What a time limit does."""


def test_a_task_whose_time_is_up_saves_and_goes_on_as_if_nothing_had_been(
    submit: Callable[..., str], slurm: Cluster, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(*PACKS, *SUBMITTED, "model.qk_layernorm=none")
    folder = Path("out")
    run, task = met_in_its_midst(folder, set())
    slurm.ask(*TIME_IS_UP, task)
    while read_holder(folder / LOCKS / run):  # until it has saved
        time.sleep(0.02)
    capsys.readouterr()
    assert status.main([str(folder)]) == 1
    assert f"Slurm job {task}: 1 " in capsys.readouterr().out
    slurm.wait()
    said = outputs(folder)
    assert said.count("Stopping after this step") == 1
    assert said.count(") - Requeued job") == 1, "by submitit's own flow"
    first, second = starts(folder)[run]
    assert first == 0 < second < 1500
    whole = {name: content for name, content in result(undisturbed).items() if name.startswith(run)}
    assert len(whole) == 4, "config, summary, rows and parameters"
    assert differences({name: content for name, content in result(folder).items() if name in whole}, whole) == []


def test_two_processes_of_a_task_are_one_program(submit: Callable[..., str], slurm: Cluster) -> None:
    """One array task of two processes, found by each other through what Slurm says: one trains, both compute."""
    words = [*TINY, "optimizer.learning_rate=0.01,0.03", "lanes=sharded", "mesh.data=2"]
    submit(*words, *SUBMITTED, "slurm.tasks_per_node=2")
    slurm.wait()
    said = outputs(Path("out"))
    assert status.main(["out"]) == 0, said
    assert set(starts(Path("out")).values()) == {(0,)}, said
    provenance = [run.read_provenance()[0] for run in run_folders(Path("out"))]
    assert [one["processes"] for one in provenance] == [2, 2]
    assert len(list(Path("out/slurm/1").glob("*_log.out"))) == 2


@pytest.mark.slow
def test_preempted_tasks_of_an_array_go_on_as_if_nothing_had_been(submit: Callable[..., str], slurm: Cluster) -> None:
    """Each in its own way, both at about the same time; what one had may be taken over by the other."""
    submit(*PACKS, *SUBMITTED, "output_dir=whole/out")
    slurm.wait()
    submit(*PACKS, *SUBMITTED)
    folder, struck = Path("out"), set[str]()
    for words in (REQUEUE, TIME_IS_UP):
        run, task = met_in_its_midst(folder, struck)
        slurm.ask(*words, task)
        struck.add(run)
    slurm.wait()
    assert len(struck) == 2
    assert {name: begun[0] for name, begun in starts(folder).items()} == dict.fromkeys(struck, 0)
    assert all(len(begun) == 2 and begun[1] > 0 for begun in starts(folder).values()), starts(folder)
    assert differences(result(folder), result(Path("whole/out"))) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [REQUEUE, TIME_IS_UP], ids=" ".join)
def test_a_preempted_task_of_two_processes_goes_on(
    submit: Callable[..., str], slurm: Cluster, words: tuple[str, ...]
) -> None:
    submit(*PACKS, *SUBMITTED, "model.qk_layernorm=none", "lanes=sharded", "mesh.data=2", "slurm.tasks_per_node=2")
    run, task = met_in_its_midst(Path("out"), set())
    slurm.ask(*words, task)
    slurm.wait()
    first, second = starts(Path("out"))[run]
    assert first == 0 < second < 1500
    assert status.main(["out"]) == 0
    assert len(list(Path("out/slurm/1").glob("*_result.pkl"))) == 2, "both processes have ended well"


@pytest.mark.slow
def test_a_task_that_reaches_its_time_limit_goes_on_until_it_is_done(
    submit: Callable[..., str], slurm: Cluster
) -> None:
    """Slurm looks at time limits twice a minute, so a task of a minute is told at any moment of it."""
    long = [word for word in PACKS if not word.startswith(("training.steps=", "training.observe_every="))]
    long += [
        "training.steps=20000",
        "training.observe_every=1000",
        "model.qk_layernorm=none",
        "slurm.signal_delay_s=10",
    ]
    submit(*long, *SUBMITTED, "slurm.timeout_min=1", "slurm.wait=true")
    said = outputs(Path("out"))
    assert "Requeued job" in said
    assert "TIME LIMIT" not in said, "it has saved before the limit"
    (begun,) = starts(Path("out")).values()
    assert begun[0] == 0 < begun[1]


def test_what_sbatch_refuses_is_bad_input_and_leaves_nothing_in_the_way(
    slurm: Cluster, submit: Callable[..., str], command: Command
) -> None:
    words = [*TINY, *SUBMITTED, "slurm.mem=1MB"]
    refused = command(*words, "slurm.partition=nowhere")
    assert refused.code == 2
    assert "invalid partition" in refused.err
    assert list(Path("out/slurm").iterdir()) == []
    said = submit(*words, "slurm.partition=main", "+slurm.additional.hold=true")
    assert "1 pending" in "".join(told(submitted_jobs(Path("out")).values())), said
    slurm.ask("scancel", *submitted_jobs(Path("out")).values())
    slurm.wait()
    assert "Submitted" in submit(*words, "+slurm.additional.hold=true"), "what was cancelled is submitted again"
    slurm.ask("scancel", *submitted_jobs(Path("out")).values())
    slurm.wait()


@pytest.mark.slow
def test_the_script_s_tasks_share_a_sweep_and_are_queued_again(
    submit: Callable[..., str], slurm: Cluster, tmp_path: Path
) -> None:
    """launch/slurm.sh without what this machine lacks, its sweep in place of the paper's."""
    text = (ROOT / "launch/slurm.sh").read_text()
    for lacking in (
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --mem=64G",
        "#SBATCH --cpus-per-task=8",
        "+sweep=qk_layernorm host=gpu",
    ):
        assert lacking in text
        text = text.replace(lacking, "")
    (tmp_path / "slurm.sh").write_text(text.replace("python -m", f"{sys.executable} -m"))
    job = slurm.ask("sbatch", "--parsable", "--array=0-1", "slurm.sh", *PACKS, "output_dir=out").strip()
    run, task = met_in_its_midst(Path("out"), set())
    slurm.ask("scancel", "--batch", "--signal=USR1", task)
    slurm.wait()
    assert task.startswith(job)
    assert all(begun[0] == 0 for begun in starts(Path("out")).values())
    assert len(starts(Path("out"))[run]) == 2
    assert status.main(["out"]) == 0
    said = "\n".join(path.read_text() for path in tmp_path.glob("stability_*.out"))
    assert "left to other tasks" in said or said.count("sensitivity") == 2
