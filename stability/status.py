"""`python -m stability.status results/NAME`: what is finished, running or missing in a sweep's folder. No JAX."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stability.command_line import Parser, report, unreadable
from stability.errors import InputError
from stability.tracking.console import number
from stability.tracking.files import DamagedError, read_json
from stability.tracking.locks import LOCKS, is_held, read_holder
from stability.tracking.record import MANIFEST, TERMINAL, RunFolder, Status, read_rows, run_folders
from stability.tracking.slurm import submitted_jobs, told
from stability.tracking.standing import damage_of_result
from stability.untrusted.printable import tell


@dataclass(frozen=True)
class _Search:
    round: int
    finished: bool


@dataclass(frozen=True)
class _Manifest:
    """The parts of sweep.json that are told."""

    sweep: str
    runs: tuple[str, ...]
    commands: tuple[dict[str, Any], ...] = ()
    search: _Search | None = None


@dataclass(frozen=True)
class _Summary:
    """The parts of a run's summary.json that are told."""

    fingerprint: str
    status: Status
    loss_validation: float | None = None
    attention_logit_max: float | None = None


_Part = TypeVar("_Part", _Manifest, _Summary)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 complete, 1 something is unfinished, 2 bad input."""
    parser = Parser(
        "status",
        "Say what is finished, running or missing in a sweep's folder, and how to go on. "
        "Exit code 0 when everything has a result, 1 when not.",
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as results/quickstart")
    try:
        return _status(parser.parse_args(arguments).folder.expanduser())
    except InputError as error:
        return report(error)
    except OSError as error:
        return report(unreadable(error))


def _status(folder: Path) -> int:
    if not (folder / MANIFEST).is_file():
        raise InputError("folder", folder, "holds no sweep", "Name a folder that `stability.run` wrote, results/NAME.")
    manifest = _checked(_Manifest, folder / MANIFEST, read_json(folder / MANIFEST))
    started = run_folders(folder)
    summaries = {run: _summary(run) for run in started}
    counts = Counter(str(summary.get("status")) for summary in summaries.values())
    missing = set(manifest.runs) - {summary.get("fingerprint") for summary in summaries.values()}
    for run, summary in summaries.items():
        tell(_line(run, summary, folder / LOCKS / run.path.name))
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    if missing:
        parts.append(f"{len(missing)} not started")
    searching = manifest.search is not None and not manifest.search.finished
    if manifest.search and searching:
        parts.append(f"search in round {manifest.search.round}")
    tell(f"{manifest.sweep}: {', '.join(parts) or 'nothing planned'}")
    for line in told(submitted_jobs(folder).values()):
        tell(line)
    complete = not searching and not missing and not counts.keys() - {"finished", "diverged"}
    if not complete:
        commands = dict.fromkeys(str(entry.get("command")) for entry in manifest.commands)
        tell("To go on:" + "".join(f"\n  {command}" for command in commands))
    return 0 if complete else 1


def _summary(run: RunFolder) -> dict[str, Any]:
    """A run's summary; one whose record is not as it was written says so in place of its status."""
    try:
        summary = run.read_summary() or {}
        _checked(_Summary, run.summary, summary)
    except DamagedError as error:
        return {"status": "damaged", "error": str(error)}
    done = summary["status"] in TERMINAL
    why = damage_of_result(run, summary["fingerprint"]) if done else None
    return {**summary, "status": "damaged", "error": why} if why else summary


def _checked(cls: type[_Part], path: Path, content: dict[str, Any]) -> _Part:
    """What is told of a file, if it is of the types that it should be."""
    from stability.typed import from_mapping

    try:
        return from_mapping(cls, content)
    except InputError as error:
        problem = f"is damaged at `{error.key}` ({error.problem})"
        raise DamagedError("file", path, problem, "Restore it, or delete its folder.") from None


def _line(run: RunFolder, summary: dict[str, Any], lock: Path) -> str:
    status = summary.get("status")
    text = f"{run.path.name:<58} {status:<9}"
    if status in ("failed", "damaged"):
        return f"{text} {summary.get('error')}"
    if status == "diverged" and summary.get("first_bad_step") is not None:
        what = summary.get("first_bad_observation") or "a number"
        return f"{text} {what} is not finite from step {summary['first_bad_step']} on"
    if status != "running":
        loss, logit = number(summary.get("loss_validation")), number(summary.get("attention_logit_max"))
        return f"{text} loss {loss:>7}  max logit {logit:>8}"
    rows = read_rows(run.metrics)
    training = run.read_config().get("training")
    steps = training.get("steps") if isinstance(training, dict) else None
    holder = read_holder(lock) if is_held(lock) else None
    who = f", {holder}" if holder else ", stopped"
    return f"{text} step {rows[-1]['step'] if rows else 0}/{steps or '?'}{who}"


if __name__ == "__main__":
    sys.exit(main())
