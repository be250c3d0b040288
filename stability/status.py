"""`python -m stability.status results/NAME`: what is finished, running or missing in a sweep's folder. No JAX."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stability.command_line import report
from stability.errors import InputError
from stability.tracking.console import duration, number
from stability.tracking.record import MANIFEST, RunFolder, read_json, read_rows, run_folders
from stability.untrusted.printable import tell

STALE_AFTER_S = 300.0
"""A run without a new row for so long is probably not running any more."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 complete, 1 something is unfinished, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m stability.status",
        description="Say what is finished, running or missing in a sweep's folder, and how to go on. "
        "Exit code 0 when everything has a result, 1 when not.",
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as results/quickstart")
    try:
        return _status(parser.parse_args(arguments).folder.expanduser())
    except InputError as error:
        return report(error)


def _status(folder: Path) -> int:
    if not (folder / MANIFEST).is_file():
        raise InputError("folder", folder, "holds no sweep", "Name a folder that `stability.run` wrote, results/NAME.")
    manifest = read_json(folder / MANIFEST)
    started = run_folders(folder)
    summaries = {run: run.read_summary() or {} for run in started}
    counts = Counter(str(summary.get("status")) for summary in summaries.values())
    missing = set(manifest["runs"]) - {summary.get("fingerprint") for summary in summaries.values()}
    for run, summary in summaries.items():
        tell(_line(run, summary))
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    if missing:
        parts.append(f"{len(missing)} not started")
    search = manifest.get("search", {"finished": True})
    if not search["finished"]:
        parts.append(f"search in round {search['round']}")
    tell(f"{manifest['sweep']}: {', '.join(parts) or 'nothing planned'}")
    complete = search["finished"] and not missing and not counts.keys() - {"finished", "diverged"}
    if not complete:
        commands = dict.fromkeys(entry["command"] for entry in manifest["commands"])
        tell("To go on:" + "".join(f"\n  {command}" for command in commands))
    return 0 if complete else 1


def _line(run: RunFolder, summary: dict[str, Any]) -> str:
    status = summary.get("status")
    text = f"{run.path.name:<58} {status:<9}"
    if status == "failed":
        return f"{text} {summary.get('error')}"
    if status != "running":
        loss, logit = number(summary.get("loss_validation")), number(summary.get("attention_logit_max"))
        return f"{text} loss {loss:>7}  max logit {logit:>8}"
    rows = read_rows(run.metrics)
    steps = run.read_config()["training"]["steps"]
    silent = time.time() - (run.metrics.stat().st_mtime if run.metrics.exists() else 0.0)
    note = f", silent for {duration(silent)}: stopped?" if rows and silent > STALE_AFTER_S else ""
    return f"{text} step {rows[-1]['step'] if rows else 0}/{steps}{note}"


if __name__ == "__main__":
    sys.exit(main())
