"""How long a plan takes: `python -m stability.run ... dry_run=true`, whole processes, against the number of runs.

    python -m benchmarks.planning [--runs 10 100 1000 3000] [--output benchmarks/results/FILE.json]

Two kinds of sweep: `leaves`, runs of one structure (seeds); `structures`, where every tenth run has a structure of its
own (lengths of training), as many programs. Analysis against the number of runs is `benchmarks.analysis`.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.reporting import report

KINDS = ("leaves", "structures")
ROOT = Path(__file__).parent.parent


def arguments_for(kind: str, runs: int) -> list[str]:
    """Overrides that ask for so many runs."""
    seeds = runs if kind == "leaves" else min(10, runs)
    steps = ",".join(str(400 + i) for i in range(runs // seeds))
    return [f"seed={','.join(map(str, range(seeds)))}", f"training.steps={steps}"]


def case(kind: str, runs: int) -> dict[str, Any]:
    """Plan once, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stability.run", *arguments_for(kind, runs), "dry_run=true", "tracking=files"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    total = next(line for line in done.stdout.splitlines() if " FLOPs" in line and "program" in line)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found, packs = (int(part.split()[0].replace(",", "")) for part in total.split(", ")[:2])
    if found != runs:
        raise RuntimeError(f"asked for {runs} runs, planned {found}")
    return {"kind": kind, "runs": runs, "packs": packs, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000, 3000])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for runs in arguments.runs:
        for kind in KINDS:
            rows.append(case(kind, runs))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.planning --runs " + " ".join(map(str, arguments.runs)),
        "cpu_cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": sys.version.split()[0],
            **{name: importlib.metadata.version(name) for name in ("jax", "hydra-core", "pydantic")},
        },
        "rows": rows,
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
