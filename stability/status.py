"""`python -m stability.status results/NAME`: what is finished, running or missing in a sweep's folder. No JAX."""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stability.command_line import Parser, report, unreadable
from stability.errors import InputError
from stability.tracking.console import duration, number
from stability.tracking.record import MANIFEST, RunFolder, Status, read_json, read_rows, run_folders

STALE_AFTER_S = 300.0
"""A run without a new row for so long is probably not running any more."""


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
        print(_line(run, summary))
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    if missing:
        parts.append(f"{len(missing)} not started")
    searching = manifest.search is not None and not manifest.search.finished
    if manifest.search and searching:
        parts.append(f"search in round {manifest.search.round}")
    print(f"{manifest.sweep}: {', '.join(parts) or 'nothing planned'}")
    complete = not searching and not missing and not counts.keys() - {"finished", "diverged"}
    if not complete:
        commands = dict.fromkeys(str(entry.get("command")) for entry in manifest.commands)
        print("To go on:" + "".join(f"\n  {command}" for command in commands))
    return 0 if complete else 1


def _summary(run: RunFolder) -> dict[str, Any]:
    summary = run.read_summary() or {}
    _checked(_Summary, run.path / "summary.json", summary)
    return summary


def _checked(cls: type[_Part], path: Path, content: dict[str, Any]) -> _Part:
    """What is told of a file, if it is of the types that it should be."""
    from stability.typed import from_mapping

    try:
        return from_mapping(cls, content)
    except InputError as error:
        problem = f"is damaged at `{error.key}` ({error.problem})"
        raise InputError("file", path, problem, "Restore it, or delete its folder.") from None


def _line(run: RunFolder, summary: dict[str, Any]) -> str:
    status = summary.get("status")
    text = f"{run.path.name:<58} {status:<9}"
    if status == "failed":
        return f"{text} {summary.get('error')}"
    if status != "running":
        loss, logit = number(summary.get("loss_validation")), number(summary.get("attention_logit_max"))
        return f"{text} loss {loss:>7}  max logit {logit:>8}"
    rows = read_rows(run.metrics)
    training = run.read_config().get("training")
    steps = training.get("steps") if isinstance(training, dict) else None
    silent = time.time() - (run.metrics.stat().st_mtime if run.metrics.exists() else 0.0)
    note = f", silent for {duration(silent)}: stopped?" if rows and silent > STALE_AFTER_S else ""
    return f"{text} step {rows[-1]['step'] if rows else 0}/{steps or '?'}{note}"


if __name__ == "__main__":
    sys.exit(main())
