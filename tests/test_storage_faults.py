"""Broken storage, through the command line: go on from the last good state and say so, or stop with what is kept."""

import errno
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stability.launching import campaign
from stability.tracking import files
from stability.tracking.record import RunFolder, run_folders
from stability.training import checkpoint, lanes
from tests.conftest import TINY, Command
from tests.test_sweep import stories, summary

SWEEP = [*TINY, "optimizer.learning_rate=0.01,0.1", "lanes=sequential", "training.checkpoint_every=10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep is kept once a test has trained it."""
    return tmp_path_factory.mktemp("trained") / "whole"


@pytest.fixture
def whole(command: Command, trained: Path) -> dict[str, Any]:
    """What the sweep measures when nothing happens to it; it lies in results/whole."""
    if not trained.exists():
        assert command(*SWEEP, f"output_dir={trained}").code == 0
    shutil.copytree(trained, "results/whole")
    return stories("results/whole")


@contextmanager
def stopped_after(monkeypatch: pytest.MonkeyPatch, dispatches: int) -> Iterator[None]:
    """A signal arrives after so many dispatches."""
    left = itertools.count(dispatches, -1)

    @contextmanager
    def stopping(say: Any) -> Iterator[Callable[[], bool]]:
        yield lambda: next(left) < 0

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "stop_flag", stopping)
        yield


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each dispatch executes."""
    executed: list[int] = []
    step = lanes.Program.step

    def counting(self: Any, config: Any, state: Any, tokens: Any, count: int, observe: bool) -> Any:
        executed.append(count)
        return step(self, config, state, tokens, count, observe)

    monkeypatch.setattr(lanes.Program, "step", counting)
    return executed


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    path.unlink()


def nothing_half_written(folder: str) -> bool:
    left = [
        *Path(folder).rglob("*.partial"),
        *Path(folder).rglob("*orbax-checkpoint-tmp*"),
        *Path(folder).glob("locks"),
    ]
    return not left


# --- damage -----------------------------------------------------------------------------------------------------------

RESULT_FILES = ("metrics.jsonl", "summary.json", "config.json", "provenance.json")


@pytest.mark.parametrize(
    ("damage", "name"), [*itertools.product((halve, remove), RESULT_FILES), (flip, "metrics.jsonl")]
)
def test_a_damaged_result_is_said_kept_aside_and_made_again(
    command: Command, whole: dict[str, Any], steps: list[int], damage: Callable[[Path], None], name: str
) -> None:
    victim = run_folders(Path("results/whole"))[1]
    damage(victim.path / name)
    left = {path.name for path in victim.path.iterdir()}
    outcome = command(*SWEEP, "output_dir=results/whole")
    assert outcome.code == 0, outcome.err
    assert "Damaged" in outcome.out or name == "summary.json"
    assert stories("results/whole") == whole
    assert sum(steps) == 30, "the other run was not trained again"
    aside = Path("results/whole/damaged")
    if name == "summary.json" and damage is remove:  # a run without one has not finished
        assert not aside.exists()
    else:
        assert {path.name for path in next(aside.iterdir()).iterdir()} == left
    assert summary("results/whole")["complete"]


def test_a_result_cut_off_is_never_taken_for_finished(command: Command, whole: dict[str, Any]) -> None:
    from stability.status import main as status

    halve(run_folders(Path("results/whole"))[0].metrics)
    assert status(["results/whole"]) == 1
    assert "1 already done" in command(*SWEEP, "output_dir=results/whole").out


CHECKPOINT_DAMAGE = {
    "flip an array": lambda run: flip(largest(newest(run))),
    "cut an array": lambda run: halve(largest(newest(run))),
    "lose an array": lambda run: largest(newest(run)).unlink(),
    "lose all arrays": lambda run: shutil.rmtree(newest(run)),
    "flip the seal": lambda run: flip(newest(run).with_name(f"{newest(run).name}.json")),
    "flip the config": lambda run: flip(run.config),
}


def newest(run: RunFolder) -> Path:
    return max((path for path in run.checkpoints.iterdir() if path.is_dir()), key=lambda path: int(path.name))


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE.values(), ids=CHECKPOINT_DAMAGE)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    command: Command,
    whole: dict[str, Any],
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[RunFolder], None],
) -> None:
    words = [*SWEEP, "output_dir=results/broken"]
    with stopped_after(monkeypatch, 4):
        assert command(*words).code == 130
    (run,) = run_folders(Path("results/broken"))
    assert {path.name for path in run.checkpoints.iterdir()} == {"20", "20.json", "21", "21.json"}
    damage(run)
    steps.clear()
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert "Damaged" in outcome.out
    assert "goes on from step" in outcome.out
    assert sum(steps) < 60, "not from scratch"
    assert stories("results/broken") == whole
    assert list(Path("results/broken/damaged").iterdir())
    assert nothing_half_written("results/broken")


def test_without_its_manifest_a_folder_is_left_as_it_is(command: Command, whole: dict[str, Any]) -> None:
    Path("results/whole/sweep.json").unlink()
    before = {path: path.read_bytes() for path in Path("results/whole").rglob("*") if path.is_file()}
    outcome = command(*SWEEP, "output_dir=results/whole")
    assert outcome.code == 2
    assert "results/whole" in outcome.err
    assert {path: path.read_bytes() for path in Path("results/whole").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [flip, halve])
def test_a_damaged_manifest_is_refused(command: Command, whole: dict[str, Any], damage: Callable[[Path], None]) -> None:
    damage(Path("results/whole/sweep.json"))
    outcome = command(*SWEEP, "output_dir=results/whole")
    assert outcome.code == 2
    assert "sweep.json" in outcome.err


# --- calls that fail --------------------------------------------------------------------------------------------------


class Failing:
    """Counts the calls of the primitives that write, and lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None, error: int = errno.EIO) -> None:
        self.calls, self.at, self.error = 0, at, error
        for owner, name in [
            (files.os, "fsync"),
            (files.os, "replace"),
            (files, "_write_all"),
            (checkpoint.Checkpoints, "save"),
        ]:
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self.at:
                raise OSError(self.error, os.strerror(self.error))
            return call(*arguments)

        return counted


