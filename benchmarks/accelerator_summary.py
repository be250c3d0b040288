"""What the results of `benchmarks.accelerator` say, in one place: for a file, and as tables."""

import argparse
import math
from typing import Any

from benchmarks.accelerator_tasks import SIZES, SMALL, TINY
from benchmarks.on_device import run_config
from benchmarks.peers.jax_gpt import Shape


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
