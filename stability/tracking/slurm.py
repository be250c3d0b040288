"""What a sweep's folder and Slurm's own commands tell of a sweep's job arrays. Imports no JAX.

`slurm/N.json` in the folder tells of its Nth submission; `slurm/N/` holds the tasks' output, and files of submitit's.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stability.tracking.files import SCHEMA_VERSION, read_json, write_json

SLURM = "slurm"
TIMEOUT_S = 30.0
"""Within which Slurm has to answer: its commands wait for a controller that is down."""


def slurm_task() -> str | None:
    """The job that this process is part of, as Slurm names it (`12_3` is task 3 of array 12); None outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def tasks_of_array() -> int | None:
    """How many tasks the array has that this process is part of."""
    count = os.environ.get("SLURM_ARRAY_TASK_COUNT", "")
    return int(count) if count.isdigit() else None


@dataclass(frozen=True)
class Submission:
    """A job array that was submitted for a sweep."""

    job: str
    tasks: int

    def write(self, path: Path) -> None:
        """Into `slurm/N.json`."""
        write_json(path, {"schema_version": SCHEMA_VERSION, "job": self.job, "tasks": self.tasks})


def submissions(folder: Path) -> Iterator[Submission]:
    """Those of a sweep's folder, the first one first.

    Raises:
        InputError: a file of them is damaged.
    """
    paths = [path for path in (folder / SLURM).glob("*.json") if path.stem.isdigit()]
    for path in sorted(paths, key=lambda path: int(path.stem)):
        content = read_json(path)
        yield Submission(str(content.get("job")), int(content.get("tasks") or 0))


@dataclass(frozen=True)
class QueuedTask:
    """A task that Slurm has not done with.

    Attributes:
        name: `12_3`, or `12` of a job that is no array.
        state: as Slurm says it, `PENDING`, `RUNNING`, ...
        reason: why it is not running.
    """

    name: str
    state: str
    reason: str

    @property
    def job(self) -> str:
        """The array that it belongs to."""
        return self.name.partition("_")[0]


def queued_tasks(jobs: Sequence[str]) -> list[QueuedTask] | None:
    """What of these jobs is queued or running; None where Slurm cannot be asked.

    Args:
        jobs: ids of arrays.
    """
    known = [job for job in jobs if job.isdigit()]
    if not known:
        return []
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(known)}", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:  # of a single job that ended long ago it says so, of several it says nothing
        return [] if "Invalid job id" in done.stderr else None
    parts = [line.strip().split("|") for line in done.stdout.splitlines()]
    return [QueuedTask(*part) for part in parts if len(part) == 3]


def told(submitted: Sequence[Submission]) -> Iterator[str]:
    """A line for each array that Slurm has not done with, or that says why nothing is known."""
    tasks = queued_tasks([one.job for one in submitted])
    if tasks is None:
        yield f"Slurm: {len(submitted)} job arrays were submitted, and squeue does not say here what became of them"
        return
    for one in submitted:
        mine = [task for task in tasks if task.job == one.job]
        states = Counter(_state(task) for task in mine)
        if mine:
            yield f"Slurm job {one.job}: " + ", ".join(f"{count} {state}" for state, count in states.items())


def _state(task: QueuedTask) -> str:
    waits = task.state == "PENDING" and task.reason not in ("None", "")
    return task.state.lower() + (f" ({task.reason})" if waits else "")
