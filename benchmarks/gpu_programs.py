"""Our programs compiled for a GPU without having one: their memory, what a step moves, and how fast it can be at most.

    python -m benchmarks.gpu_programs [--only mfu w512_d3 ...] [--card h100] [--output benchmarks/results/FILE.json]

Needs JAX's CUDA plug-in (`pip install -e '.[gpu]'`), no GPU. Each program is compiled as a run would have it, but that
nothing is tried out on the card to choose between kernels of one product. Nothing is executed. Of a quiet step is said:

    memory_ms     bytes of all kernels but products (benchmarks.traffic), at 85 % of the card's bandwidth
    product_ms    6 N tokens + attention, head included, at the rate of the largest products measured on the card
    mfu_at_most   product_ms / (product_ms + memory_ms): launches, waiting and slower products come on top

Results are written after each program, and programs that stand in the output already are left out.
"""

import argparse
import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import jax

from benchmarks.absent_device import absent
from benchmarks.accelerator_tasks import SIZES, SMALL
from benchmarks.cards import CARDS, Card
from benchmarks.on_device import run_config
from benchmarks.peers.jax_gpt import Shape
from benchmarks.program_text import branches_left
from benchmarks.reporting import processor_name, write
from benchmarks.traffic import REACHED, kernels
from stability.launching.memory import compiled_bytes, program_bytes
from stability.launching.plan import flops_per_token
from stability.model.transformer import as_computed
from stability.training.lanes import compile_program

FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
"""As `host=gpu` has it; and nothing to try out."""


@dataclass(frozen=True)
class Case:
    """A program to compile; `lanes` None is the solo program."""

    section: str
    shape: Shape
    compute: Mapping[str, Any] = field(default_factory=dict)
    lanes: int | None = None


CASES = {name: Case("mfu", size.shape, {"micro_batch": size.micro_batch}) for name, size in SIZES.items()}
CASES |= {f"{name}_solo": Case("lanes", shape) for name, shape in SMALL.items()}
CASES |= {f"{name}_8_lanes": Case("lanes", shape, lanes=8) for name, shape in SMALL.items()}


def measured(case: Case, card: Card) -> dict[str, Any]:
    """What there is to say of a program."""
    with absent("cuda", card.described()):
        config = run_config(case.shape, case.compute)
        began = time.perf_counter()
        program = compile_program(config, case.lanes, (1, min(case.shape.batch, 16), case.shape.length + 1))
        seconds = time.perf_counter() - began
        text = program.advance.as_text()
        return {
            "section": case.section,
            "shape": case.shape._asdict(),
            "lanes": case.lanes,
            "micro_batch": config.micro_batch,
            "attention": as_computed(config).compute.attention,
            "compile_seconds": round(seconds, 1),
            "needed_gb": round((compiled_bytes(program) or 0) / 1e9, 2),
            "estimated_gb": round(program_bytes(config, case.lanes or 1) / 1e9, 2),
            "branches": branches_left(text),
            **traffic(text, card, (case.lanes or 1) * flops_per_token(config) * config.training.tokens_per_step),
        }


def traffic(text: str, card: Card, flops: float) -> dict[str, Any]:
    """What a quiet step moves, kernel by kernel, and how fast it can be at most; milliseconds."""
    found = kernels(text)
    others = [kernel for kernel in found if not kernel.is_product]
    moved = sum(kernel.moved for kernel in others)
    memory, products = moved / card.bandwidth / REACHED, flops / card.product_rate
    largest: Counter[str] = Counter()
    for kernel in others:
        largest[f"{kernel.name.rstrip('.0123456789')} {kernel.source.rpartition('/')[2]}"] += kernel.moved
    return {
        "launches": {
            "products": sum(k.times for k in found) - sum(k.times for k in others),
            "others": sum(k.times for k in others),
        },
        "moved_gb": round(moved / 1e9, 2),
        "memory_ms": round(memory * 1e3, 2),
        "product_ms": round(products * 1e3, 2),
        "mfu_at_most": round(products / (products + memory), 3),
        "largest_gb": {name: round(size / 1e9, 2) for name, size in largest.most_common(12)},
    }


def made_with(given: argparse.Namespace) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax", "numpy")
    return {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.gpu_programs --card {given.card}",
        "compiled_for": CARDS[given.card].name,
        "xla_flags": FLAGS,
        "processor": processor_name(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="sections, or cases by name")
    parser.add_argument("--card", default="h100", choices=CARDS)
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    before = json.loads(given.output.read_text()) if given.output and given.output.exists() else {}
    result = made_with(given) | {"programs": before.get("programs", {})}
    for name, case in CASES.items():
        wanted = given.only is None or {name, case.section} & set(given.only)
        if wanted and name not in result["programs"]:
            facts = result["programs"][name] = measured(case, CARDS[given.card])
            print(name, json.dumps(facts), flush=True)
            write(result, given.output)


if __name__ == "__main__":
    main()
