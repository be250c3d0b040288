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
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.on_device import RESULT, run_config
from benchmarks.peers.jax_gpt import Shape
from benchmarks.reporting import processor_name, write

OURS, TORCH = "benchmarks.on_device", "benchmarks.peers.torch_steps"
VOCABULARY, BYTES = 32_101, 256


@dataclass(frozen=True)
class Size:
    """A size of the ladder, with what a device of 80 GB wants.

    micro_batch, plain_micro_batch   sequences in memory at a time: ours; and the peers', which hold all logits
    seconds                          that compiling and a first step may take, at most
    """

    shape: Shape
    micro_batch: int
    plain_micro_batch: int
    seconds: float


SIZES = {
    "w1024_d12": Size(Shape(1024, 12, VOCABULARY, 256, 512, 64), 64, 64, 110),
    "w512_d3": Size(Shape(512, 3, VOCABULARY, 256, 512, 64), 256, 128, 60),
    "w2048_d24": Size(Shape(2048, 24, VOCABULARY, 256, 512, 64), 16, 16, 170),
    "w256_d3": Size(Shape(256, 3, VOCABULARY, 256, 512, 64), 256, 128, 60),
    "w768_d6": Size(Shape(768, 6, VOCABULARY, 256, 512, 64), 128, 64, 80),
}
"""The most telling first."""
SMALL = {
    "tokens_2x512": Shape(256, 3, VOCABULARY, 2, 512, 64),
    "bytes_16x512": Shape(256, 3, BYTES, 16, 512, 64),
}
PRODUCTS = [[8192, 8192, 8192], [16384, 4096, 4096], [32768, 1024, 4096], [32768, 2048, 8192]]
KERNEL_SIZES = [[32, 512, 16, 64], [8, 2048, 16, 64]]
REMEMBERED, AT_A_TIME = "w1024_d12", 32
"""The size whose memory is compared, and sequences in memory: so few that all attention weights find room."""
TINY = Shape(32, 2, 101, 8, 32, 16)


@dataclass(frozen=True)
class Task:
    """One measurement: a process."""

    section: str
    name: str
    module: str
    arguments: dict[str, Any]
    most_seconds: float = 60.0
    least_seconds: float = 20.0
    environment: dict[str, str] = field(default_factory=dict)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=540.0, help="of the whole")
    parser.add_argument("--measure", type=float, default=5.0, help="seconds that a measurement is repeated, compiled")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of mfu, ours")
    parser.add_argument("--peer-sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of peers")
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


def values(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words, the values as JSON where they are."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {key: value(text) for key, text in (pair.split("=", 1) for pair in pairs)}


def peak(given: argparse.Namespace) -> Iterator[Task]:
    arguments = {"kind": "peak", "shapes": [[64, 64, 64]] if given.tiny else PRODUCTS, "seconds": given.measure}
    yield Task("peak", "jax", OURS, arguments)
    yield Task("peak", "torch", TORCH, arguments)


def mfu(given: argparse.Namespace) -> Iterator[Task]:
    for name in given.sizes:
        yield Task("mfu", f"ours_{name}", OURS, ours(given, name), SIZES[name].seconds + 4 * given.measure, 40)


def ours(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """What our program at a size is asked for."""
    size = SIZES[name]
    micro_batch = values(given.micro_batch).get(name, size.micro_batch)
    return {
        "kind": "ours",
        "shape": TINY if given.tiny else size.shape,
        "compute": values(given.compute),
        "micro_batch": 4 if given.tiny else micro_batch,
        "seconds": given.measure,
        "trace": not given.no_trace,
    }


def lanes(given: argparse.Namespace) -> Iterator[Task]:
    for name, shape in SMALL.items():
        arguments = {
            "kind": "lanes",
            "shape": TINY if given.tiny else shape,
            "compute": values(given.compute),
            "lanes": given.lanes,
            "seconds": 2 * given.measure,
            "trace": not given.no_trace,
        }
        yield Task("lanes", f"ours_{name}", OURS, arguments, 150, 45)


def memory(given: argparse.Namespace) -> Iterator[Task]:
    shape, chunk = (TINY, 32) if given.tiny else (SIZES[REMEMBERED].shape, 4096)
    micro_batch = 4 if given.tiny else AT_A_TIME
    fused = "blockwise" if given.tiny else "cudnn"
    whole = micro_batch * shape.length
    for attention, head in ((fused, chunk), ("plain", whole), (fused, whole), ("plain", chunk)):
        compute = {"attention": attention, "head_chunk": head}
        arguments = {"kind": "step_memory", "shape": shape, "compute": compute, "micro_batch": micro_batch}
        name = f"{attention}_head_{'in_chunks' if head == chunk else 'whole'}"
        yield Task("memory", name, OURS, arguments, 90, 40, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def peers(given: argparse.Namespace) -> Iterator[Task]:
    asked = values(given.peer_micro_batch)
    for name in given.peer_sizes:
        size = SIZES[name]
        micro_batch = 4 if given.tiny else asked.get(name, size.plain_micro_batch)
        yield from both_peers(given, name, size.shape, micro_batch, size.seconds)
        if name == REMEMBERED:  # the small batches before the other sizes
            for small, shape in SMALL.items():
                yield from both_peers(given, small, shape, shape.batch, 60)


def both_peers(given: argparse.Namespace, name: str, shape: Shape, micro_batch: int, seconds: float) -> Iterator[Task]:
    """A shape by PyTorch and by plain JAX."""
    if given.tiny:
        shape, micro_batch = TINY, 4
    arguments: dict[str, Any] = {"shape": shape, "micro_batch": micro_batch, "seconds": given.measure}
    torch = {"kind": "steps", "compiled": not given.tiny, "mode": given.torch_mode}
    jax = {"kind": "plain_jax", "attention": "xla" if given.tiny else given.peer_attention}
    yield Task("peers", f"torch_{name}", TORCH, arguments | torch, seconds, 30)
    yield Task("peers", f"jax_{name}", OURS, arguments | jax, seconds, 30)


def attention(given: argparse.Namespace) -> Iterator[Task]:
    sizes = [[2, 64, 2, 16]] if given.tiny else KERNEL_SIZES
    arguments = {"kind": "attention", "sizes": sizes, "seconds": given.measure / 5, "tiny": given.tiny}
    yield Task("attention", "jax", OURS, arguments)
    yield Task("attention", "torch", TORCH, arguments, 40)


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Task]]] = {
    "peak": peak,
    "mfu": mfu,
    "lanes": lanes,
    "memory": memory,
    "peers": peers,
    "attention": attention,
}


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


