"""The paper's sizes on one accelerator: MFU, lanes, cost of observation, memory; beside plain JAX and PyTorch.

    python -m benchmarks.accelerator [--seconds 540] [--sections mfu lanes ...] [--output benchmarks/results/FILE.json]

Sections, in the order in which they are given:

    peak       bfloat16 matrix products and a copy, by JAX and by PyTorch: what shares are of
    mfu        our solo program at each size, 256 x 512 tokens a step: model FLOPs (`flops_per_token`) a second over the
               highest rate of `peak`; and what observing every tenth step costs
    lanes      small batches: many runs as lanes of one program against one at a time
    memory     of a step: attention fused or plain, the vocabulary head whole or in chunks
    peers      the steps of `mfu` and `lanes` by a plain `jit` loop and by `torch.compile`, one run at a time
    attention  forward and backward of attention kernels alone, and the pass that observes logits

Tokens are random. Each measurement is a process of its own that has the device alone; the results are written after
each of them, and what fails or takes too long is recorded as such. Once `--seconds` are nearly over, what is left is
skipped, and recorded as skipped. `--tiny` tries everything on a CPU, in sizes that mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.accelerator_summary import found, printed, summary
from benchmarks.accelerator_tasks import SECTIONS, SIZES, SMALL, TORCH, Task, values
from benchmarks.on_device import RESULT
from benchmarks.reporting import processor_name, write


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=540.0, help="of the whole")
    parser.add_argument("--measure", type=float, default=5.0, help="seconds that a measurement is repeated, compiled")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of mfu, ours")
    parser.add_argument("--peer-sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of peers")
    parser.add_argument("--small", nargs="+", choices=SMALL, default=list(SMALL), help="small batches")
    parser.add_argument("--lanes", nargs="+", type=int, default=[8, 32, 16, 4])
    parser.add_argument("--micro-batch", nargs="+", default=[], metavar="SIZE=N", help="ours")
    parser.add_argument("--peer-micro-batch", nargs="+", default=[], metavar="SIZE=N")
    parser.add_argument("--peer-attention", default="cudnn", choices=["plain", "xla", "cudnn"])
    parser.add_argument(
        "--compute", nargs="+", default=[], metavar="KEY=VALUE", help="of our config; else as by default"
    )
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--torch-mode", default="default")
    parser.add_argument("--no-trace", action="store_true", help="leave out which kernels took the time")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--read", nargs="+", type=Path, metavar="FILE", help="measure nothing: join earlier results")
    parser.add_argument("--output", type=Path, default=None)
    return parser.parse_args()


class Bench:
    """Executes tasks one after the other, within the time there is, and keeps what they said."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.ends = time.monotonic() + given.seconds
        self.result: dict[str, Any] = {
            "date": date.today().isoformat(),
            "command": f"python -m benchmarks.accelerator {' '.join(sys.argv[1:])}",
            "processor": processor_name(),
            "card": card(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "made_with": {},
            "tasks": [],
        }

    def go(self, task: Task) -> None:
        """One task, and all results to disk."""
        left = self.ends - time.monotonic()
        entry: dict[str, Any] = {"section": task.section, "name": task.name, "arguments": task.arguments, "found": {}}
        self.result["tasks"].append(entry)
        if left < task.least_seconds and not self.given.tiny:
            entry["outcome"] = f"skipped: {left:.0f} s left"
        else:
            limit = left if self.given.tiny else min(left, task.most_seconds)
            began = time.monotonic()
            entry["outcome"] = self._execute(task, entry, limit)
            entry["seconds"] = round(time.monotonic() - began, 1)
        made_with = entry["found"].pop("made_with", None)
        if made_with:
            self.result["made_with"][task.module.rsplit(".", 1)[1]] = made_with
        self.result["card_afterwards"] = card()
        write(self.result, self.given.output)
        print(f"{task.section:10}{task.name:28}{entry.get('seconds', 0):6.1f} s  {entry['outcome'][:90]}", flush=True)

    def _execute(self, task: Task, entry: dict[str, Any], limit: float) -> str:
        """How the process ended; what it found goes into the entry, also if it did not come to its end."""
        python = self.given.torch if task.module == TORCH else sys.executable
        environment = {
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
            "JAX_TRACEBACK_FILTERING": "off",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            **os.environ,
            **task.environment,
        }
        log, errors = self.folder / "stdout", self.folder / "stderr"
        command = [python, "-m", task.module, json.dumps(task.arguments)]
        with log.open("w") as out, errors.open("w") as err:
            try:
                code = waited_for(command, limit, stdout=out, stderr=err, env=environment)
            except OSError as error:
                return f"not started: {error}"
        for line in log.read_text().splitlines():
            if line.startswith(RESULT):
                entry["found"] |= json.loads(line.removeprefix(RESULT))
        if code == 0:
            return "ended"
        entry["errors"] = errors.read_text(errors="replace")[-6000:]
        return f"stopped after {limit:.0f} s" if code is None else f"failed with {code}: {last_line(entry['errors'])}"


def waited_for(command: list[str], seconds: float, **given: Any) -> int | None:
    """A process's code at its end; None where it was stopped once `seconds` had passed. None of its own are left."""
    process = subprocess.Popen(command, process_group=0, **given)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """No process of the group that a task's process leads is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def card() -> str | None:
    """What the driver says of the card, clocks and temperature included; None where there is no such driver."""
    wanted = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
    command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main() -> None:
    given = parse()
    result = joined(given.read) if given.read else measured(given)
    result["summary"] = summary(given, result)
    write(result, given.output)
    print("\n" + printed(result))


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """What all tasks found."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for section in given.sections:
            for task in SECTIONS[section](given):
                bench.go(task)
            if section == "peak":
                avoid_cudnn(given, bench.result)
    return bench.result


def avoid_cudnn(given: argparse.Namespace, result: dict[str, Any]) -> None:
    """Where cuDNN's attention does not work, others take its place, so that the rest is measured all the same."""
    if found(result, "peak", "jax").get("cudnn_fails") and "attention" not in values(given.compute):
        given.compute, given.peer_attention = [*given.compute, "attention=plain"], "xla"


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """Results of several commands on one card as one; of a task that came up twice the first that found anything."""
    results = [json.loads(path.read_text()) for path in paths]
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    for task in (task for result in results for task in result["tasks"]):
        key = task["section"], task["name"]
        if not tasks.get(key, {}).get("found"):
            tasks[key] = task
    made_with = {module: facts for result in results for module, facts in result["made_with"].items()}
    command = "; ".join(result["command"] for result in results)
    return results[0] | {"command": command, "made_with": made_with, "tasks": list(tasks.values())}


if __name__ == "__main__":
    main()
