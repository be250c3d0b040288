"""Ctrl-C, SIGTERM and a lost terminal as a flag, so that a run stops between two dispatches with everything saved."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_flag(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag that is read between dispatches; then Ctrl-C interrupts at once.

    Further SIGTERMs change nothing: clusters send several, of which none is a person's impatience. The signal of a
    terminal that is closed counts too, unless the process was told to ignore it (`nohup`).
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if asked:
            return
        asked.append(number)
        if number == signal.SIGHUP:
            _write_nowhere()
        with suppress(RuntimeError):  # the signal came in the midst of printing, into which nothing can be printed
            say("Stopping after this step, and saving. Ctrl-C from now on stops at once.")

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_nowhere() -> None:
    """The terminal is gone, and writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)
