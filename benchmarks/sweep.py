"""A learning-rate sweep from process start to finish, against one process for each run.

    python -m benchmarks.sweep --torch PYTHON [--runs 7 28] [--rounds 1] [--output benchmarks/results/FILE.json]

Width 64, 2 blocks, 256 tokens in the vocabulary, batches of 16 x 128, 300 steps, King James text. The arms of a round:

    cold   `python -m stability.run` over all learning rates and seeds, no program in its cache
    warm   the same command in another folder, its programs in the cache
    jax    `python -m stability.run` once for each run, programs in the cache
    torch  `benchmarks/peers/torch_gpt.py` once for each run, one after the other on all cores
    torch_pinned  the same, a process on each core at a time, pinned, one thread each

`--torch` names a Python with the CPU build of PyTorch: `python -m venv torch_env`, then `torch_env/bin/pip install
torch numpy` with the index for CPU builds that pytorch.org names. Ours record every observation, to files, and analyse
at the end, without figures and report; PyTorch writes the loss of every tenth step. The arms' order turns from round to
round.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import made_with, report

RATES = (0.003, 0.007, 0.017, 0.04, 0.085, 0.18, 0.3)
STEPS = 300
PEER = Path(__file__).parent / "peers" / "torch_gpt.py"
WORDS = [
    "model.width=64", "model.depth=2", "model.head_dim=32", "training.batch_size=16", "training.sequence_length=128",
    f"training.steps={STEPS}", "tracking=files", "figures=[]", "report=false", "progress=lines",
]  # fmt: skip
Run = tuple[float, int]
"""Learning rate and seed."""


class Bench:
    """Commands with a working folder, caches and tokens of their own."""

    def __init__(self, folder: Path, torch: str | None) -> None:
        from stability.data.corpus import load_corpus

        self.folder, self.torch, self.tokens = folder, torch, folder / "tokens.npy"
        np.save(self.tokens, load_corpus("kjv").tokens)
        self.arms: dict[str, Callable[[Sequence[Run]], dict[str, Any]]] = {
            "cold": self.cold, "warm": self.warm, "jax": self.jax,
        }  # fmt: skip
        if torch:
            self.arms |= {"torch": self.torch_in_turn, "torch_pinned": self.torch_pinned}
        self.count = 0

    def _ours(self, words: Sequence[str], cache: Path) -> dict[str, Any]:
        self.count += 1
        command = [sys.executable, "-m", "stability.run", *WORDS, *words, f"output_dir={self.folder / str(self.count)}"]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(Path(__file__).parents[1])}
        environment.pop("STABILITY_REEXECUTED", None)
        environment.pop("GLIBC_TUNABLES", None)
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        compiling = re.search(r"of it ([0-9.]+) s compiling", done.stdout)
        return {"seconds": seconds, "compile_seconds": float(compiling[1]) if compiling else None}

    def _sweep(self, runs: Sequence[Run], cache: Path) -> dict[str, Any]:
        rates, seeds = dict.fromkeys(rate for rate, _ in runs), dict.fromkeys(seed for _, seed in runs)
        words = [f"optimizer.learning_rate={','.join(map(str, rates))}", f"seed={','.join(map(str, seeds))}"]
        return self._ours(words, cache)

    def cold(self, runs: Sequence[Run]) -> dict[str, Any]:
        """One sweep that compiles everything."""
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        return self._sweep(runs, cache)

    def warm(self, runs: Sequence[Run]) -> dict[str, Any]:
        """One sweep whose programs are in the cache."""
        return self._sweep(runs, self.folder / "cache")

    def jax(self, runs: Sequence[Run]) -> dict[str, Any]:
        """The solo program is another than the sweep's: one run beforehand puts it into the cache."""
        self._ours(["training.steps=300", "seed=99"], self.folder / "cache")
        each = [
            self._ours([f"optimizer.learning_rate={rate}", f"seed={seed}"], self.folder / "cache")["seconds"]
            for rate, seed in runs
        ]
        return {"seconds": sum(each), "median_seconds_a_process": statistics.median(each)}

    def _torch_command(self, run: Run, threads: int | None) -> list[str]:
        rate, seed = run
        self.count += 1
        words = ["--tokens", str(self.tokens), "--learning-rate", str(rate), "--seed", str(seed)]
        words += ["--steps", str(STEPS), "--output", str(self.folder / f"torch_{self.count}.json")]
        return [str(self.torch), str(PEER), *words, *(["--threads", str(threads)] if threads else [])]

    def _ended(self, first: int) -> dict[str, Any]:
        results = [json.loads((self.folder / f"torch_{i}.json").read_text()) for i in range(first, self.count + 1)]
        return {
            "median_ms_a_step": round(statistics.median(one["seconds_a_step"] for one in results) * 1e3, 3),
            "median_start_seconds": round(statistics.median(one["seconds_before_training"] for one in results), 2),
            "loss_validation": [round(one["loss_validation"], 3) for one in results[: len(RATES)]],
        }

    def torch_in_turn(self, runs: Sequence[Run]) -> dict[str, Any]:
        """A PyTorch process for each run, one after the other."""
        first, began = self.count + 1, time.perf_counter()
        for run in runs:
            subprocess.run(self._torch_command(run, None), check=True)
        return {"seconds": time.perf_counter() - began, **self._ended(first)}

    def torch_pinned(self, runs: Sequence[Run]) -> dict[str, Any]:
        """A PyTorch process for each run, one on each core at a time."""
        first, began, waiting = self.count + 1, time.perf_counter(), list(runs)
        running: dict[int, subprocess.Popen[bytes] | None] = dict.fromkeys(sorted(os.sched_getaffinity(0)))
        while waiting or any(running.values()):
            for core, process in running.items():
                if process is not None and process.poll() is not None:
                    if process.returncode:
                        raise SystemExit(f"{PEER.name} failed with {process.returncode}")
                    running[core] = process = None
                if process is None and waiting:
                    pin = ["taskset", "--cpu-list", str(core)]
                    running[core] = subprocess.Popen([*pin, *self._torch_command(waiting.pop(0), 1)])
            time.sleep(0.02)
        return {"seconds": time.perf_counter() - began, **self._ended(first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch; left out, so are its arms")
    parser.add_argument("--runs", type=int, nargs="+", default=[7, 28], help="multiples of 7")
    parser.add_argument("--arms", nargs="+", default=["cold", "warm", "jax", "torch", "torch_pinned"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.torch)
        bench.arms = {name: arm for name, arm in bench.arms.items() if name in arguments.arms}
        for count in arguments.runs:
            runs = [(rate, seed) for seed in range(count // len(RATES)) for rate in RATES]
            took: dict[str, list[dict[str, Any]]] = {arm: [] for arm in bench.arms}
            others = [arm for arm in bench.arms if arm not in ("cold", "warm")]
            for i in range(arguments.rounds):
                turn = i % max(1, len(others))
                turned = [*others[turn:], *others[:turn]]
                ours = [arm for arm in ("cold", "warm") if arm in bench.arms]  # in this order: the one fills the cache
                for arm in [*turned, *ours] if i % 2 else [*ours, *turned]:
                    took[arm].append(bench.arms[arm](runs))
                    print(f"{count} runs, round {i + 1}, {arm}: {took[arm][-1]['seconds']:.1f} s", file=sys.stderr)
            rows.append(row(count, took))
    words = f"--torch PYTHON --runs {' '.join(map(str, arguments.runs))} --rounds {arguments.rounds}"
    words += f" --arms {' '.join(bench.arms)}"
    report({**made_with("sweep", words), "torch": torch_version(arguments.torch), "rows": rows}, arguments.output)


def row(count: int, took: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The arms' medians, their ratios to ours, and what share of ours compiling was."""
    seconds = {arm: statistics.median(one["seconds"] for one in each) for arm, each in took.items()}

    def share(arm: str) -> float:
        return statistics.median((one["compile_seconds"] or 0.0) / one["seconds"] for one in took[arm])

    ours = [arm for arm in ("cold", "warm") if arm in took]
    return {
        "runs": count,
        "seconds": {arm: round(value, 1) for arm, value in seconds.items()},
        "times_as_long_as": {
            mine: {arm: round(value / seconds[mine], 2) for arm, value in seconds.items()} for mine in ours
        },
        "compile_share": {arm: round(share(arm), 4) for arm in ours},
        "details": took,
    }


def torch_version(python: str | None) -> str | None:
    """What `--torch` has."""
    if python is None:
        return None
    command = [python, "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
