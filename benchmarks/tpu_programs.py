"""Our programs compiled for TPUs without having one: which are refused, what they need of a chip's memory, and what
chips tell each other.

    python -m benchmarks.tpu_programs [--only solo lanes ...] [--chips v5e v6e] [--output benchmarks/results/FILE.json]

Needs libtpu (`pip install -e '.[tpu]'`), no TPU. Each program is compiled as a run would have it
(`stability.training.lanes.compile_program`), `compute.micro_batch=auto` fitted to the chip as there. Nothing is
executed, so there are no times but those of compiling, on one or two CPU cores. Results are written after each program,
and programs that stand in the output already are left out.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import jax

from benchmarks.absent_device import absent
from benchmarks.accelerator_tasks import SIZES, SMALL
from benchmarks.on_device import run_config
from benchmarks.peers.jax_gpt import Shape
from benchmarks.program_text import branches_left, collectives
from benchmarks.reporting import processor_name, write
from stability.launching.memory import USABLE, compiled_bytes, program_bytes, with_fitted_micro_batch
from stability.model.transformer import as_computed
from stability.training.lanes import Program, compile_program
from stability.training.mesh import lane_mesh

AUTO: Mapping[str, Any] = {"micro_batch": "auto"}
LARGE: Mapping[str, Any] = AUTO | {"rematerialise": "blocks", "blocks": "scanned"}


@dataclass(frozen=True)
class Case:
    """A program to compile.

    section             what it is an example of
    shape               model and batch
    compute             keys of that group
    model, training     what else differs from the paper's model
    lanes               runs in it; None is the solo program
    slice               chips, as JAX writes their arrangement
    data, fsdp          chips that share a lane's batch; its parameters too
    """

    section: str
    shape: Shape
    compute: Mapping[str, Any] = field(default_factory=lambda: AUTO)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    lanes: int | None = None
    slice: str = "1x1"
    data: int = 1
    fsdp: int = 1


W256, W512, W768, W1024, W2048 = (
    SIZES[f"w{width}"].shape for width in ("256_d3", "512_d3", "768_d6", "1024_d12", "2048_d24")
)
W4096 = W2048._replace(width=4096)
BLOCK = Shape(256, 1, 512, 8, 512, 64)
"""One block and few words: quick to compile."""

CASES = {
    "w256_d3": Case("solo", W256),
    "w512_d3": Case("solo", W512),
    "w768_d6": Case("solo", W768),
    "w1024_d12_scanned": Case("solo", W1024, AUTO | {"blocks": "scanned"}),
    "w1024_d12_rematerialised": Case("solo", W1024, LARGE),
    "lanes_8_of_2x512": Case("lanes", SMALL["tokens_2x512"], lanes=8),
    "lanes_32_of_16x512_bytes": Case("lanes", SMALL["bytes_16x512"], lanes=32),
    "w2048_d24_fsdp_8": Case("mesh", W2048, LARGE, lanes=1, slice="2x4", fsdp=8),
    "w4096_d24_fsdp_8": Case("mesh", W4096, LARGE, lanes=1, slice="2x4", fsdp=8),
    "w1024_d12_fsdp_4": Case("mesh", W1024, AUTO | {"blocks": "scanned"}, lanes=1, slice="2x2", fsdp=4),
    "w512_d3_data_4": Case("mesh", W512, lanes=1, slice="2x2", data=4),
    "w256_d3_lanes_4": Case("mesh", W256, lanes=4, slice="2x2"),
    "w4096_d24_fsdp_16": Case("mesh", W4096, LARGE, lanes=1, slice="4x4", fsdp=16),
    "block": Case("variants", BLOCK),
    "qk_layernorm_none": Case("variants", BLOCK, model={"qk_layernorm": "none"}),
    "qk_layernorm_whole_width": Case("variants", BLOCK, model={"qk_layernorm": "whole_width"}),
    "head_dim_16": Case("variants", BLOCK._replace(head_dim=16)),
    "head_dim_128": Case("variants", BLOCK._replace(head_dim=128)),
    "length_128": Case("variants", BLOCK._replace(length=128)),
    "length_2048": Case("variants", BLOCK._replace(length=2048)),
    "squared_relu": Case("variants", BLOCK, model={"attention": "squared_relu"}),
    "float32": Case("variants", BLOCK, training={"precision": "float32"}),
}


def config_of(case: Case, memory: float) -> Any:
    """The run's config, its micro-batch fitted to what a chip may hold."""
    config = run_config(case.shape, case.compute)
    model = dataclasses.replace(config.model, **case.model)
    training = dataclasses.replace(config.training, **case.training)
    config = dataclasses.replace(config, model=model, training=training)
    return with_fitted_micro_batch(config, USABLE["accelerator"] * memory, case.data, case.fsdp)


