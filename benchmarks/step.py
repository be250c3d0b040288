"""Step time as a share of the machine's matmul peak, beside plain JAX, and what observation adds.

    python -m benchmarks.step [--rounds 15] [--shapes NAME ...] [--output benchmarks/results/FILE.json]

Shapes are width/depth/vocabulary/batch x length. The arms of a round, interleaved: the machine's best matrix product;
plain JAX (`benchmarks.peers.jax_gpt`: no Flax, Optax, observation or sweep); our solo program, quiet and with every
tenth step observed; and our program with a lane on each core, every tenth step observed. FLOPs are those of
`stability.launching.plan.flops_per_token`; a share is of the same round's peak, and medians are over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import jax_gpt
from benchmarks.reporting import made_with, report
from stability.command_line import with_transparent_huge_pages

STEPS = 10
SHAPES = {
    "64/2/256/16x64": jax_gpt.Shape(64, 2, 256, 16, 64),
    "128/3/256/16x64": jax_gpt.Shape(128, 3, 256, 16, 64),
    "64/2/256/16x128": jax_gpt.Shape(64, 2, 256, 16, 128),
    "128/3/1024/16x128": jax_gpt.Shape(128, 3, 1024, 16, 128),
    "256/3/4096/8x256": jax_gpt.Shape(256, 3, 4096, 8, 256),
}
"""The micro ladder's own, then larger."""


class Subject:
    """One shape in every arm, compiled and running."""

    def __init__(self, name: str, shape: jax_gpt.Shape) -> None:
        import jax

        from stability.launching.plan import flops_per_token
        from stability.training.lanes import compile_program
        from stability.training.mesh import lane_mesh

        config = run_config(shape)
        self.name, self.n_params = name, config.model.n_params
        self.flops = flops_per_token(config) * config.training.tokens_per_step
        tokens = np.random.default_rng(0).integers(
            0, shape.vocabulary, (STEPS, shape.batch, shape.length + 1), np.int32
        )
        devices, validation = jax.local_devices(), (1, shape.batch, shape.length + 1)
        self.lanes = len(devices)
        solo = compile_program(config, None, validation)
        spread = compile_program(config, self.lanes, validation, lane_mesh(devices))
        self.compile_seconds = solo.compile_seconds
        plain, state = jax_gpt.steps(shape, STEPS), jax_gpt.fresh(shape)
        self.arms: dict[str, tuple[int, Callable[[], None]]] = {
            "plain_jax": (1, self._plain(plain, state, tokens)),
            "solo": (1, self._ours(solo, config, tokens, 1, False)),
            "solo_observed": (1, self._ours(solo, config, tokens, 1, True)),
            "lane_a_core_observed": (self.lanes, self._ours(spread, config, tokens, self.lanes, True)),
        }
        self.seconds: dict[str, list[float]] = {arm: [] for arm in self.arms}

    def _plain(self, program: Any, state: Any, tokens: Any) -> Callable[[], None]:
        import jax

        def dispatch() -> None:
            nonlocal state
            state, losses = program(state, tokens)
            jax.block_until_ready((state, losses))

        return dispatch

    def _ours(self, program: Any, config: Any, tokens: Any, lanes: int, observe: bool) -> Callable[[], None]:
        import jax

        placed = program.place([config] * lanes)
        state, batches = program.start(placed), np.stack([tokens] * lanes)

        def dispatch() -> None:
            nonlocal state
            state, metrics, observations = program.step(placed, state, batches, STEPS, observe)
            jax.block_until_ready((state, metrics, observations))

        return dispatch

    def time(self, arm: str) -> None:
        """One dispatch; keeps the seconds of a lane-step."""
        lanes, dispatch = self.arms[arm]
        began = time.perf_counter()
        dispatch()
        self.seconds[arm].append((time.perf_counter() - began) / STEPS / lanes)


def run_config(shape: jax_gpt.Shape) -> Any:
    """The shape as a run's config, all else as by default."""
    from stability.config import RunConfig, resolve
    from stability.typed import from_mapping

    model = {"width": shape.width, "depth": shape.depth, "head_dim": shape.head_dim}
    training = {"batch_size": shape.batch, "sequence_length": shape.length}
    config = from_mapping(RunConfig, {"model": model, "training": training})
    return resolve(config, corpus="benchmark", vocabulary_size=shape.vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with_transparent_huge_pages()
    from stability.launching.calibration import matmul_flops
    from stability.launching.devices import show_every_core

    show_every_core()
    subjects = [Subject(name, SHAPES[name]) for name in arguments.shapes]
    for subject in subjects:
        for arm in subject.arms:
            subject.time(arm)
        subject.seconds = {arm: [] for arm in subject.arms}  # those warmed up
    peaks: list[float] = []
    for _ in range(arguments.rounds):
        peaks.append(matmul_flops("float32"))
        for subject in subjects:
            for arm in subject.arms:
                subject.time(arm)
    result = {
        **made_with("step", f"--rounds {arguments.rounds}"),
        "matmul_peak_gflops": {"best": round(max(peaks) / 1e9, 1), "median": round(statistics.median(peaks) / 1e9, 1)},
        "rows": [row(subject, peaks) for subject in subjects],
    }
    report(result, arguments.output)


def row(subject: Subject, peaks: list[float]) -> dict[str, Any]:
    """One shape's medians."""

    def over(arm: str, other: str) -> float:
        pairs = zip(subject.seconds[arm], subject.seconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    shares = {
        arm: statistics.median(subject.flops / s / peak for s, peak in zip(seconds, peaks, strict=True))
        for arm, seconds in subject.seconds.items()
    }
    return {
        "shape": subject.name,
        "n_params": subject.n_params,
        "compile_seconds": round(subject.compile_seconds, 2),
        "ms_a_lane_step": {arm: round(statistics.median(s) * 1e3, 3) for arm, s in subject.seconds.items()},
        "share_of_matmul_peak": {arm: round(share, 3) for arm, share in shares.items()},
        "observation_cost": round(over("solo_observed", "solo") - 1, 4),
        "solo_over_plain_jax": round(over("solo_observed", "plain_jax"), 3),
        "lane_a_core_over_solo": round(over("lane_a_core_observed", "solo_observed"), 3),
    }


if __name__ == "__main__":
    main()
