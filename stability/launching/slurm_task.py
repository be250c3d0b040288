"""What one task of a Slurm array executes: the command that was typed, until Slurm wants the machine back.

submitit pickles the task into `slurm/` of the sweep's folder and unpickles it in the job. It is the one pickle of this
program: nothing of ours reads it, and the job reads no other than its own.
"""

import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from stability.errors import EXIT_INTERRUPTED

IN_TASK, NO_REEXECUTION = "STABILITY_SLURM_TASK", "STABILITY_NO_REEXECUTION"
PROGRAM = "stability.run"


def in_task() -> bool:
    """Whether this process is a task of an array, which trains instead of submitting."""
    return IN_TASK in os.environ


@dataclass(frozen=True)
class Task:
    """Trains what of a sweep no other task has.

    Attributes:
        arguments: of the command, as they were typed.
        typed: all of its words, for the record.
    """

    arguments: tuple[str, ...]
    typed: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; called by submitit in the job.

        Raises:
            SystemExit: its exit code, where that is not 0.
        """
        # The process is submitit's, and another in its place would know nothing of it.
        os.environ |= {IN_TASK: "1", NO_REEXECUTION: "1"}
        logging.getLogger("submitit").propagate = False  # it has handlers of its own, and would say everything twice
        sys.argv[1:], sys.orig_argv = self.arguments, list(self.typed)
        with _Preemption() as preemption:
            code = _run()
            if code == EXIT_INTERRUPTED and preemption.asked:
                preemption.requeue()
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """What to execute when the task is queued again, the same; called by submitit, which would else not do that."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run() -> int:
    """Run the program as `python -m` does; its exit code."""
    try:
        runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


class _Preemption:
    """Slurm's signals while the program runs.

    submitit has taken them before: it ignores SIGTERM, and at SIGUSR2 (which comes before the time limit, and where a
    cluster preempts) it queues the task again there and then, in the midst of a step. Here SIGTERM does what it does
    to any process, which the training makes a flag of, and SIGUSR2 sets the same flag; submitit's turn comes when all
    is saved.
    """

    def __init__(self) -> None:
        self.asked = False
        self._requeue: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> "_Preemption":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        submitits = signal.signal(signal.SIGUSR2, self._ask)
        self._requeue = submitits if callable(submitits) else None
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # too late: the command has ended

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        if callable(signal.getsignal(signal.SIGTERM)):  # something is training
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requeue()

    def requeue(self) -> None:
        """Have submitit queue the task again, and end the process. Of several processes of a task the first does it.

        Raises:
            UncompletedJobError: the task has reached its time limit too often.
        """
        if self._requeue is None:
            return
        # Slurm ends a job that is queued again, which is to come after what submitit has to say of it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self._requeue(signal.SIGUSR2, None)
        except SystemExit:
            # Nothing of it is left to do, and what is under way might take the exception for one of its own.
            os._exit(EXIT_INTERRUPTED)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
