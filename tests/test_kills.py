"""Sweeps that are killed at any moment and started again: nothing is lost, nothing is done twice.

STABILITY_KILLS (default 100) and STABILITY_KILLS_SEED (0) say how long a campaign is and which; the figures go to
the file STABILITY_KILLS_OUTPUT, if it is named.
"""

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.reporting import made_with
from stability.tracking.files import read_json
from stability.tracking.record import RunFolder, read_rows, run_folders
from tests.kills import (
    PHASES,
    STEPS,
    TRAINS,
    WORDS,
    Figures,
    Start,
    Strike,
    Sweep,
    differences,
    disturbed,
    evidence,
    executed,
    problems,
    random_strikes,
    resumed,
    states,
)
from tests.quick import QUICKLY

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
RATES = "optimizer.learning_rate=0.01,1e30"
"""A run that ends well, and one that diverges at once."""


@dataclass(frozen=True)
class Reference:
    """A sweep that nothing disturbed, and what came out of it."""

    sweep: Sweep
    evidence: dict[str, object]

    def again(self, folder: Path) -> Sweep:
        """The same command elsewhere."""
        return Sweep(folder, self.sweep.words, self.sweep.cache, self.sweep.environment)


Make = Callable[..., Reference]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all sweeps of this module, empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Make:
    """Run a command once, undisturbed, for all tests of this module."""
    made: dict[tuple[str, ...], Reference] = {}

    def make(*words: str, **environment: str) -> Reference:
        if words not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            sweep = Sweep(folder, [*WORDS, *words], cache, environment)
            start = sweep.start()
            assert start.code == 0, start.output
            made[words] = Reference(sweep, evidence(sweep.out))
        return made[words]

    return make


