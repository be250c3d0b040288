"""Time of a lane-step and memory by strategy and number of lanes, and whether a process on each core would be faster.

    python -m benchmarks.lanes [--lanes 1 2 4 8 16 32] [--rounds 7] [--output benchmarks/results/FILE.json]

Width 64, 2 blocks, 256 tokens in the vocabulary, batches of 16 x 128, every tenth step observed. `sequential` trains a
lane after the other with the solo program, `vmap` all in one, `sharded` one on each core until all have had their turn.
Each round times every strategy at every number of lanes. `processes` is as many processes as cores, each pinned to its
core and timed while all are at work. Memory is arguments, results and temporary memory of the compiled programs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import jax_gpt
from benchmarks.reporting import made_with, report
from benchmarks.step import STEPS, run_config
from stability.command_line import with_transparent_huge_pages

SHAPE = jax_gpt.Shape(64, 2, 256, 16, 128)
DISPATCHES_PINNED = 40


def tokens(lanes: int) -> Any:
    return np.random.default_rng(0).integers(
        0, SHAPE.vocabulary, (lanes, STEPS, SHAPE.batch, SHAPE.length + 1), np.int32
    )


class Strategy:
    """`lanes` runs, `at_once` of them in each call of a program."""

    def __init__(self, lanes: int, at_once: int, program: Any, memory: int) -> None:
        config = run_config(SHAPE)
        self.lanes, self.at_once, self.program, self.memory = lanes, at_once, program, memory
        self.placed = program.place([config] * at_once)
        self.states = [program.start(self.placed) for _ in range(-(-lanes // at_once))]
        self.tokens = tokens(at_once)
        self.seconds: list[float] = []

    def time(self, keep: bool = True) -> None:
        """A dispatch of every lane."""
        import jax

        began = time.perf_counter()
        for i, state in enumerate(self.states):
            self.states[i], metrics, observations = self.program.step(self.placed, state, self.tokens, STEPS, True)
            jax.block_until_ready((self.states[i], metrics, observations))
        if keep:
            self.seconds.append((time.perf_counter() - began) / STEPS / self.lanes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pinned", type=int, help=argparse.SUPPRESS)  # a process of its own: prints its step's seconds
    parser.add_argument("--from-time", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pinned is not None:
        os.sched_setaffinity(0, {arguments.pinned})
    with_transparent_huge_pages()
    if arguments.pinned is not None:
        pinned(arguments.from_time)
        return
    from stability.launching.devices import show_every_core

    show_every_core()
    strategies = {name: make(lanes) for lanes in arguments.lanes for name, make in makers(lanes).items()}
    for one in strategies.values():
        one.time(keep=False)
    for _ in range(arguments.rounds):
        for one in strategies.values():
            one.time()
    rows: dict[int, dict[str, Any]] = {}
    for (name, lanes), one in strategies.items():
        milliseconds = round(statistics.median(one.seconds) * 1e3, 3)
        rows.setdefault(lanes, {})[name] = {"ms_a_lane_step": milliseconds, "memory_mb": round(one.memory / 1e6, 1)}
    for row in rows.values():
        for cell in row.values():
            cell["of_sequential"] = round(cell["ms_a_lane_step"] / row["sequential"]["ms_a_lane_step"], 3)
    result = {
        **made_with("lanes", f"--lanes {' '.join(map(str, arguments.lanes))} --rounds {arguments.rounds}"),
        "rows": [{"lanes": lanes, **row} for lanes, row in rows.items()],
        "processes": processes(),
    }
    report(result, arguments.output)


def makers(lanes: int) -> dict[tuple[str, int], Callable[[int], Strategy]]:
    """The strategies that a number of lanes has."""
    import jax

    from stability.launching.devices import Layout
    from stability.training.lanes import Programs

    config, devices, programs = run_config(SHAPE), tuple(jax.local_devices()), Programs()
    layouts = {
        "sequential": (Layout("sequential", ""), 1),
        "vmap": (Layout("vmap", ""), lanes),
        "sharded": (Layout("sharded", "", devices), min(lanes, len(devices))),
    }

    def maker(layout: Layout, at_once: int) -> Callable[[int], Strategy]:
        def make(lanes: int) -> Strategy:
            validation = (1, SHAPE.batch, SHAPE.length + 1)
            program = programs.get(config, layout.seats(at_once), validation, layout.mesh(at_once))
            return Strategy(lanes, at_once, program, layout.compiled_memory(program, at_once) or 0)

        return make

    return {(name, lanes): maker(layout, at_once) for name, (layout, at_once) in layouts.items()}


def processes() -> dict[str, Any]:
    """A process on each core, all at work at the same time; the seconds of each one's own step."""
    cores = sorted(os.sched_getaffinity(0))
    start = time.time() + 60
    command = [sys.executable, "-m", "benchmarks.lanes", "--from-time", str(start), "--pinned"]
    running = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in cores]
    steps = [float(json.loads(process.communicate()[0].splitlines()[-1])["seconds"]) for process in running]
    return {
        "processes": len(cores),
        "ms_a_lane_step": round(1e3 / sum(1 / seconds for seconds in steps), 3),
        "each_ms": [round(seconds * 1e3, 3) for seconds in steps],
    }


def pinned(start: float) -> None:
    """One run alone on this process's core, timed from a given moment on."""
    from stability.training.lanes import compile_program

    solo = Strategy(1, 1, compile_program(run_config(SHAPE), None, (1, SHAPE.batch, SHAPE.length + 1)), 0)
    solo.time(keep=False)
    if time.time() > start:
        raise SystemExit("compiling took longer than was left until the others start")
    time.sleep(start - time.time())
    for _ in range(DISPATCHES_PINNED):
        solo.time()
    print(json.dumps({"seconds": statistics.median(solo.seconds[: DISPATCHES_PINNED * 3 // 4])}))


if __name__ == "__main__":
    main()
