"""What the loop waits for: how soon a dispatch returns, and how much of the time the devices are at work, by a profile.

    python -m benchmarks.loop [--steps 400] [--output benchmarks/results/FILE.json]

Width 64, 2 blocks, 256 tokens in the vocabulary, batches of 16 x 128, trained by `stability.training.loop.train` as a
sweep trains it, but for files: every tenth step observed, and every hundredth; one run, and a run on each core. The
call that dispatches steps returns before they are computed, and the host reads the numbers of the dispatch before: a
quiet step waits for nobody. (On several CPU devices JAX computes inside the call, and there is nobody to wait.) `busy`
is the share of the wall time in which at least one device executes, from the trace of `jax.profiler`; the rest is the
host's.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lanes import SHAPE
from benchmarks.reporting import made_with, report
from benchmarks.step import run_config
from stability.command_line import with_transparent_huge_pages


class Silent:
    """A journal that keeps nothing."""

    def row(self, row: Any) -> None:
        """Nothing."""

    def progress(self, step: int) -> None:
        """Nothing."""

    def ended(self, *, diverged_at: int | None, first_bad_observation: str | None = None) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with_transparent_huge_pages()
    from stability.launching.devices import show_every_core

    show_every_core()
    import jax

    from stability.launching.devices import Layout

    layouts = (Layout("sequential", ""), Layout("sharded", "", tuple(jax.local_devices())))
    rows = [profiled(arguments.steps, every, layout) for layout in layouts for every in (10, 100)]
    report({**made_with("loop", f"--steps {arguments.steps}"), "rows": rows}, arguments.output)


def profiled(steps: int, observe_every: int, layout: Any) -> dict[str, Any]:
    """One training under the profiler."""
    import dataclasses

    import jax

    from stability.data.batches import Batches
    from stability.training.lanes import Program, Programs
    from stability.training.loop import Lane, train

    config = run_config(SHAPE)
    training = dataclasses.replace(config.training, steps=steps, observe_every=observe_every)
    config = dataclasses.replace(config, training=training)
    validation = np.zeros((2, SHAPE.batch, SHAPE.length + 1), np.int32)
    program = Programs().get(config, layout.seats(layout.places), validation.shape, layout.mesh(layout.places))
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocabulary, 1_000_000, np.int32).astype(np.uint8)
    batches = Batches(tokens, SHAPE.length, SHAPE.batch)

    def lane(seed: int) -> Lane:
        return Lane(config, partial(batches.batches, seed), Silent(), no_checkpoints)

    sent: list[float] = []
    step = Program.step

    def timed(self: Program, *given: Any) -> Any:
        began = time.perf_counter()
        result = step(self, *given)
        sent.append(time.perf_counter() - began)
        return result

    def go() -> float:
        began = time.perf_counter()
        train(program, [lane(seed) for seed in range(layout.places)], validation, 0, lambda: False)
        return time.perf_counter() - began

    Program.step = timed  # type: ignore[method-assign]
    try:
        go()
        sent.clear()
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                seconds = go()
            busy = busy_seconds(next(Path(folder).rglob("*.xplane.pb")))
    finally:
        Program.step = step  # type: ignore[method-assign]
    return {
        "lanes": layout.places,
        "strategy": layout.strategy,
        "observe_every": observe_every,
        "dispatches": len(sent),
        "ms_until_a_dispatch_returns": round(statistics.median(sent) * 1e3, 3),
        "ms_that_a_dispatch_takes": round(seconds / len(sent) * 1e3, 3),
        "busy": round(busy / seconds, 4),
    }


def no_checkpoints() -> Any:
    raise AssertionError("so short a run saves nothing")


def busy_seconds(path: Path) -> float:
    """How long at least one device executed, from a trace: the union of the executor's intervals."""
    import jax

    spans = sorted(
        (event.start_ns, event.end_ns)
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "ThunkExecutor::Execute (wait for completion)"
    )
    total, end = 0.0, 0.0
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9


if __name__ == "__main__":
    main()
