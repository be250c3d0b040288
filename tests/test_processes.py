"""Several processes as one program: real ones, on this machine."""

import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Command
from quick import compile_quickly

from stability.errors import InputError
from stability.launching.processes import Place, find_place
from stability.launching.settings import Distributed
from stability.tracking.files import read_json
from stability.tracking.record import RunFolder, read_rows, run_folders
from stability.training import lanes
from tests.processes import Together

# Who starts them, and which is which

SLURM_STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
}
STANDS_ALONE = {
    "no cluster": {},
    "a batch script": {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "a shell in an allocation": SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "a task of an array": SLURM_STEP
    | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "9"},
    "mpirun -n 1": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    "a pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "a host with TPU chips, told to use its CPU": {"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"},
    "a number that is none": SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "two"},
}


@pytest.mark.parametrize("environment", STANDS_ALONE.values(), ids=STANDS_ALONE)
def test_a_process_that_stands_alone_waits_for_nobody(environment: dict[str, str]) -> None:
    assert find_place(Distributed(), environment) is None


OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:9"}
FOUND: dict[str, tuple[dict[str, str], Any]] = {
    "srun": (SLURM_STEP, Place(None, 2, 1, "Slurm")),
    "srun, two of an allocation's eight": (SLURM_STEP | {"SLURM_NTASKS": "8"}, Place(None, 2, 1, "Slurm")),
    "mpirun": (OPEN_MPI, Place(None, 4, 3, "Open MPI")),
    "mpirun in a step of Slurm's": (SLURM_STEP | OPEN_MPI, Place(None, 4, 3, "Open MPI")),
    "a TPU pod": ({"TPU_ML_PLATFORM": "JAX"}, Place(None, None, None, "TPU pod")),
}


@pytest.mark.parametrize(("environment", "place"), FOUND.values(), ids=FOUND)
def test_what_started_several_is_found(environment: dict[str, str], place: Place) -> None:
    assert find_place(Distributed(), environment) == place
    assert find_place(Distributed(processes=1), environment) is None


def test_what_is_said_outright_goes_before_what_a_cluster_says() -> None:
    assert find_place(Distributed(coordinator="n1:9"), SLURM_STEP) == Place("n1:9", 2, 1, "Slurm")
    said = Distributed(coordinator="n1:9", processes=3, process=0)
    assert find_place(said, SLURM_STEP) == Place("n1:9", 3, 0, "the command")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no port": ({"coordinator": "host"}, {}, "distributed.coordinator"),
    "no such port": ({"coordinator": "host:70000"}, {}, "distributed.coordinator"),
    "no address": ({"processes": 2, "process": 0}, {}, "distributed"),
    "no number": ({"coordinator": "host:9", "processes": 2}, {}, "distributed"),
    "a number too high": ({"coordinator": "host:9", "processes": 2, "process": 2}, {}, "distributed.process"),
    "Open MPI 5": ({}, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "distributed"),
}


@pytest.mark.parametrize(("said", "environment", "key"), REFUSED.values(), ids=REFUSED)
def test_what_is_incomplete_or_impossible_is_refused(
    said: dict[str, Any], environment: dict[str, str], key: str
) -> None:
    with pytest.raises(InputError) as error:
        find_place(Distributed(**said), environment)
    assert error.value.key == key


# What they train


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with them is compiled in a hurry, as they are."""
    monkeypatch.setattr(lanes, "compile_program", compile_quickly)


RATES = "optimizer.learning_rate=0.003,0.01,1e30"
"""The last one diverges at once."""
WORDS = [*TINY, "training.checkpoint_every=10", "output_dir=out"]


def rows(run: RunFolder) -> list[dict[str, float]]:
    """What a run measured, but for speeds."""
    named = [
        {key: value for key, value in row.items() if not key.startswith("speed/")} for row in read_rows(run.metrics)
    ]
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in named]


def assert_same_runs(one: Path, other: Path, tolerance: float = 1e-3) -> None:
    """Every number of every run, to a tolerance: other programs round otherwise."""
    runs, others = (list(run_folders(path)) for path in (one, other))
    assert [run.path.name for run in runs] == [run.path.name for run in others]
    assert runs
    for a, b in zip(runs, others, strict=True):
        assert len(rows(a)) == len(rows(b))
        for left, right in zip(rows(a), rows(b), strict=True):
            assert left == pytest.approx(right, rel=tolerance, abs=1e-4, nan_ok=True)
        results = [read_json(run.summary) for run in (a, b)]
        for key in ("status", "first_bad_step", "first_bad_observation", "steps"):
            assert results[0][key] == results[1][key]


def alone(command: Command, *words: str) -> Path:
    """The same by one process."""
    assert command(*WORDS, *words, "output_dir=alone", "lanes=sequential").code == 0
    return Path("alone").absolute()


def test_lanes_spread_over_two_processes(command: Command, tmp_path: Path) -> None:
    """They measure what one process does, process 0 alone writes and speaks, and each reads its own runs' batches."""
    first, second = Together(tmp_path, [*WORDS, RATES], processes=2).end()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (second.out, second.err, first.err) == ("", "", "")
    assert sorted(path.name for path in second.folder.iterdir()) == ["err.txt", "out.txt", "read.json"]
    assert_same_runs(first.folder / "out", alone(command, RATES))
    for run in run_folders(first.folder / "out"):
        assert {one["processes"] for one in run.read_provenance()} == {2}
        assert all(one["device"].startswith("2 processes of ") for one in run.read_provenance())
    # Three runs at two places, one each and then the last one at both: less than two whole runs, where there are three.
    assert 30 * 4 < second.read == first.read < 2 * 30 * 4


