"""A sweep handed to Slurm: a job array through submitit, whose tasks share the sweep's runs by their locks."""

import importlib.util
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from stability.errors import EXIT_FAILED, EXIT_INTERRUPTED, InputError
from stability.launching.folder import SweepFolder, is_complete
from stability.launching.grid import Request
from stability.launching.plan import Pack, pack_runs
from stability.launching.reuse import reuse
from stability.launching.search import Search
from stability.launching.settings import Slurm
from stability.launching.slurm_task import Task
from stability.tracking.console import counted
from stability.tracking.locks import SWEEP, Locks
from stability.tracking.slurm import SLURM, QueuedTask, note_submission, queued_tasks, submitted_jobs
from stability.untrusted.names import folder_name, refuse_links_out
from stability.untrusted.printable import tell

LOG_LEVEL = "SUBMITIT_LOG_LEVEL"
POLL_S = 10.0
"""How often `slurm.wait=true` asks Slurm."""
SET_BY_KEYS = {
    "array": "slurm.array",
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "constraint": "slurm.constraint",
    "nodes": "slurm.nodes",
    "ntasks-per-node": "slurm.tasks_per_node",
    "ntasks": "slurm.tasks_per_node",
    "cpus-per-task": "slurm.cpus_per_task",
    "gpus-per-node": "slurm.gpus_per_node",
    "mem": "slurm.mem",
    "time": "slurm.timeout_min",
    "signal": "slurm.signal_delay_s",
    "wait": "slurm.wait",
}
SET_BY_US = (
    "output",
    "error",
    "open-mode",
    "requeue",
    "no-requeue",
    "wrap",
    "parsable",
    "test-only",
    "chdir",
    "export",
)
"""Options of sbatch by which a task would not start, or its output would not be found."""


def check_slurm(settings: Slurm, *, here: bool) -> None:
    """Refuse what cannot be submitted.

    Args:
        settings: of the command.
        here: whether it is to be submitted now, from this host.

    Raises:
        InputError: names the key; submitit or sbatch is missing.
    """
    for name, value in settings.additional.items():
        key = f"slurm.additional.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise InputError(
                key, value, "is no long name of an option of sbatch", "Write it as reservation or mail-type."
            )
        if name in SET_BY_KEYS:
            raise InputError(key, value, "has a key of its own", f"Use {SET_BY_KEYS[name]}.")
        if name in SET_BY_US:
            raise InputError(key, value, "is set by this program", "Leave it out.")
        if not isinstance(value, str | int) or not str(value).isprintable():
            fix = "Give it a text in one line, a number, or true where it takes no value."
            raise InputError(key, value, "is no value of an option", fix)
    if settings.signal_delay_s >= 60 * settings.timeout_min:
        problem = f"is not less than the time limit, slurm.timeout_min={settings.timeout_min}"
        raise InputError("slurm.signal_delay_s", settings.signal_delay_s, problem, "Give a longer limit.")
    if not here:
        return
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        fix = "Give the command on a host that can submit (a login node); without launcher=slurm it trains here."
        raise InputError("launcher", "slurm", "there is no sbatch here", fix)
    if importlib.util.find_spec("submitit") is None:
        fix = "Install it: pip install 'stability[slurm]', or -e '.[slurm]' in a checkout."
        raise InputError("launcher", "slurm", "the package submitit is not installed", fix)


def check_place(folder: Path) -> None:
    """Refuse a folder that Slurm would read as a pattern, or that would end a line of its script.

    Raises:
        InputError: names the character.
    """
    whole = str(folder.absolute())
    if "%" in whole or not whole.isprintable():
        problem = "has a character that Slurm does not leave as it is in the name of a file"
        raise InputError("output_dir", whole, problem, "Name another folder, without % and the like.")


@dataclass(frozen=True)
class Array:
    """How many tasks a sweep gets, and how they share it.

    Attributes:
        tasks: that there are to be.
        lanes: structure of a config -> how many of its runs may train together, so that every task has some.
    """

    tasks: int
    lanes: Mapping[object, int]


def plan_array(settings: Slurm, packs: Sequence[Pack], tasks: int | None = None) -> Array:
    """One task for each pack unless told otherwise, and no more than there are runs.

    Tasks take packs whole as long as there is one for each. Where there are more tasks, packs are divided. It follows
    from the whole sweep, finished runs included: a task that starts again makes groups of the same sizes.

    Args:
        settings: of the command.
        packs: of all runs.
        tasks: that there are, where the command does not say how many there are to be.
    """
    runs = sum(len(pack.runs) for pack in packs)
    tasks = max(1, min(settings.array or tasks or len(packs), runs))
    each = ceil(tasks / max(1, len(packs)))
    return Array(tasks, {pack.structure: ceil(len(pack.runs) / each) for pack in packs})


