"""Time and memory to read and to analyse many runs: results folders, long Parquet and long CSV tables, made up for it.

    python -m benchmarks.analysis [--runs 100 1000 10000] [--row-bytes 300] [--read-only] [--output FILE.json]

Every case is measured in a process of its own. A run has one row for each observed step: in a table eight columns, in a
folder `--row-bytes` bytes (a real row is 2 to 3 kB, and 10,000 runs of them 30 GB). Two quantities are read of each
run, one at a step and one over a window at the end. `read` is `stability.analysis.read`; `analyze` reads again,
measures, and writes summary.json and the figures. CPU seconds are of all threads: what a busy machine does not change.
"""

import argparse
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

import numpy as np
import polars as pl

from benchmarks.reporting import report

SCALES = {f"w{width}": {"model.width": width, "model.depth": 2} for width in (32, 64, 128, 256)}
LEARNING_RATES = [float(f"{rate:.3g}") for rate in np.logspace(-3, 0, 10)]
ARMS = ("none", "per_head")
SPACING = 10
"""Steps from one observed row to the next."""
DISTINCT = 16
"""Stories that differ; the runs take turns with them."""
KINDS = ("folder", "parquet", "csv")


def quantities(steps: int) -> dict[str, dict[str, Any]]:
    """One at a step, one over the last twentieth."""
    return {
        "early_logit": {"metric": "attention_logit/max", "at_step": steps * SPACING // 5},
        "late_gradient": {"metric": "gradient/rms", "last_steps": steps * SPACING // 20, "reduce": "mean"},
    }


def plan(runs: int) -> list[dict[str, Any]]:
    """What tells the runs apart: arm, scale, learning rate, then seed."""
    cases = [(arm, scale, rate) for arm in ARMS for scale in SCALES for rate in LEARNING_RATES]
    return [
        dict(zip(("arm", "scale", "learning_rate"), cases[i % len(cases)], strict=True), seed=i // len(cases))
        for i in range(runs)
    ]


def story(number: int, steps: int) -> pl.DataFrame:
    """The observed rows of one run."""
    random = np.random.default_rng(number)
    step = np.arange(steps) * SPACING
    return pl.DataFrame(
        {
            "step": step,
            "loss/train": 2 + 4 * np.exp(-step / step[-1] * 8) + random.normal(size=steps) / 20,
            "attention_logit/max": np.exp(random.normal(size=steps) + step / step[-1]),
            "gradient/rms": np.exp(random.normal(size=steps)) * 1e-5,
        }
    )


def write_folder(path: Path, runs: int, steps: int, row_bytes: int) -> None:
    from stability.tracking.files import write_json
    from stability.tracking.record import RunFolder

    path.mkdir()
    planned = plan(runs)
    header = {"schema_version": 1, "sweep": path.name, "question": "how long?", "scales": SCALES}
    names = [f"{i:016x}" for i in range(runs)]
    write_json(path / "sweep.json", {**header, "runs": names, "quantities": quantities(steps)})
    texts = []
    for number in range(DISTINCT):
        rows = story(number, steps).to_dicts()
        filler = max(0, row_bytes - len(json.dumps(rows[-1]))) // 31
        more = {f"block_output/{i:06d}": 0.123456789 for i in range(filler)}
        texts.append("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    for i, (run, name) in enumerate(zip(planned, names, strict=True)):
        folder = RunFolder(path / "runs" / f"{run['scale']}-{name}")
        folder.path.mkdir(parents=True)
        settings = SCALES[run["scale"]]
        width = settings["model.width"]
        config = {
            "model": {"width": width, "depth": 2, "head_dim": 16, "mlp_ratio": 4, "qk_layernorm": run["arm"]},
            "optimizer": {"learning_rate": run["learning_rate"], **{f"knob_{k}": k / 10 for k in range(40)}},
            "seed": run["seed"],
            "data": {"seed": run["seed"]},
        }
        summary = {
            "status": "finished",
            "n_params": 24 * width**2,
            "learning_rate": run["learning_rate"],
            "seed": run["seed"],
            "data_seed": run["seed"],
            "steps": steps * SPACING,
            "loss_initial": 6.0,
            "loss_validation": final_loss(run, i),
            "attention_logit_max": 30.0,
            "attention_logit_max_final": 20.5,
        }
        files = {
            "config.json": {"config": config},
            "summary.json": summary,
            "provenance.json": {"starts": [{"device": "cpu"}]},
        }
        for file, content in files.items():  # plain writes: `write_json` waits for the disk
            text = json.dumps({"schema_version": 1, "fingerprint": name, **content})
            (folder.path / file).write_text(text)
        folder.metrics.write_text(texts[i % DISTINCT])


def final_loss(run: dict[str, Any], number: int) -> float:
    """A curve with a least loss at a learning rate of 0.05, and noise."""
    noise = np.random.default_rng(number).normal() * 0.02
    return float(2 + 0.3 * np.log10(run["learning_rate"] / 0.05) ** 2 + noise)


def write_table(path: Path, runs: int, steps: int) -> None:
    stories = [story(number, steps) for number in range(DISTINCT)]
    parts = []
    for i, run in enumerate(plan(runs)):
        width = SCALES[run["scale"]]["model.width"]
        rows = stories[i % DISTINCT].with_columns(
            (pl.col("loss/train") + final_loss(run, i) - 2).alias("loss"), seed=pl.lit(run["seed"])
        )
        named = {"arm": run["arm"], "n_params": 24 * width**2, "learning_rate": run["learning_rate"]}
        parts.append(rows.drop("loss/train").with_columns(pl.lit(value).alias(name) for name, value in named.items()))
    table = pl.concat(parts)
    if path.suffix == ".csv":
        table.write_csv(path)
    else:
        table.write_parquet(path)


def measure(path: Path, steps: int, read_only: bool) -> dict[str, Any]:
    """Read, then analyse; to be called in a process of its own."""
    from stability.analysis import analyze, read

    began, cpu = time.perf_counter(), time.process_time()
    source = read(path, quantities=quantities(steps))
    read_seconds, read_cpu, read_gib = time.perf_counter() - began, time.process_time() - cpu, peak_gib()
    found: dict[str, Any] = {
        "runs": source.table.height,
        "quantities": source.table["early_logit"].count() + source.table["late_gradient"].count(),
        "read_seconds": round(read_seconds, 2),
        "read_cpu_seconds": round(read_cpu, 2),
        "read_peak_gib": round(read_gib, 2),
    }
    if not read_only:
        began, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as output:
            analyze(path, output)
        found |= {
            "analyze_seconds": round(time.perf_counter() - began, 2),
            "analyze_cpu_seconds": round(time.process_time() - cpu, 2),
            "analyze_peak_gib": round(peak_gib(), 2),
        }
    return found


def peak_gib() -> float:
    """The most memory that this process ever held; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def case(kind: str, runs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    steps = arguments.steps
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = Path(folder) / ("sweep" if kind == "folder" else f"sweep.{kind}")
        if kind == "folder":
            write_folder(path, runs, steps, arguments.row_bytes)
        else:
            write_table(path, runs, steps)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
        command = [sys.executable, "-m", "benchmarks.analysis", "--steps", str(steps), "--measure", str(path)]
        command += ["--read-only"] if arguments.read_only else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"kind": kind, "steps": steps, "gigabytes": round(size / 1e9, 3), **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=1000, help="observed rows of a run")
    parser.add_argument("--row-bytes", type=int, default=300)
    parser.add_argument("--read-only", action="store_true", help="leave `analyze` out")
    parser.add_argument("--scratch", type=Path, help="where the made-up runs go; the system's folder by default")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.steps, arguments.read_only)))
        return
    rows = []
    for runs in arguments.runs:
        for kind in arguments.kinds:
            rows.append(case(kind, runs, arguments))
            print(*(f"{key}={value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.analysis --row-bytes {arguments.row_bytes}",
        "cpu_cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {"polars": pl.__version__, "python": sys.version.split()[0]},
        "rows": rows,
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