SPANNING = {
    "data over two": ("mesh.data=2", 2, 1),
    "parameters over two": ("mesh.fsdp=2", 2, 1),
    "both over two with two devices each": ("mesh.data=2 mesh.fsdp=2", 2, 2),
    "two places of two processes each": ("mesh.data=2", 4, 1),
    "lanes at four places, micro-batches by process 0's memory": ("compute.micro_batch=auto", 4, 1),
    "four lanes at two processes with two devices each": ("lanes=sharded", 2, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "processes", "devices"), SPANNING.values(), ids=SPANNING)
def test_a_run_spans_processes(command: Command, tmp_path: Path, words: str, processes: int, devices: int) -> None:
    several = ["training.steps=15", "seed=0,1,2"]
    ended = Together(tmp_path, [*WORDS, *several, *words.split()], processes, devices).end()
    assert [one.code for one in ended] == [0] * processes, [one.err for one in ended]
    assert_same_runs(ended[0].folder / "out", alone(command, *several), 5e-3)
    for other in ended[1:]:
        assert other.out == ""
        assert not (other.folder / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_reads_its_own_rows_of_a_batch(tmp_path: Path, processes: int) -> None:
    ended = Together(tmp_path, [*WORDS, "mesh.data=2"], processes).end()
    assert [one.code for one in ended] == [0] * processes, [one.err for one in ended]
    assert [one.read for one in ended] == [30 * 4 // 2] * processes  # of four, two have the empty seat


PAGE = Path(__file__).parent.parent / "docs" / "processes.md"


@pytest.mark.slow
def test_the_commands_of_the_page_train_together(tmp_path: Path) -> None:
    typed = re.findall(
        r"^python -m stability\.run (.*distributed\..*?)(?: &)?$", PAGE.read_text(encoding="utf-8"), re.M
    )
    said = [dict(word.split("=", 1) for word in line.split()) for line in typed]
    assert [one.pop("distributed.process") for one in said] == ["0", "1"]
    assert said[0] == said[1]
    words = [f"{key}={value}" for key, value in said[0].items() if not key.startswith("distributed.")]
    address = said[0]["distributed.coordinator"].rpartition(":")[0]
    ended = Together(tmp_path, [*WORDS, *words], int(said[0]["distributed.processes"]), address=address).end()
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]


# How it ends

LONG = ["training.steps=400", "training.checkpoint_every=40"]


@pytest.mark.slow
def test_any_process_may_be_asked_to_stop_and_any_number_goes_on(command: Command, tmp_path: Path) -> None:
    """Two are stopped, four go on and are stopped, one goes on to the end: as if nothing had been."""
    words, shared = [*WORDS, *LONG, "seed=0,1"], f"output_dir={tmp_path / 'shared'}"
    steps = []
    for count, asked in ((2, 1), (4, 3)):
        together = Together(tmp_path / str(count), [*words, shared], count)
        together.wait_for("step ")
        together.send(signal.SIGTERM, asked)
        ended = together.end()
        assert [one.code for one in ended] == [130] * count, [one.err for one in ended]
        assert f"Process {asked} on " in ended[0].out
        assert all(one.err == "" for one in ended)
        steps.append([max(row["step"] for row in rows(run)) for run in run_folders(tmp_path / "shared")])
    assert command(*words, shared).code == 0
    assert steps[0] < steps[1]
    starts = [[one["resumed_from_step"] for one in run.read_provenance()] for run in run_folders(tmp_path / "shared")]
    assert all(first == 0 < second < third for first, second, third in starts)
    assert_same_runs(tmp_path / "shared", alone(command, *LONG, "seed=0,1"), 5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_ends_all_and_nothing_is_lost(command: Command, tmp_path: Path, killed: int) -> None:
    words, shared = [*WORDS, *LONG, "seed=0,1"], f"output_dir={tmp_path / 'shared'}"
    together = Together(tmp_path, [*words, shared], 2)
    together.wait_for("step ")
    together.send(signal.SIGKILL, killed)
    ended = together.end()
    assert ended[killed].code == -signal.SIGKILL
    assert ended[1 - killed].code not in (0, None)
    assert ended[1 - killed].err
    assert command(*words, shared).code == 0
    assert_same_runs(tmp_path / "shared", alone(command, *LONG, "seed=0,1"), 5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_others_that_do_not_come_are_waited_for_so_long(tmp_path: Path, process: int) -> None:
    (ended,) = Together(tmp_path, [*WORDS, "distributed.wait_s=2"], 2, only=[process]).end()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: distributed.wait_s=2: ")
    assert len(ended.err.splitlines()) == 1
    assert not (ended.folder / "out").exists()


@pytest.mark.slow
def test_what_one_cannot_do_ends_all_before_anything_is_written(tmp_path: Path) -> None:
    """A text that process 1 does not have: its folder is another one."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "book.txt").write_text("in the beginning " * 1000)
    first, second = Together(tmp_path, [*WORDS, "data=text", "data.path=book.txt"], 2).end()
    assert (first.code, second.code) == (2, 2)
    assert "process 1" in first.err
    assert "book.txt" in second.err
    assert not (first.folder / "out").exists()
