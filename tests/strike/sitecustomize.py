"""Has a process strike itself: Python imports this at start-up where its folder is on PYTHONPATH.

STRIKE, JSON in the environment, says how (tests/kills.py makes it):

    operations   every write operation on files below one of `folders` goes into this file, one a line
    at, count    before the `count`-th operation whose line matches the regular expression `at`, ...
    delay        ... or so many seconds after it ...
    signal       ... the process gets this signal,
    struck       and the time (of the monotonic clock, which all processes share) goes into this file

A line is `VERB PATH` or `rename PATH PATH`. What C++ writes by itself (the arrays of a checkpoint) is not seen.
"""

import json
import os
import re
import threading
import time
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _line(event: str, given: tuple[Any, ...]) -> str | None:
    """What an audit event does to a file; None for one that writes none."""
    if event == "open" and isinstance(given[0], str | bytes) and given[2] & _WRITING:
        return f"write {_path(given[0])}"
    if event == "os.rename":
        return f"rename {_path(given[0])} {_path(given[1])}"
    if event in ("os.remove", "os.rmdir"):
        return f"remove {_path(given[0], given[1])}"
    if event == "os.mkdir":
        return f"mkdir {_path(given[0], given[2])}"
    return None


def _path(path: Any, folder: int = -1) -> str:
    above = os.getcwd() if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(above, os.fsdecode(path)))


class Hook:
    """Sees every operation of this process, and strikes at the one that was asked for."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.at, self.left = asked, re.compile(asked["at"]), asked["count"] if asked["at"] else -1
        self.lock, self.busy = threading.Lock(), threading.local()

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit event."""
        line = _line(event, given) if not getattr(self.busy, "now", False) else None
        if line is None or not any(folder in line for folder in self.asked["folders"]):
            return
        self.busy.now = True  # what follows opens files itself
        try:
            self._note(self.asked["operations"], line)
            with self.lock:
                self.left -= bool(self.asked["at"] and self.at.search(line))
                due, self.left = self.left == 0, self.left or -1
            if due:
                self._due()
        finally:
            self.busy.now = False

    def _due(self) -> None:
        if self.asked["delay"]:
            timer = threading.Timer(self.asked["delay"], self._strike)
            timer.daemon = True
            timer.start()
        else:
            self._strike()

    def _strike(self) -> None:
        self.busy.now = True
        self._note(self.asked["struck"], str(time.monotonic()))
        os.kill(os.getpid(), self.asked["signal"])

    def _note(self, path: str, line: str) -> None:
        with open(path, "a") as file:
            file.write(line + "\n")


if "STRIKE" in os.environ:
    import signal
    import sys

    # A shell has what it starts in the background ignore Ctrl-C; what a test starts from there is to heed it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(Hook(json.loads(os.environ["STRIKE"])))
