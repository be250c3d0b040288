"""Step time at every micro scale, as a share of the machine's matmul peak, and what observation adds.

    python -m benchmarks.step [--rounds 15] [--output benchmarks/results/FILE.json]

The arms are interleaved: each round times every scale quiet, and observed at every 10th step, in turn. FLOPs are those
of `stability.launching.plan.flops_per_token`; the peak is the best of a few
square float32 products through the same XLA.
"""

import argparse
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.reporting import report
from stability.command_line import config_folders, with_transparent_huge_pages

STEPS = 10


def matmul_peak() -> float:
    """The machine's best float32 rate in FLOP/s, over square products of 512 to 2048."""
    import jax

    best = 0.0
    product = jax.jit(lambda a, b: a @ b)
    for size in (512, 1024, 2048):
        a = jax.numpy.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
        product(a, a).block_until_ready()
        for _ in range(8):
            began = time.perf_counter()
            product(a, a).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


class Subject:
    """One scale, compiled and running."""

    def __init__(self, name: str, settings: dict[str, Any], training: dict[str, Any] | None = None) -> None:
        from stability.config import RunConfig, resolve
        from stability.launching.plan import flops_per_token
        from stability.training.lanes import compile_program
        from stability.typed import from_mapping

        model = {key.removeprefix("model."): value for key, value in settings.items()}
        given = from_mapping(RunConfig, {"model": model, "training": training or {}})
        config = resolve(given, corpus="benchmark", vocabulary_size=256)
        training = config.training
        self.name, self.n_params = name, config.model.n_params
        self.flops = flops_per_token(config) * training.tokens_per_step
        shape = (1, STEPS, training.batch_size, training.sequence_length + 1)
        self.tokens = np.random.default_rng(0).integers(0, 256, shape, np.int32)
        self.program = compile_program(config, None, (1, training.batch_size, training.sequence_length + 1))
        self.config = self.program.place([config])
        self.state = self.program.start(self.config)
        self.seconds: dict[bool, list[float]] = {False: [], True: []}

    def time(self, observe: bool, steps: int = STEPS) -> None:
        """One dispatch, its last step observed or not."""
        import jax

        began = time.perf_counter()
        self.state, metrics, observations = self.program.step(self.config, self.state, self.tokens, steps, observe)
        jax.block_until_ready((self.state, metrics, observations))
        self.seconds[observe].append((time.perf_counter() - began) / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with_transparent_huge_pages()
    from stability.launching.provenance import PACKAGES, device_description

    ladder = yaml.safe_load((config_folders().sweeps / "ladder" / "micro.yaml").read_text())["ladder"]
    subjects = [Subject(name, settings) for name, settings in ladder["scales"].items()]
    for subject in subjects:
        subject.time(True)
        subject.seconds = {False: [], True: []}  # that one warmed up
    peak = 0.0
    for _ in range(arguments.rounds):
        peak = max(peak, matmul_peak())
        for subject in subjects:
            for observe in (False, True, True, False):
                subject.time(observe)
    rows = []
    for subject in subjects:
        quiet, observed = (statistics.median(subject.seconds[flag]) for flag in (False, True))
        pairs = zip(subject.seconds[True], subject.seconds[False], strict=True)
        rows.append(
            {
                "scale": subject.name,
                "n_params": subject.n_params,
                "compile_seconds": round(subject.program.compile_seconds, 2),
                "step_ms_quiet": round(quiet * 1e3, 3),
                "step_ms_observed_every_10": round(observed * 1e3, 3),
                "observation_cost": round(statistics.median(a / b for a, b in pairs) - 1, 4),
                "share_of_matmul_peak": round(subject.flops / observed / peak, 3),
            }
        )
    import importlib.metadata

    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.step --rounds {arguments.rounds}",
        "device": device_description(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "rows": rows,
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
