"""What a terminal shows while a sweep trains: runs as rows of a table that is redrawn, with progress and time left."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stability.tracking.console import SAY_EVERY_S, Console, Progress, QuietConsole, number
from stability.tracking.record import TERMINAL, Row
from stability.untrusted.printable import shown

_LINES_AROUND_THE_ROWS = 7
"""Header, rules, the bar, and some of what was said before."""
_ROWS_AFTER = 3
"""Runs shown beyond the ones under way."""
_OVER = (*TERMINAL, "failed", "elsewhere")
_COLOURS = {"diverged": "red", "failed": "bold red", "finished": "green"}


@dataclass(frozen=True)
class RunFacts:
    """What a row says of a run before it has measured anything."""

    arm: str
    scale: str
    learning_rate: float
    seed: int


@dataclass
class _Line:
    """A run's latest."""

    facts: RunFacts
    status: str = ""
    loss: float | None = None
    attention_logit_max: float | None = None
    tokens_per_second: float = 0.0


def console_for(progress: Progress, facts: Mapping[str, RunFacts], **settings: Any) -> Console:
    """The console that a sweep asks for; `auto` is live where the output is a terminal that can be redrawn.

    Args:
        progress: which.
        facts: fingerprint -> what to say of it, of the runs to train, in the order of training.
        settings: of `Console`.
    """
    if progress == "quiet":
        return QuietConsole(**settings)
    lines = Console(**settings)
    if progress == "lines" or (progress == "auto" and not _can_redraw(lines)):
        return lines
    return LiveConsole(**settings, facts=facts)


def _can_redraw(console: Console) -> bool:
    return console.out.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")


@dataclass
class LiveConsole(Console):
    """Shows the runs that ended last, those under way and those that come next.

    It is redrawn where something happens, at most five times a second, from the thread that trains.

    Args:
        facts: see `console_for`.
    """

    facts: Mapping[str, RunFacts] = field(default_factory=dict)
    _lines: dict[str, _Line] = field(default_factory=dict)
    _live: Live | None = None
    _terminal: Terminal = field(init=False)

    def __post_init__(self) -> None:
        self._terminal = Terminal(file=self.out, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._lines = {fingerprint: _Line(facts) for fingerprint, facts in self.facts.items()}

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._terminal.print(Text(shown(text)), soft_wrap=True)

    def started(self, fingerprints: Sequence[str]) -> None:
        """Mark them as about to train."""
        for fingerprint in fingerprints:
            self._lines[fingerprint].status = "starting"
        self._draw(time.perf_counter(), at_once=True)

    def row(self, fingerprint: str, row: Row) -> None:
        """Keep its loss and largest logit."""
        line = self._lines[fingerprint]
        line.loss = row.get("loss/validation", row.get("loss/train", line.loss))
        line.attention_logit_max = row.get("attention_logit/max", line.attention_logit_max)
        line.tokens_per_second = row.get("speed/tokens_per_second") or line.tokens_per_second

    def progress(self, fingerprint: str, title: str, step: int, steps: int) -> None:
        """A run stands at `step` of `steps`."""
        now = self._clock(fingerprint, step / steps)
        self._lines[fingerprint].status = f"{step}/{steps}"
        self._draw(now)

    def ended(self, fingerprint: str, title: str, summary: dict[str, Any], seconds: float) -> None:
        """A run is over: its row says what it came to, a failure also a line."""
        self._end(fingerprint)
        line = self._lines[fingerprint]
        line.status = str(summary["status"])
        line.loss = summary.get("loss_validation")
        line.attention_logit_max = summary.get("attention_logit_max")
        if line.status == "failed":
            self.say(f"{title} failed: {summary['error']}")
        self._draw(time.perf_counter(), at_once=self.done >= self._total)

    def ended_elsewhere(self, fingerprint: str, title: str) -> None:
        """A run is over that another command trained: its row says so."""
        self._end(fingerprint)
        self._lines[fingerprint].status = "elsewhere"
        self._draw(time.perf_counter(), at_once=self.done >= self._total)

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def _total(self) -> int:
        return self.done - self._ended + len(self.work)

    def _draw(self, now: float, at_once: bool = False) -> None:
        if not at_once and now - self._said < SAY_EVERY_S:
            return
        self._said = now
        if self._live is None:
            self._live = Live(console=self._terminal, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        self._live.update(self._view(), refresh=True)

    def _view(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        for name in ("arm", "size"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("learning rate", "seed", "loss", "max logit"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("status", no_wrap=True, min_width=10)
        for line in self._window():
            facts, colour = line.facts, _COLOURS.get(line.status, "" if line.status else "dim")
            numbers = (f"{facts.learning_rate:g}", str(facts.seed), number(line.loss), number(line.attention_logit_max))
            names = (shown(name, lines=False) for name in (facts.arm, facts.scale))
            table.add_row(*names, *numbers, Text(line.status or "waiting", colour), style=colour and "")
        return Group(Text(""), table, self._bar())

    def _window(self) -> list[_Line]:
        """As many rows as fit: the ones under way last but for a few that wait."""
        lines = list(self._lines.values())
        room = max(3, self._terminal.size.height - _LINES_AROUND_THE_ROWS)
        begun = max((i + 1 for i, line in enumerate(lines) if line.status), default=0)
        end = min(len(lines), max(room, begun + min(_ROWS_AFTER, room - 1)))
        return lines[max(0, end - room) : end]

    def _bar(self) -> RenderableType:
        whole = sum(self.work.values())
        done = sum(self._share.get(fingerprint, 0.0) * work for fingerprint, work in self.work.items())
        under_way = [line for line in self._lines.values() if line.status and line.status not in _OVER]
        speed = sum(line.tokens_per_second for line in under_way)
        words = [
            f"{self.done}/{self._total} runs",
            f"{speed:,.0f} tokens/s" if speed else "",
            self._left(),
        ]
        row = Table.grid(padding=(0, 2))
        row.add_row(ProgressBar(total=whole, completed=done, width=32), Text(" · ".join(filter(None, words))))
        return row