def found(result: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    """What a task found; nothing where it did not come to that."""
    tasks = result["tasks"]
    return next((t["found"] for t in tasks if t["section"] == section and t["name"] == name), {})


def peak_flops(result: dict[str, Any]) -> float:
    """The highest rate of a matrix product, FLOP/s; NaN if none was measured."""
    rates = [
        1e12 * facts["tflops"]
        for module in ("jax", "torch")
        for name, facts in found(result, "peak", module).items()
        if name.startswith("matmul")
    ]
    return max(rates, default=0.0) or math.nan


def share(result: dict[str, Any], shape: Shape, facts: dict[str, Any]) -> float:
    """MFU of a step that was measured, else NaN."""
    from stability.launching.plan import flops_per_token

    return flops_per_token(run_config(shape)) * facts.get("tokens_a_second", math.nan) / peak_flops(result)


def summary(given: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    """What the targets are about, in one place: MFU and times, lanes over solo, cost of observation, memory."""
    sizes = {}
    for name in dict.fromkeys([*given.sizes, *given.peer_sizes]):
        shape = TINY if given.tiny else SIZES[name].shape
        contenders = {
            "ours": found(result, "mfu", f"ours_{name}"),
            "plain_jax": found(result, "peers", f"jax_{name}"),
            "torch": found(result, "peers", f"torch_{name}"),
        }
        sizes[name] = {
            "n_params": run_config(shape).model.n_params,
            "mfu": {who: rounded(share(result, shape, facts)) for who, facts in contenders.items()},
            "ms_a_step": {who: facts.get("ms_a_step", {}).get("ms_median") for who, facts in contenders.items()},
            "micro_batch": {who: facts.get("micro_batch") for who, facts in contenders.items()},
            "peak_mb": {who: facts.get("peak_bytes_in_use_mb") for who, facts in contenders.items()},
            "compile_seconds": {who: facts.get("compile_seconds") for who, facts in contenders.items()},
            "observation_cost": contenders["ours"].get("observation_cost"),
        }
    names = ("peak_bytes_in_use_mb", "compiled_total_mb", "compiled_temp_mb", "skipped")
    return {
        "matmul_peak_tflops": rounded(peak_flops(result) / 1e12),
        "sizes": sizes,
        "small_batches": {name: small_batch(result, name) for name in SMALL},
        "memory": {
            task["name"]: {name: task["found"][name] for name in names if name in task["found"]}
            for task in result["tasks"]
            if task["section"] == "memory"
        },
        "attention": {
            name: facts.get("ms_median") or facts.get("failed", "")[:80]
            for module in ("jax", "torch")
            for name, facts in found(result, "attention", module).items()
        },
    }


def small_batch(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Tokens a second of L lanes and of the peers, and both over our solo program."""
    rates = {
        who.removeprefix("lanes_"): facts.get("tokens_a_second")
        for who, facts in found(result, "lanes", f"ours_{name}").items()
        if who.startswith("lanes_")
    }
    rates |= {who: found(result, "peers", f"{who}_{name}").get("tokens_a_second") for who in ("jax", "torch")}
    rates = {who: rate for who, rate in rates.items() if rate}
    solo = rates.get("solo", math.nan)
    return {"tokens_a_second": rates, "over_solo": {who: rounded(rate / solo) for who, rate in rates.items()}}


def rounded(value: float) -> float | None:
    """To three digits after the point; None where there is no number, since JSON has no NaN."""
    return None if math.isnan(value) else round(value, 3)


def table(rows: list[list[Any]]) -> str:
    """Columns, as wide as they need."""
    cells = [
        ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def printed(result: dict[str, Any]) -> str:
    """The summary for people."""
    told = result["summary"]
    who = ("ours", "plain_jax", "torch")
    rows: list[list[Any]] = [
        ["size", "N", *(f"MFU {one}" for one in who), *(f"ms {one}" for one in who), "observing"]
        + [f"MB {one}" for one in who]
    ]
    for name, size in told["sizes"].items():
        columns = [size[key][one] for key in ("mfu", "ms_a_step") for one in who]
        memory_ = [size["peak_mb"][one] for one in who]
        rows.append([name, size["n_params"], *columns, size["observation_cost"], *memory_])
    parts = [f"matmul peak {told['matmul_peak_tflops']} TFLOP/s; {result['card']}", table(rows)]
    for name, small in told["small_batches"].items():
        if not small["tokens_a_second"]:
            continue
        whom = list(small["tokens_a_second"])
        lines = [[name, *whom], ["tokens/s", *(small["tokens_a_second"][one] for one in whom)]]
        parts.append(table([*lines, ["over solo", *(small["over_solo"][one] for one in whom)]]))
    parts += [
        table([[name, str(facts)] for name, facts in told[key].items()]) for key in ("memory", "attention") if told[key]
    ]
    return "\n\n".join(parts)


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
