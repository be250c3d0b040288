"""Locks: one holder at a time, whatever becomes of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stability.tracking import locks
from stability.tracking.locks import LOCKS, SILENT_S, Locks, is_held, read_holder

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from stability.tracking.locks import Locks
with Locks(Path(sys.argv[1])) as held:
    print(held.take(sys.argv[2]), flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken a lock, or has tried to."""
    arguments = [sys.executable, "-c", HOLDER, str(folder), name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_has_one_holder_and_leaves_nothing(tmp_path: Path) -> None:
    with Locks(tmp_path) as ours:
        assert ours.take("run")
        assert ours.take("run"), "it is ours already"
        assert is_held(tmp_path / LOCKS / "run")
        with Locks(tmp_path) as theirs:
            assert not theirs.take("run")
            assert theirs.take("other")
            assert str(theirs.holder("run")) == f"process {os.getpid()} on {os.uname().nodename}"
        ours.release("run")
        assert not is_held(tmp_path / LOCKS / "run")
        assert ours.take("run")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_names_the_slurm_task_that_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = f"process {os.getpid()} on {os.uname().nodename}, Slurm job"
    job = {"SLURM_JOB_ID": "14"}
    for variables, name in (({}, "14"), ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3")):
        for key, value in {**job, **variables}.items():
            monkeypatch.setenv(key, value)
        with Locks(tmp_path) as ours:
            assert ours.take("run")
            assert str(ours.holder("run")) == f"{named} {name}"


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path, "run") as process, Locks(tmp_path) as ours:
        assert not ours.take("run")
        holder = ours.holder("run")
        assert holder is not None
        assert holder.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCKS / "run").exists(), "nobody could remove it"
        assert ours.take("run")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_holders_left_can_be_cleared(tmp_path: Path) -> None:
    with another_process(tmp_path, "killed") as process, another_process(tmp_path, "alive"), Locks(tmp_path) as ours:
        process.kill()
        process.wait()
        assert ours.take("sweep")
        for name in ours.left_behind():
            assert name == "killed"
            ours.release(name)
        assert sorted(os.listdir(tmp_path / LOCKS)) == ["alive", "sweep"]


def test_many_at_once_never_share_a_lock(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], []

    def work() -> None:
        for _ in range(20):
            with Locks(tmp_path) as mine, mine.hold("run"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                entered.append(1)
                time.sleep(0.0005)
                inside[0] -= 1

    before, locks.POLL_S = locks.POLL_S, 0.001
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        locks.POLL_S = before
    assert most == [1]
    assert len(entered) == 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("age_s", "taken"), [(0.0, False), (SILENT_S / 2, False), (SILENT_S * 2, True)])
def test_another_host_is_believed_while_its_heart_beats(tmp_path: Path, age_s: float, taken: bool) -> None:
    """Where `flock` holds on one host only, it grants what another host holds."""
    path = tmp_path / LOCKS / "run"
    path.parent.mkdir()
    path.write_text(json.dumps({"host": "another", "pid": 7}))
    touched = time.time() - age_s
    os.utime(path, (touched, touched))
    assert is_held(path) is not taken
    with Locks(tmp_path) as ours:
        assert ours.take("run") is taken
        assert str(ours.holder("run")) == (
            f"process {os.getpid()} on {os.uname().nodename}" if taken else "process 7 on another"
        )


def test_a_holder_s_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with Locks(tmp_path) as ours:
        assert ours.take("run")
        path = tmp_path / LOCKS / "run"
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2


def test_where_there_are_no_locks_that_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def unsupported(*_: object) -> None:
        raise OSError(locks.errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with Locks(tmp_path, said.append) as ours:
        assert ours.take("a")
        assert ours.take("b")
    assert len(said) == 1
    assert "one command at a time" in said[0]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": "a"}', '{"host": "a", "pid": "x"}'])
def test_a_lock_that_names_nobody_is_free(tmp_path: Path, content: str) -> None:
    path = tmp_path / LOCKS / "run"
    path.parent.mkdir()
    path.write_text(content)
    assert read_holder(path) is None
    assert not is_held(path)
    with Locks(tmp_path) as ours:
        assert ours.take("run")
    assert read_holder(tmp_path / "absent") is None
