"""What the terminal shows while shards are made: units done, speed, time left; plain lines where it is no terminal."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from stability.data.preparation.packing import Packed
from stability.tracking.console import SAY_EVERY_S, SAY_EVERY_S_IN_A_LOG, UNKNOWN_FOR_S, duration


@dataclass
class Progress:
    """Follows a preparation of a known number of units.

    Args:
        units: how many there are, with those that an earlier process did.
        done: how many are done.
        work: the size of those that are left, in any unit.
    """

    units: int
    done: int
    work: float
    out: TextIO = field(default_factory=lambda: sys.stderr)
    _began: float = field(default_factory=time.perf_counter)
    _said: float = 0.0
    _worked: float = 0.0
    _tokens: int = 0
    _text_bytes: int = 0

    def add(self, packed: Packed, work: float) -> None:
        """A unit is done, which was so much of the work."""
        self.done += 1
        self._worked += work
        self._tokens += packed.counts.tokens
        self._text_bytes += packed.counts.text_bytes
        now = time.perf_counter()
        live = self.out.isatty()
        if now - self._said < (SAY_EVERY_S if live else SAY_EVERY_S_IN_A_LOG) and self.done < self.units:
            return
        self._said = now
        seconds = max(now - self._began, 1e-9)
        left = (self.work - self._worked) / max(self._worked, 1e-9) * seconds
        line = (
            f"[{self.done}/{self.units}] {self._tokens / 1e6:,.1f} M tokens, "
            f"{self._text_bytes / seconds / 1e6:.1f} MB of text a second"
        )
        if self.done < self.units and seconds > UNKNOWN_FOR_S:
            line += f", {duration(left)} left"
        self.out.write(f"\r\x1b[K{line}" if live else f"{line}\n")
        if live and self.done == self.units:
            self.out.write("\n")
        self.out.flush()
