"""What a search for the stable edge costs against the grid that it searches, and whether it finds the same bracket.

    python -m benchmarks.edge [--cells w32:none,w64:none] [--seeds 0] [--work FOLDER] [--output FILE.json]

Trains the full grid of every cell (micro ladder; SCALE:QK_LAYERNORM), then starts the search, which takes over those of
the grid's runs that it asks for: training is deterministic, so they are what it would train. Compute is counted in
FLOPs and in the seconds that the records tell of each run.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reporting import report

CELLS = "w32:none,w32:per_head,w64:none,w64:per_head"
KEY = "optimizer.learning_rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=CELLS, help="SCALE:QK_LAYERNORM with commas between")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--low", type=float, default=0.003)
    parser.add_argument("--high", type=float, default=1.0)
    parser.add_argument("--tolerance", type=float, default=1.25)
    parser.add_argument("--work", type=Path, help="where the runs go; the same folder again goes on there")
    parser.add_argument("--reuse-from", type=Path, help="results that hold runs of the grid already")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="edge-"))
    search = {key: getattr(arguments, key) for key in ("low", "high", "tolerance")}
    report(measured(arguments, work.absolute(), {"search": "bisection", **search}), arguments.output)


def measured(arguments: argparse.Namespace, work: Path, search: Mapping[str, Any]) -> dict[str, Any]:
    """Train, search and compare."""
    from stability.launching.provenance import PACKAGES, device_description
    from stability.launching.searched import searched_points

    cells = [tuple(cell.split(":")) for cell in arguments.cells.split(",")]
    rates = searched_points(KEY, search)
    grid = results(work, "grid", cells, rates, arguments.seeds, arguments.reuse_from)
    found = results(work, "search", cells, search, arguments.seeds, work / "grid")
    rows = []
    for whole, edge in zip(grid["max_stable_learning_rate"], found["max_stable_learning_rate"], strict=True):
        names = {key: whole[key] for key in ("scale", "arm", "n_params")}
        assert names == {key: edge[key] for key in names}, "both hold the same cells in the same order"
        rows.append(
            {
                **names,
                "grid_lower": whole["lower"],
                "grid_upper": whole["upper"],
                "search_lower": edge["lower"],
                "search_upper": edge["upper"],
                "same_bracket": (whole["lower"], whole["upper"]) == (edge["lower"], edge["upper"]),
                "grid": cost(grid, work / "grid", names),
                "search": cost(found, work / "search", names),
            }
        )
    totals = {
        kind: {key: sum(row[kind][key] for row in rows) for key in ("runs", "flops", "seconds")}
        for kind in ("grid", "search")
    }
    command = " ".join(["python -m benchmarks.edge", *sys.argv[1:]])
    return {
        "date": date.today().isoformat(),
        "command": command,
        "device": device_description(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "learning_rates": rates,
        "rounds": json.loads((work / "search" / "sweep.json").read_text())["search"]["round"],
        "share": {key: round(totals["search"][key] / totals["grid"][key], 3) for key in totals["grid"]},
        "totals": totals,
        "rows": rows,
    }


def results(
    work: Path, name: str, cells: Sequence[Sequence[str]], rates: Any, seeds: str, lender: Path | None
) -> dict[str, Any]:
    """Run a sweep of these cells in a process of its own, and read its summary."""
    grids = {
        f"{scale}_{norm}": {"scale": [scale], "model.qk_layernorm": [norm], KEY: rates, "seed": [0]}
        for scale, norm in cells
    }
    sweeps = work / "sweeps" / "sweep"
    sweeps.mkdir(parents=True, exist_ok=True)
    sweep = {"question": "Where is the edge?", "grids": grids}
    text = yaml.safe_dump({"sweep": sweep}, sort_keys=False)
    (sweeps / f"edge_{name}.yaml").write_text(f"# @package _global_\n{text}")
    words = [f"+sweep=edge_{name}", f"seed={seeds}", "tracking=files", "figures=[]", "report=false", "progress=lines"]
    words += [f"output_dir={work / name}", *([f"reuse_from={lender.absolute()}"] if lender else [])]
    subprocess.run([sys.executable, "-m", "stability.run", *words], cwd=work, check=True, stdout=sys.stderr)
    summary: dict[str, Any] = json.loads((work / name / "summary.json").read_text())
    return summary


def cost(summary: Mapping[str, Any], folder: Path, cell: Mapping[str, Any]) -> dict[str, float]:
    """Runs of a cell, the FLOPs of the steps that they made, and the seconds that they took."""
    from stability.config import RunConfig
    from stability.launching.plan import flops_per_token
    from stability.typed import from_mapping

    runs = [run for run in summary["runs"] if all(run[key] == value for key, value in cell.items())]
    flops = seconds = 0.0
    for run in runs:
        record = folder / run["folder"]
        config = json.loads((record / "config.json").read_text())["config"]
        config["data"] = {key: value for key, value in config["data"].items() if key != "corpus"}
        typed = from_mapping(RunConfig, config)
        flops += flops_per_token(typed) * typed.training.tokens_per_step * run["steps"]
        seconds += json.loads((record / "summary.json").read_text())["seconds"]
    return {"runs": len(runs), "flops": flops, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
