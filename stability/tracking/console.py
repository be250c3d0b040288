"""What is said while a sweep trains, in plain lines: one for each run that ends, progress, and the time left.

A log file reads like the terminal; only where the output is a terminal, the line of the run under way is written over
as it advances. `stability.tracking.live` shows the same as a table.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

from stability.tracking.record import Row
from stability.untrusted.printable import shown

Progress = Literal["auto", "live", "lines", "quiet"]
"""A table that is redrawn, plain lines, or only what has to be said; `auto` is live in a terminal, lines elsewhere."""

UNKNOWN_FOR_S = 1.0
"""No time left is told before so much has been seen."""
SAY_EVERY_S = 0.2
SAY_EVERY_S_IN_A_LOG = 30.0


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3:20 min, 5:07 h."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def number(value: float | None) -> str:
    """A loss or logit in five characters or so; a dash for what is not available."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1e}"


@dataclass
class Console:
    """Follows a sweep of known cost.

    Args:
        work: what each run costs, in any unit, by fingerprint; only runs still to train.
        kinds: which runs cost alike (their structure's number), by fingerprint.
        done: how many runs were finished before this command.
    """

    work: dict[str, float]
    kinds: dict[str, int]
    done: int = 0
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _share: dict[str, float] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)
    _worked: dict[int, float] = field(default_factory=dict)
    _compile_seconds: list[float] = field(default_factory=list)
    _ended: int = 0
    _said: float = 0.0
    _open_line: bool = False
    _mark: float = field(default_factory=time.perf_counter)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._open_line:
            self.out.write("\r\x1b[K")
            self._open_line = False
        self.out.write(shown(text) + "\n")
        self.out.flush()

    def started(self, fingerprints: Sequence[str]) -> None:
        """Runs are about to train: their program is compiled first, if it is not yet."""

    def row(self, fingerprint: str, row: Row) -> None:
        """A run has measured something."""

    def close(self) -> None:
        """Nothing more will be shown of runs under way; `say` still works."""

    def compiled(self, seconds: float) -> None:
        """A program was compiled, which took so long."""
        self._compile_seconds.append(seconds)
        self._mark = time.perf_counter()

    def progress(self, fingerprint: str, title: str, step: int, steps: int) -> None:
        """A run stands at `step` of `steps`."""
        now = self._clock(fingerprint, step / steps)
        if now - self._said < (SAY_EVERY_S if self.out.isatty() else SAY_EVERY_S_IN_A_LOG):
            return
        self._said = now
        line = ", ".join(part for part in (f"{self._count()} {title}: step {step}/{steps}", self._left()) if part)
        if self.out.isatty():
            self.out.write(f"\r\x1b[K{shown(line, lines=False)}")
            self.out.flush()
            self._open_line = True
        else:
            self.say(line)

    def ended(self, fingerprint: str, title: str, summary: dict[str, Any], seconds: float) -> None:
        """A run is over: what it came to."""
        self._end(fingerprint)
        self._said = time.perf_counter()
        title = shown(title, lines=False)
        if summary["status"] == "failed":
            self.say(f"{self._count()} {title:<44} failed: {summary['error']}")
            return
        self.say(
            f"{self._count()} {title:<44} {summary['status']:<9} loss {number(summary.get('loss_validation')):>7}  "
            f"max logit {number(summary.get('attention_logit_max')):>8}  {duration(seconds):>6}  {self._left()}"
        )

    def ended_elsewhere(self, fingerprint: str, title: str) -> None:
        """A run is over that another command trained."""
        self._end(fingerprint)
        self.say(f"{self._count()} {title:<44} has a result of another command")

    def _clock(self, fingerprint: str, share: float) -> float:
        """A run has come so far: learn its speed, and return the time."""
        now, kind, before = time.perf_counter(), self.kinds[fingerprint], self._share.get(fingerprint)
        if before is not None:  # a run's first report may stand on what an earlier process did
            self._worked[kind] = self._worked.get(kind, 0.0) + (share - before) * self.work[fingerprint]
            self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._mark
        self._share[fingerprint], self._mark = share, now
        return now

    def _end(self, fingerprint: str) -> None:
        """A run is over."""
        self._share[fingerprint] = 1.0
        self.done += 1
        self._ended += 1

    def _count(self) -> str:
        total = self.done - self._ended + len(self.work)
        return f"[{self.done:>{len(str(total))}}/{total}]"

    def _left(self) -> str:
        """Time left: the work that remains over the speed at its own structure, or of all so far; then compiling."""
        if sum(self._seconds.values()) < UNKNOWN_FOR_S:
            return ""
        rate_of_all = sum(self._worked.values()) / max(sum(self._seconds.values()), 1e-9)
        seconds = 0.0
        for fingerprint, work in self.work.items():
            kind = self.kinds[fingerprint]
            rate = self._worked.get(kind, 0.0) / max(self._seconds.get(kind, 0.0), 1e-9) or rate_of_all
            seconds += (1.0 - self._share.get(fingerprint, 0.0)) * work / max(rate, 1e-9)
        unseen = len(set(self.kinds.values())) - len(self._compile_seconds)
        if self._compile_seconds:
            seconds += max(0, unseen) * sum(self._compile_seconds) / len(self._compile_seconds)
        return f"{duration(seconds)} left" if seconds >= 0.5 else ""


class QuietConsole(Console):
    """Says what has to be said, and nothing of runs but the failed ones."""

    def progress(self, fingerprint: str, title: str, step: int, steps: int) -> None:
        """Say nothing."""

    def ended(self, fingerprint: str, title: str, summary: dict[str, Any], seconds: float) -> None:
        """Say what went wrong."""
        if summary["status"] == "failed":
            super().ended(fingerprint, title, summary, seconds)
        else:
            self._end(fingerprint)

    def ended_elsewhere(self, fingerprint: str, title: str) -> None:
        """Say nothing."""
        self._end(fingerprint)
