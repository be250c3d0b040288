"""W&B's service process, which sends what it is given. Imports no JAX, and `wandb` only when asked."""

import contextlib
from typing import Any

LOST = "will not be synced"
"""In what W&B says when it gives up on a run's uploads, as where a key has been withdrawn."""


class Losses:
    """What W&B has said of uploads that it gave up: in a line for the terminal, and in no other way.

    The run's calls go on as if nothing were amiss, its end included.
    """

    def __init__(self) -> None:
        self._heard: list[str] = []
        self._listens = False

    def listen(self) -> None:
        """From now on hear what W&B says, which it goes on to say."""
        if self._listens:
            return
        self._listens = True
        with contextlib.suppress(ImportError):
            from wandb.errors import term as terminal

            term: Any = terminal
            say = term.termwarn

            def heard(text: str, *arguments: Any, **more: Any) -> None:
                if LOST in text:
                    self._heard.append(text)
                say(text, *arguments, **more)

            term.termwarn = heard

    def refuse(self) -> None:
        """Raise what was heard since the last time.

        Raises:
            ConnectionError: W&B has given up uploads.
        """
        if self._heard:
            text = self._heard[0]
            self._heard.clear()
            raise ConnectionError(text)


def end_service() -> None:
    """End W&B's service process at once, whatever it waits for; the next use of W&B starts another.

    Left alone, it would hold on to the ids of runs that it cannot send, and keep our own process from ending for as
    long as its uploads may take. What it has not sent is lost to it: the caller writes it anew. A service that another
    process has started is left alone.
    """
    import wandb

    # W&B has no other way to its process. Where a version keeps it elsewhere, it is waited for instead.
    connection: Any = getattr(wandb.setup(), "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    if process is not None:
        process.kill()
        process.wait()
    # The pipe is broken, and the exit code that of a kill: W&B may say so in any way it likes.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