def compiled(case: Case, config: Any, devices: list[jax.Device]) -> Program:
    """The program; one on a mesh says itself where its arrays lie."""
    validation = (1, min(case.shape.batch, 256), case.shape.length + 1)
    if len(devices) == 1:
        return compile_program(config, case.lanes, validation)
    with jax.default_device(None):
        return compile_program(config, case.lanes, validation, lane_mesh(devices, case.data, case.fsdp))


def measured(case: Case, chip: str) -> dict[str, Any]:
    """What there is to say of a program; of one that is refused, why."""
    with absent("tpu", f"{chip}:{case.slice}") as devices:
        limit = jax.local_devices()[0].memory_stats()["bytes_limit"]
        config = config_of(case, limit)
        places = len(devices) // (case.data * case.fsdp)
        estimate = program_bytes(config, case.lanes or 1, places, case.data, case.fsdp)
        how = as_computed(config).compute
        facts: dict[str, Any] = {
            "section": case.section,
            "chips": f"{chip}:{case.slice}",
            "shape": case.shape._asdict(),
            "changed": {**case.model, **case.training},
            "lanes": case.lanes,
            "mesh": {"data": case.data, "fsdp": case.fsdp},
            "compute": dataclasses.asdict(how),
            "limit_gb": round(limit / 1e9, 2),
            "estimated_gb": round(estimate / 1e9, 3),
        }
        began = time.perf_counter()
        try:
            program = compiled(case, config, devices)
        except (RuntimeError, ValueError) as error:  # what XLA and Mosaic refuse with
            facts |= {"refused": refusal(error)}
        else:
            facts |= of_program(program, limit)
        return facts | {"compile_seconds": round(time.perf_counter() - began, 1)}


def refusal(error: Exception) -> str:
    """Why a program was refused: how much memory it wants, if that is why, or the message."""
    text = str(error)
    wanted = re.search(r"Used \S+ of \S+ \w+\. Exceeded \w+ capacity by \S+", text)
    return wanted[0] if wanted else text[:600]


def of_program(program: Program, limit: int) -> dict[str, Any]:
    """What one chip holds, and what the optimised step consists of."""
    analysis, text = program.advance.memory_analysis(), program.advance.as_text()
    needed = compiled_bytes(program) or 0
    parts = ("argument", "temp", "generated_code")
    return {
        "needed_gb": round(needed / 1e9, 3),
        "fits": needed <= limit,
        "advance_gb": {name: round(getattr(analysis, f"{name}_size_in_bytes") / 1e9, 3) for name in parts},
        "branches": branches_left(text),
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "collectives_a_quiet_step": collectives(text, branches=False),
        "collectives_an_observed_step": collectives(text),
    }


def made_with(given: argparse.Namespace) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "libtpu", "flax", "optax", "numpy")
    return {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.tpu_programs --chips {' '.join(given.chips)}",
        "processor": processor_name(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="sections, or cases by name")
    parser.add_argument("--chips", nargs="+", default=["v5e", "v6e"])
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    before = json.loads(given.output.read_text()) if given.output and given.output.exists() else {}
    result = made_with(given) | {"programs": before.get("programs", {})}
    for name, case in CASES.items():
        for chip in given.chips:
            wanted = given.only is None or {name, case.section} & set(given.only)
            if wanted and f"{name}_{chip}" not in result["programs"]:
                facts = result["programs"][f"{name}_{chip}"] = measured(case, chip)
                print(f"{name}_{chip}", json.dumps(facts), flush=True)
                write(result, given.output)


if __name__ == "__main__":
    main()
