"""What the training loop's caller tells to whoever follows a sweep live. Imports no JAX.

The plain files of `stability.tracking.record` are the source of truth; a tracker gets the same numbers, and nothing
that goes wrong in one may stop or slow the training. `Background` sees to that for any of them. docs/wandb.md says how
to write another one.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stability.tracking.record import Row
from stability.untrusted.secrets import redacted

QUEUE_LIMIT = 10_000
"""Events that may wait: some 100 MB of rows with 200 numbers each."""
LINE_CHARACTERS = 300
"""What a library says of its failure may be a page of HTML."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run when it starts.

    Attributes:
        id: unique among all runs of a project; the same when the run is resumed.
        name: for people, need not be unique.
        group: the sweep's name.
        job_type: what kind of work it is, such as `train`.
        tags: words to find it by.
        config: the scientific config, nested, and what names the run: arm, scale, n_params, device and more.
        folder: the run's own folder of plain files.
        record: what config.json and provenance.json hold and an analysis needs, for trackers that can be analysed.
        rows: what it had measured before this start: empty unless it goes on from a checkpoint.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class TrackedSweep:
    """What a tracker is told of a sweep when its runs have been analysed.

    Attributes:
        id: unique among all sweeps of a project; the same whenever the sweep is analysed again.
        name: the sweep's name, which is its runs' `group`.
        folder: the sweep's results folder: sweep.json, summary.json, analysis/, runs/ and perhaps report.html.
        manifest: what sweep.json holds.
        summary: what summary.json holds.
        tables: name -> rows, all with the same keys: `runs`, `curves`, `sensitivity` and more.
    """

    id: str
    name: str
    folder: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]


class CarriedOn(Exception):
    """A tracker's call was carried out, though not as it was asked for: the message says how, in one line.

    `Background` says it and goes on, where any other exception ends the tracking.
    """


class Tracker(Protocol):
    """Follows a sweep. Its methods may block and raise: wrap it in `Background` to train with it.

    The order of calls: for each run `start`, any number of `log`, and `finish` unless it is interrupted; then
    `analysed` unless the sweep is interrupted; then `close`; then `closing_words`.
    """

    def start(self, run: TrackedRun) -> None:
        """A run starts, or goes on from a checkpoint. Several may be open at once."""

    def log(self, run_id: str, row: Row) -> None:
        """An open run has measured something: a row as the record has it, with at least `step`."""

    def finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """An open run is over, with the record's summary (`status` says how it ended)."""

    def analysed(self, sweep: TrackedSweep) -> None:
        """The sweep's runs have been analysed. Also told where nothing was left to train."""

    def close(self) -> None:
        """Nothing more will come: let go of everything, runs that are still open included."""

    def closing_words(self) -> Sequence[str]:
        """After `close`: lines for the terminal, such as where to look now. Must not block."""


def one_line(error: BaseException) -> str:
    """An exception's kind and message on one line of moderate length, without keys and tokens."""
    text = redacted(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"))
    return text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}..."


class NoTracker:
    """Follows nothing. A tracker may start from it and say only what it cares for."""

    def start(self, run: TrackedRun) -> None:
        """Do nothing."""

    def log(self, run_id: str, row: Row) -> None:
        """Do nothing."""

    def finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def analysed(self, sweep: TrackedSweep) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def closing_words(self) -> Sequence[str]:
        """Say nothing."""
        return ()


class Background:
    """Runs a tracker's calls, in order, in a thread of its own. No call here raises, and none but `close` waits.

    A `with` statement closes it at its end, unless it is left by an interrupt.

    At the first call that raises, or when more than `queue_limit` events wait, one line is said and the tracker gets
    nothing more than `close`. `CarriedOn` is no failure: its line is said, and that is all.

    Args:
        tracker: whom to call.
        warn: takes one line of text; called at most once for a failure, once by `close` and for each `CarriedOn`, from
            either thread.
        queue_limit: how many events may wait for a slow tracker.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None], queue_limit: int = QUEUE_LIMIT) -> None:
        self._tracker, self._warn, self._queue_limit = tracker, warn, queue_limit
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._enabled = True
        self._closed = False
        # A daemon, so that a tracker which hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # who interrupts does not want to wait
            self.close()

    def warn_with(self, warn: Callable[[str], None]) -> None:
        """From now on say what there is to say here."""
        self._warn = warn

    def start(self, run: TrackedRun) -> None:
        """See `Tracker.start`."""
        self._put(lambda: self._tracker.start(run))

    def log(self, run_id: str, row: Row) -> None:
        """See `Tracker.log`. The row may be changed afterwards."""
        row = dict(row)
        self._put(lambda: self._tracker.log(run_id, row))

    def finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """See `Tracker.finish`."""
        summary = dict(summary)
        self._put(lambda: self._tracker.finish(run_id, summary))

    def analysed(self, sweep: TrackedSweep) -> None:
        """See `Tracker.analysed`."""
        self._put(lambda: self._tracker.analysed(sweep))

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait until the tracker has got what was put so far, so that its thread is idle; or is off, or time is up.

        The analysis draws meanwhile, and its libraries do not bear that W&B imports others at the same time.

        Args:
            timeout_s: how long to wait, in seconds.
        """
        reached = threading.Event()
        self._put(reached.set)
        end = time.monotonic() + timeout_s
        while self._enabled and not self._closed and time.monotonic() < end and not reached.wait(0.05):
            pass

    def closing_words(self) -> Sequence[str]:
        """See `Tracker.closing_words`; nothing where the tracker has not come to its end."""
        if self._thread.is_alive():
            return ()
        with contextlib.suppress(Exception):
            return tuple(self._tracker.closing_words())
        return ()

    def close(self, timeout_s: float = 60.0) -> None:
        """Wait for the tracker to get what is still under way, and say how much of it did not arrive in time.

        Args:
            timeout_s: how long to wait, in seconds, the tracker's own `close` included.
        """
        if self._closed:
            return
        self._closed = True
        self._events.put(None)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return
        was_enabled, self._enabled = self._enabled, False
        # The mark of the end waits too, and makes up for the event that the tracker is busy with.
        undelivered = self._events.qsize()
        if was_enabled:
            lost = f"events not delivered: {undelivered}" if undelivered else "its last data may be missing"
            self._say(f"Tracking did not finish within {timeout_s:g} s: {lost}. The plain files are complete.")

    def _put(self, event: Callable[[], None]) -> None:
        if not self._enabled or self._closed:
            return
        if self._events.qsize() >= self._queue_limit:
            self._disable(f"{self._queue_limit} events wait for it")
            return
        self._events.put(event)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            if self._enabled:
                self._attempt(event)
        # Also after a failure: it may hold open runs, and close is all that it is still told.
        self._attempt(self._tracker.close)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except CarriedOn as news:
            self._say(str(news))
        except BaseException as error:  # a library that calls sys.exit in its thread is caught too
            self._disable(one_line(error))

    def _disable(self, reason: str) -> None:
        if self._enabled:
            self._enabled = False
            self._say(f"Tracking is off for the rest of this session, training goes on ({reason}).")

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):
            self._warn(line)
