"""Who works on what: locks in a sweep's folder, so that several commands share its runs. Imports no JAX.

A lock is a file in `locks/`, held with `flock` and removed when it is free; it says which process on which host holds
it. The kernel lets go of it when its process ends, however it ends. Some network file systems keep `flock` on one host:
there the holder's heartbeat tells. A lock of another host whose file was touched lately is not taken over, even if
`flock` grants it.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from stability.tracking.files import PARTIAL
from stability.tracking.slurm import slurm_task

LOCKS = "locks"
SWEEP = "sweep"
"""The lock on what belongs to no single run: the manifest and the analysis."""
HEARTBEAT_S = 20.0
SILENT_S = 120.0
"""A holder on another host that has not touched its file for so long is gone: six heartbeats."""
POLL_S = 0.5
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and the Slurm job or task that it is part of."""

    host: str
    pid: int
    job: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", Slurm job {self.job}" if self.job else "")


class Locks:
    """The locks that this process holds on a sweep's folder. Use it in a `with` statement, which lets go of all.

    Args:
        folder: the sweep's. `locks/` is made in it when the first lock is taken, and removed with the last.
        say: takes a line of text: said once where the file system has no locks.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self._folder, self._say = folder / LOCKS, say
        self._held: dict[str, int] = {}
        self._supported = True
        self._closed = threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> "Locks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Take a lock if nobody else has it; whether it is ours now.

        Raises:
            OSError: the folder cannot be written.
        """
        if name in self._held or not self._supported:
            return True
        path = self._folder / name
        while True:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except (FileNotFoundError, FileExistsError):  # the last holder of any lock has just removed the folder
                if self._folder.exists() and not self._folder.is_dir():
                    raise
                continue
            try:
                mine = self._lock(descriptor)
                if mine and not _is_at(descriptor, path):  # its last holder has just removed it
                    os.close(descriptor)
                    continue
                if not mine or self._is_held_elsewhere(descriptor):
                    os.close(descriptor)
                    return not self._supported
                _sign(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            self._held[name] = descriptor
            self._start_beating()
            return True

    def release(self, name: str) -> None:
        """Let go of a lock, held or not."""
        descriptor = self._held.pop(name, None)
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()  # before it is free: nobody is to find it free and ours
        os.close(descriptor)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def left_behind(self) -> Iterator[str]:
        """Locks whose holders were killed, each of them ours while it is looked at."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.name not in self._held and self.take(path.name):
                yield path.name

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Have a lock for a moment, waiting for it as long as it takes; says for whom if that is long."""
        began, said = time.monotonic(), False
        while not self.take(name):
            if time.monotonic() - began > 5.0 and not said:
                self._say(f"Waiting for {self.holder(name)}, which is at work on {self._folder.parent}.")
                said = True
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.release(name)

    def holder(self, name: str) -> Holder | None:
        """Who has a lock, as far as its file tells; None where nobody does."""
        return read_holder(self._folder / name)

    def is_held(self, name: str) -> bool:
        """Whether any process has a lock now."""
        return is_held(self._folder / name)

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise
            self._supported = False
            self._say(f"{self._folder.parent} is on a file system without locks: run one command at a time there.")
            return False
        return True

    def _is_held_elsewhere(self, descriptor: int) -> bool:
        """Whether another host seems to hold a lock that this one's kernel has just granted."""
        holder = _read(os.pread(descriptor, 1 << 12, 0))
        if holder is None or holder.host == platform.node():
            return False
        probe = self._folder / f".clock-{os.getpid()}{PARTIAL}"  # by the file server's clock, not ours
        with probe.open("w") as file:
            now = os.fstat(file.fileno()).st_mtime
        probe.unlink(missing_ok=True)
        return now - os.fstat(descriptor).st_mtime < SILENT_S

    def _start_beating(self) -> None:
        if self._beats is None:
            self._beats = threading.Thread(target=self._beat, name="locks", daemon=True)
            self._beats.start()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            for descriptor in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(descriptor)


def read_holder(path: Path) -> Holder | None:
    """Whom a lock's file names; None where there is no such file or it names nobody."""
    with contextlib.suppress(OSError):
        return _read(path.read_bytes())
    return None


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file now; takes and changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    else:
        holder = _read(os.pread(descriptor, 1 << 12, 0))
        foreign = holder is not None and holder.host != platform.node()
        return foreign and time.time() - os.fstat(descriptor).st_mtime < SILENT_S
    finally:
        os.close(descriptor)


def _read(content: bytes) -> Holder | None:
    try:
        found = json.loads(content)
        host, pid = str(found["host"]), int(found["pid"])
        return Holder(host, pid, str(found["job"]) if found.get("job") else None)
    except (ValueError, TypeError, KeyError):
        return None


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    holder = {"host": platform.node(), "pid": os.getpid(), "job": slurm_task()}
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