def hand_over(
    request: Request, sweep: str, folder: SweepFolder, locks: Locks, search: Search, lender: Path | None
) -> int | None:
    """Have tasks queued for what is unfinished of a sweep, and wait for them where that is asked for.

    Args:
        request: whose settings say how.
        sweep: its name, which the job gets.
        folder: where its tasks find it.
        locks: on that.
        search: what is to be trained first, and whether more follows from it.
        lender: a folder whose results are taken over before.

    Returns:
        An exit code; None where everything has a result, and is to be analysed.

    Raises:
        InputError: sbatch refuses.
    """
    settings, runs = request.execution.slurm, search.first()
    if lender:
        reuse(folder, locks, [run for run in runs if not folder.is_finished(run)], lender)
    unfinished = sum(not folder.is_finished(run) for run in runs)
    if not unfinished and not search.active:
        return None
    with locks.hold(SWEEP):
        task = Task(request.arguments, tuple(sys.orig_argv))
        submit(settings, sweep, folder.path, task, plan_array(settings, pack_runs(runs)), unfinished)
    if not settings.wait:
        return 0
    try:
        wait_for(folder.path, tell)
    except KeyboardInterrupt:
        tell("\nNo longer waiting; the tasks go on.")
        return EXIT_INTERRUPTED
    if is_complete(folder, runs):
        return None
    tell(f"Some runs have no result; the same command tries again. What the tasks said: {folder.path / SLURM}")
    return EXIT_FAILED


def submit(settings: Slurm, sweep: str, folder: Path, task: Task, todo: Array, unfinished: int) -> None:
    """Have as many tasks queued or running as there are to be, and say so. Only for who holds the sweep's own lock.

    Those of earlier submissions count: the same command given twice submits once.

    Args:
        settings: of the command.
        sweep: its name, which the job gets.
        folder: the sweep's.
        task: what each task executes.
        todo: how many there are to be.
        unfinished: runs without a result; more tasks than that would find nothing to do.

    Raises:
        InputError: sbatch refuses.
    """
    earlier = submitted_jobs(folder)
    # One that is ending may have been cancelled, and one task too many does no harm.
    alive = [one for one in queued_tasks(earlier.values()) or [] if one.state != "COMPLETING"]
    tasks = min(todo.tasks, max(1, unfinished)) - len(alive)
    if alive:
        tell(f"At work on it already: {_named(alive)}.")
    if tasks <= 0:
        tell("Nothing more is submitted; they share all runs.")
        job = alive[0].job
    else:
        job = _submit(settings, sweep, folder, task, tasks)
        tell(f"Submitted Slurm job {job}: {counted(tasks, 'task')} for {counted(unfinished, 'run')}.")
    tell(
        f"  python -m stability.status {folder}   what trains where, and what is queued\n"
        f"  scancel {job}   saves and stops; the same command goes on\n"
        f"What the tasks say is in {folder / SLURM}"
    )


def _named(tasks: Sequence[QueuedTask]) -> str:
    return ", ".join(f"{task.name} ({task.state.lower()})" for task in tasks)


def _submit(settings: Slurm, sweep: str, folder: Path, task: Task, tasks: int) -> str:
    """Submit an array, and note that; its job id."""
    with _quiet_import():
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

    taken = {path.name.partition(".")[0] for path in (folder / SLURM).glob("*")}
    number = next(i for i in itertools.count(1) if str(i) not in taken)
    refuse_links_out(folder, folder / SLURM, files := folder / SLURM / str(number))
    (folder / SLURM).mkdir(exist_ok=True)
    files.mkdir(mode=0o700)  # the tasks hold the command as it was typed, with whatever secret is in it
    executor = submitit.SlurmExecutor(folder=files.absolute(), max_num_timeout=settings.requeues)
    executor.update_parameters(**_parameters(settings, sweep, tasks))
    try:
        job = executor.submit_array([task] * tasks)[0].job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        shutil.rmtree(files, ignore_errors=True)
        problem = f"is refused by sbatch: {' '.join(str(error).split())}"
        fix = "Change slurm.*, to what `sinfo` and your cluster's documentation offer."
        raise InputError("launcher", "slurm", problem, fix) from None
    note_submission(folder, number, job, tasks)
    return job


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Imported, submitit would set up logging anew, and close the streams of handlers that others have (Abseil's)."""
    asked = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = "NOCONFIG"
    try:
        yield
    finally:
        del os.environ[LOG_LEVEL]  # the tasks inherit the environment, and are to log
        if asked is not None:
            os.environ[LOG_LEVEL] = asked


def _parameters(settings: Slurm, sweep: str, tasks: int) -> dict[str, Any]:
    """The options of sbatch, as submitit names them; what is None is left out."""
    asked = {
        "job_name": folder_name(sweep),
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.tasks_per_node,
        "cpus_per_task": settings.cpus_per_task,
        "gpus_per_node": settings.gpus_per_node,
        "mem": None if settings.mem is None else f"{ceil(settings.mem / 2**20)}M",
        "time": settings.timeout_min,
        "signal_delay_s": settings.signal_delay_s,
        "array_parallelism": settings.parallelism or tasks,
        "stderr_to_stdout": True,
        # Clusters differ in whether a job may be queued again when it does not say so.
        "additional_parameters": {
            "requeue": True,
            **{name: value for name, value in settings.additional.items() if value is not False},
        },
    }
    return {name: value for name, value in asked.items() if value is not None}


def wait_for(folder: Path, say: Callable[[str], None]) -> None:
    """Until Slurm has done with all that was submitted for a sweep; tells what changes."""
    jobs, last = submitted_jobs(folder).values(), ""
    while (tasks := queued_tasks(jobs)) is None or tasks:
        line = f"Waiting for {_named(tasks)}." if tasks else "Waiting: squeue does not answer."
        if line != last:
            say(line)
        last = line
        time.sleep(POLL_S)
