"""What a sweep's folder and Slurm's own commands tell of a sweep's job arrays. Imports no JAX.

`slurm/N.json` in the folder tells of its Nth submission; `slurm/N/` holds the tasks' output, and files of submitit's.
"""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stability.errors import InputError
from stability.tracking.files import SCHEMA_VERSION, read_json, write_json

SLURM = "slurm"
_NUMBER = re.compile(r"[0-9]{1,12}")
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


def note_submission(folder: Path, number: int, job: str, tasks: int) -> None:
    """Write down that a job array was submitted for a sweep, into `slurm/N.json` of its folder."""
    write_json(folder / SLURM / f"{number}.json", {"schema_version": SCHEMA_VERSION, "job": job, "tasks": tasks})


def submitted_jobs(folder: Path) -> dict[int, str]:
    """The job arrays that were submitted for a sweep, by number, the first one first.

    A file that is damaged tells of none: a job that is not known of trains nothing twice.
    """
    found: dict[int, str] = {}
    for path in (folder / SLURM).glob("*.json"):
        with suppress(InputError, OSError):
            job = read_json(path).get("job")
            if isinstance(job, str) and _NUMBER.fullmatch(job) and _NUMBER.fullmatch(path.stem):
                found[int(path.stem)] = job
    return dict(sorted(found.items()))


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


def queued_tasks(jobs: Iterable[str]) -> list[QueuedTask] | None:
    """What of these job arrays is queued or running; None where Slurm cannot be asked."""
    listed = ",".join(jobs)
    if not listed:
        return []
    command = ["squeue", "--noheader", "--array", f"--jobs={listed}", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:  # of a single job that ended long ago it says so, of several it says nothing
        return [] if "Invalid job id" in done.stderr else None
    parts = [line.strip().split("|") for line in done.stdout.splitlines()]
    return [QueuedTask(*part) for part in parts if len(part) == 3]


def told(jobs: Collection[str]) -> Iterator[str]:
    """A line for each of these job arrays that Slurm has not done with, or that says why nothing is known."""
    tasks = queued_tasks(jobs)
    if tasks is None:
        yield f"Slurm jobs {', '.join(jobs)}: squeue does not say here what is queued or running of them"
        return
    for job in jobs:
        states = Counter(_state(task) for task in tasks if task.job == job)
        if states:
            yield f"Slurm job {job}: " + ", ".join(f"{count} {state}" for state, count in states.items())


def _state(task: QueuedTask) -> str:
    waits = task.state == "PENDING" and task.reason not in ("None", "")
    return task.state.lower() + (f" ({task.reason})" if waits else "")
