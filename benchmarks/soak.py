"""Whether a long process grows: its memory, open files and threads, and the time of a step, from beginning to end.

    python -m benchmarks.soak [--steps 20000] [--runs 200] [--output benchmarks/results/FILE.json]

One process trains one long run, and then many short ones, through the command line as a sweep does: width 16, 1 block,
batches of 4 x 16, King James text, files only, lanes one after the other. The long run observes every tenth step and
saves every 500; the short ones have 30 steps, and save every 10. Four times a second, between two dispatches, the
process is looked at: `first_tenth` and `last_tenth` are the medians of the first and the last tenth of these samples,
`slope` is that of a straight line through the last nine tenths, for each 1,000 steps. `ms_a_step` is the whole time
between two samples over the steps between them, with everything that a run does beside training.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reporting import made_with, report

SHORT_STEPS = 30
WORDS = [
    "model.width=16", "model.depth=1", "model.head_dim=8", "training.batch_size=4", "training.sequence_length=16",
    "training.validation_sequences=16", "lanes=sequential", "tracking=files", "figures=[]", "report=false",
    "progress=quiet",
]  # fmt: skip
PROCESS = Path("/proc/self")
POINTS = 40
"""Samples of each series that a result keeps, evenly spread."""


@dataclass
class Watch:
    """Counts the steps of this process, and looks at it from time to time.

    Args:
        every_s: seconds between two looks.
    """

    every_s: float = 0.25
    steps: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)
    _last: tuple[float, int] | None = None

    def dispatched(self, count: int) -> None:
        """So many steps have been sent off."""
        self.steps += count
        now = time.perf_counter()
        if self._last is None:
            self._last = now, self.steps
        seconds, steps = now - self._last[0], self.steps - self._last[1]
        if seconds >= self.every_s:
            self._last = now, self.steps
            self.samples.append({"steps": self.steps, "ms_a_step": seconds / steps * 1e3, **look()})


def look() -> dict[str, float]:
    """This process now: resident memory in MB (1e6 bytes), open file descriptors, threads."""
    pages = int((PROCESS / "statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": len(list((PROCESS / "fd").iterdir())),
        "threads": len(list((PROCESS / "task").iterdir())),
    }


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Tell a watch of every dispatch."""
    from stability.training.lanes import Program

    step: Callable[..., Any] = Program.step

    def counting(self: Program, config: Any, state: Any, tokens: Any, count: int, observe: bool) -> Any:
        watch.dispatched(count)
        return step(self, config, state, tokens, count, observe)

    Program.step = counting
    try:
        yield
    finally:
        Program.step = step


def soak(words: Sequence[str], every_s: float) -> dict[str, Any]:
    """Run one command in this process, watched.

    Args:
        words: of `stability.run`, beside `WORDS`.
        every_s: seconds between two samples.
    """
    from stability.run import main as run

    watch, began = Watch(every_s), time.perf_counter()
    sys.argv = sys.orig_argv = ["stability.run", *WORDS, *words]
    with watched(watch):
        code = run()
    if code:
        raise SystemExit(f"the command ended with {code}")
    return {"steps": watch.steps, "seconds": round(time.perf_counter() - began, 1), **trends(watch.samples)}


def trends(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What became of each quantity of the samples, in their order; empty for fewer than ten of them."""
    if len(samples) < 10:
        return {"samples": len(samples)}
    steps = [sample["steps"] for sample in samples]
    quantities = [key for key in samples[0] if key != "steps"]
    return {"samples": len(samples), **{key: trend(steps, [one[key] for one in samples]) for key in quantities}}


def trend(steps: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """First and last tenth, highest, slope for each 1,000 steps, and the series itself, thinned."""
    tenth = max(1, len(values) // 10)
    slope = statistics.linear_regression(steps[tenth:], values[tenth:]).slope
    shown = [round(i * (len(values) - 1) / (POINTS - 1)) for i in range(POINTS)]
    return {
        "first_tenth": round(statistics.median(values[:tenth]), 3),
        "last_tenth": round(statistics.median(values[-tenth:]), 3),
        "highest": round(max(values), 3),
        "slope": round(slope * 1000, 5),
        "series": [[steps[i], round(values[i], 3)] for i in dict.fromkeys(shown)],
    }


def parts(steps: int, runs: int, folder: Path) -> dict[str, list[str]]:
    """The commands: one long run, and many short ones, with their results below a folder."""
    seeds = ",".join(map(str, range(runs)))
    long = [f"training.steps={steps}", "training.checkpoint_every=500", f"output_dir={folder / 'long'}"]
    short = [f"training.steps={SHORT_STEPS}", "training.checkpoint_every=10", f"seed={seeds}"]
    short.append(f"output_dir={folder / 'short'}")
    return {"one long run": long, f"{runs} short runs": short}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--every", type=float, default=0.25, metavar="S", help="seconds between two samples")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    from stability.command_line import with_transparent_huge_pages

    with_transparent_huge_pages()
    with tempfile.TemporaryDirectory() as folder:
        commands = parts(arguments.steps, arguments.runs, Path(folder))
        rows = [{"part": name, **soak(words, arguments.every)} for name, words in commands.items()]
    made = made_with("soak", f"--steps {arguments.steps} --runs {arguments.runs}")
    report({**made, "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