SEQUENTIAL = ("lanes=sequential", RATES)
QUICK = {"XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())}
"""For what every run of the tests does: programs compiled in a hurry."""
ONE_A_PHASE = [
    Strike(INT, "start-up", delay=1.5, reexecuted=True),
    Strike(KILL, "compile", said=TRAINS, delay=0.3),
    Strike(INT, "step", PHASES["step"], count=8),
    Strike(KILL, "checkpoint write", PHASES["checkpoint write"], count=20),
    Strike(TERM, "record write", r"rename \S+ {out}/runs/[^/]+/summary\.json", count=2),
    Strike(KILL, "analysis", r"rename \S+ {out}/summary\.json"),
]


def test_a_kill_in_each_phase_loses_nothing(undisturbed: Make, tmp_path: Path, cache: Path) -> None:
    sweep = Sweep(tmp_path, [*WORDS, *SEQUENTIAL], cache, QUICK)  # before anything else: no program is in the cache
    starts = disturbed(sweep, ONE_A_PHASE)
    whole = undisturbed(*SEQUENTIAL, **QUICK)
    assert [start.struck for start in starts] == [True] * len(ONE_A_PHASE) + [False], [s.output for s in starts]
    assert problems(starts) == []
    assert differences(evidence(sweep.out), whole.evidence) == []
    assert sum(map(resumed, starts)) > 0, "no start went on from a checkpoint"
    assert sum(map(executed, starts)) < 2 * STEPS, "more was trained again than was lost"


def starts_of(out: Path) -> dict[str, tuple[int, ...]]:
    """The step at which each start of each run began."""
    return {name: state.starts for name, state in states(out).items()}


@pytest.mark.slow
def test_two_at_once_train_each_run_once(undisturbed: Make, tmp_path: Path) -> None:
    whole = undisturbed(*SEQUENTIAL, **QUICK)
    sweep = whole.again(tmp_path)
    both = [sweep.popen(), sweep.popen()]
    ends = [started.end(sweep.out) for started in both]
    assert [end.code for end in ends] == [0, 0], [end.output for end in ends]
    assert set(starts_of(sweep.out).values()) == {(0,)}, "each run is started by one of the two"
    assert all("sensitivity" in end.output and "Results: out" in end.output for end in ends)
    assert differences(evidence(sweep.out), whole.evidence) == []


def test_a_second_command_takes_over_what_a_killed_one_had(undisturbed: Make, tmp_path: Path) -> None:
    """The first is held in mid-run until the second waits for it, and then killed."""
    whole = undisturbed(*SEQUENTIAL, **QUICK)
    sweep = whole.again(tmp_path)
    first = sweep.popen(Strike(signal.SIGSTOP, "step", PHASES["step"], count=12))
    try:
        while not first.struck.exists():
            assert first.process.poll() is None, first.output.read_text()
            time.sleep(0.02)
        second = sweep.popen()
        second.says("Waiting for 1 run")
    finally:
        first.process.kill()
        first.process.wait()
    end = second.end(sweep.out)
    assert end.code == 0, end.output
    assert f"process {first.process.pid}" in end.output, "it says for whom it waits"
    (taken_over,) = (starts for starts in starts_of(sweep.out).values() if len(starts) == 2)
    assert taken_over[0] == 0 < taken_over[1], "and goes on from the checkpoint"
    assert differences(evidence(sweep.out), whole.evidence) == []


# --- campaigns --------------------------------------------------------------------------------------------------------

SWEEPS = {
    "sequential": (
        "lanes=sequential", "optimizer.learning_rate=0.01,0.1,1e30", "model.qk_layernorm=none,per_head",
    ),
    "sharded": ("lanes=sharded", "optimizer.learning_rate=0.003,0.01,0.03"),
    "search": (
        "lanes=sequential", "optimizer.learning_rate={search:bisection,low:0.01,high:2.56,tolerance:2.0}",
    ),
    "report": ("lanes=sequential", RATES, "figures=[svg]", "report=true"),
}  # fmt: skip
TOLERANCE = {"sharded": 0.05}
"""A run that is alone among the rest of a sharded sweep trains by the program of a solo run, which rounds otherwise."""
OFTEN = ["sequential", "sharded", "sequential", "search", "sequential", "report"]
"""The sweeps in turn."""
KILLS_A_SWEEP = 8


@pytest.mark.slow
def test_a_campaign_of_kills_loses_nothing(undisturbed: Make, tmp_path: Path) -> None:
    kills, seed = int(os.environ.get("STABILITY_KILLS", "100")), int(os.environ.get("STABILITY_KILLS_SEED", "0"))
    random, figures, found, began = Random(seed), Figures(), [], time.monotonic()
    plans = {}
    for i in itertools.count():
        if figures.total >= kills:
            break
        name = OFTEN[i % len(OFTEN)]
        whole = undisturbed(*SWEEPS[name])
        if name not in plans:
            plans[name] = random_strikes(random, whole.sweep)
        sweep = whole.again(tmp_path / f"{i:03d}_{name}")
        planned = sorted(itertools.islice(plans[name], KILLS_A_SWEEP), key=lambda strike: strike.phase == "analysis")
        starts = disturbed(sweep, planned)
        figures.add(name, starts)
        tolerance = TOLERANCE.get(name, 0.0)
        wrong = [*problems(starts), *differences(evidence(sweep.out), whole.evidence, tolerance)]
        found += [f"{sweep.folder}: {words}" for words in wrong]
        seconds = round(time.monotonic() - began)
        command = f"STABILITY_KILLS={kills} STABILITY_KILLS_SEED={seed} python -m pytest tests/test_kills.py -m slow"
        made = {**made_with("kills"), "command": command}
        summary = {**made, **figures.summary(), "problems": found, "seconds": seconds}
        print(f"{figures.total} kills, {sweep.folder.name}: {', '.join(map(told, starts))} {wrong}", flush=True)
        if output := os.environ.get("STABILITY_KILLS_OUTPUT"):
            Path(output).write_text(json.dumps(summary, indent=1) + "\n")
    assert found == []


def told(start: Start) -> str:
    """A line of a campaign's log: what hit, where, and how it ended."""
    if start.strike is None or not start.struck:
        return f"undisturbed {start.code}"
    return f"{start.strike.signal.name} {start.phase} {start.code} {start.seconds:.1f} s"


@pytest.mark.slow
def test_a_preempted_run_goes_on_with_other_devices(tmp_path: Path, cache: Path) -> None:
    """On 8 devices, then 2, then 8 again; numbers agree to rounding, which another layout changes."""
    words = [word for word in WORDS if "batch_size" not in word]
    words += ["training.batch_size=8", "optimizer.learning_rate=0.01"]

    def on(devices: int) -> dict[str, str]:
        return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}

    whole = Sweep(tmp_path / "whole", words, cache, on(8))
    assert whole.start(words=["mesh.fsdp=8"]).code == 0
    sweep = Sweep(tmp_path / "moved", words, cache)
    starts = []
    for devices, count in ((8, 8), (2, 6), (8, None)):
        sweep.environment = on(devices)
        strike = Strike(TERM, "step", PHASES["step"], count=count) if count else None
        starts.append(sweep.start(strike, [f"mesh.fsdp={devices}"]))
    assert [start.code for start in starts] == [130, 130, 0], [start.output for start in starts]
    assert problems(starts) == []

    (run,), (reference,) = run_folders(sweep.out), run_folders(whole.out)
    told = run.read_provenance()
    assert [start["execution"]["mesh"]["fsdp"] for start in told] == [8, 2, 8]
    steps = [start["resumed_from_step"] for start in told]
    assert 0 == steps[0] < steps[1] < steps[2] < STEPS
    assert_rows_close(run, reference)
    warnings = " ".join(read_json(sweep.out / "summary.json")["warnings"])
    assert re.search(r"The runs mix \S*mesh\.fsdp: 2, 8", warnings)
    assert "mix" not in " ".join(read_json(whole.out / "summary.json")["warnings"])


def assert_rows_close(ours: RunFolder, theirs: RunFolder) -> None:
    """The same rows, and the losses in them to rounding."""
    rows = list(zip(read_rows(ours.metrics), read_rows(theirs.metrics), strict=True))
    assert all(a.keys() == b.keys() and a["step"] == b["step"] for a, b in rows)
    for key in ("loss/train", "loss/validation"):
        values = np.array([[a[key], b[key]] for a, b in rows if key in a], np.float64)
        np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=5e-3)