def fail_at(command: Command, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], at: int, error: int) -> None:
    """The call fails; the command says so; started again, it comes to the same results."""
    words = [*SWEEP, f"output_dir=results/fail{at}"]
    with monkeypatch.context() as patch:
        Failing(patch, at, error)
        outcome = command(*words)
    assert outcome.code in (0, 1, 2), "0: a folder's entries could not be put on the disk, which not all systems do"
    if outcome.code:
        assert os.strerror(error) in outcome.err
        assert "Traceback" not in outcome.err
    again = command(*words)
    assert again.code == 0, again.err
    assert "Damaged" not in again.out
    assert stories(f"results/fail{at}") == whole
    assert nothing_half_written(f"results/fail{at}")


def number_of_calls(command: Command, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        counter = Failing(patch)
        assert command(*SWEEP, "output_dir=results/counted").code == 0
    return counter.calls


def test_a_call_that_fails_stops_with_what_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    calls = number_of_calls(command, monkeypatch)
    for at in range(3, calls, calls // 6):
        fail_at(command, monkeypatch, whole, at, errno.EIO)


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_call_may_fail(
    command: Command, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], error: int
) -> None:
    for at in range(number_of_calls(command, monkeypatch)):
        fail_at(command, monkeypatch, whole, at, error)
        shutil.rmtree(f"results/fail{at}")


def test_slow_calls_only_take_time(command: Command, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.02)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", slow)
        assert command(*SWEEP, "output_dir=results/slow").code == 0
    assert stories("results/slow") == whole


# --- a real full disk, and one that cannot be written -----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory, mounted with options; called again it is mounted anew with others, its files kept."""
    place, mounted = tmp_path / "disk", []
    place.mkdir()

    def mount(options: str) -> Path:
        what = ["mount", "-o", f"remount,{options}"] if mounted else ["mount", "-t", "tmpfs", "-o", options, "tmpfs"]
        if subprocess.run([*what, str(place)], capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs takes root")
        mounted.append(options)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("kib", [24, 200, 560])
def test_a_full_disk(
    command: Command, whole: dict[str, Any], small_disk: Callable[[str], Path], steps: list[int], kib: int
) -> None:
    words = [*SWEEP, f"output_dir={small_disk(f'size={kib}k')}/s"]
    outcome = command(*words)
    assert outcome.code in (1, 2)
    assert "No space left" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (small_disk(f"size={kib}k") / "s" / "summary.json").exists()
    disk = small_disk("size=50m")
    kept = sum(files.measure(run.metrics).bytes for run in run_folders(disk / "s"))
    steps.clear()
    again = command(*words)
    assert again.code == 0, again.err
    assert "Damaged" not in again.out
    assert stories(disk / "s") == whole
    assert kept or sum(steps) == 60
    assert nothing_half_written(str(disk / "s"))


def test_a_folder_that_cannot_be_written(
    command: Command, whole: dict[str, Any], small_disk: Callable[[str], Path]
) -> None:
    place = small_disk("size=50m")
    words = [*SWEEP, f"output_dir={place}/s"]
    shutil.copytree("results/whole", place / "s")
    small_disk("ro")
    refused = command(*words, "seed=0,1")
    assert refused.code == 2
    assert "cannot be written" in refused.err
    assert stories(place / "s") == whole
