"""Real sweeps in processes of their own, struck by signals at chosen moments, and started again until they are done.

A `Strike` names a signal and a moment: a file operation of the command (the hook in tests/strike/ has the process send
itself the signal then), or a time after its start or after something that it says. `disturbed` starts one command, has
each strike hit it in turn, and lets it end; `problems` says what was lost on the way, `evidence` what came out of it.
"""

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from stability.tracking.files import read_json
from stability.tracking.record import MANIFEST, RUNS, TERMINAL, RunFolder, read_rows, run_folders
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = 200
WORDS = [
    *(word for word in TINY if not word.startswith("training.steps=")),
    f"training.steps={STEPS}",
    "training.checkpoint_every=20",
    "training.keep_checkpoint=true",
    "progress=lines",
]
"""A run takes a second or so, most of it for ten checkpoints."""
DEADLINE_S = 240.0
"""No start takes so long, however busy the machine."""
TRAINS, TRAINED = "device: ", "Trained "
"""What a command says before it compiles anything, and after it has trained everything."""


@dataclass(frozen=True)
class Strike:
    """One signal at one moment.

    Attributes:
        signal: what is sent.
        phase: what it is to hit, one of `PHASES`.
        at: regular expression of file operations (tests/strike/), with `{out}` for the results folder and `{cache}`
            for that of compiled programs; empty for a strike by the clock.
        count: the how manieth of these operations.
        said: of a strike by the clock, the output that its time counts from; empty for the start.
        delay: seconds from there on.
        cold: no program is in the cache, so that all are compiled.
        reexecuted: the process starts itself again first, as it does outside of tests.
    """

    signal: signal.Signals
    phase: str
    at: str = ""
    count: int = 1
    said: str = ""
    delay: float = 0.0
    cold: bool = False
    reexecuted: bool = False


PHASES = {
    "start-up": "",
    "compile": r"{cache}/\S*compiled",
    "step": r"write {out}/runs/\S+/metrics\.jsonl",
    "checkpoint write": r"{out}/runs/[^/]+/checkpoints",
    "record write": r"{out}/(\.?sweep\.json|runs/(?!\S*checkpoints))",
    "analysis": r"{out}/(\.?summary\.json|\.?report\.html|analysis)",
}
"""What a command does, in order -> the file operations that belong to it."""
IN_TRAINING = ("step", "checkpoint write")
"""Phases in which the program has been compiled."""


@dataclass(frozen=True)
class RunState:
    """What a run's folder says between two starts of the command."""

    status: str | None
    starts: tuple[int, ...]
    last_step: int | None
    saved: int

    @property
    def over(self) -> bool:
        """It has its result."""
        return self.status in TERMINAL


@dataclass(frozen=True)
class Start:
    """One start of the command.

    Attributes:
        strike: what it was to be struck by; None for a start that nothing disturbs.
        struck: whether it was: it may have ended before.
        phase: what it was doing then.
        code: its exit code, negative for the signal that ended it.
        seconds: how long it lived on after the strike, or altogether where there was none.
        before, after: its runs, by the name of their folders.
        output: all that it said.
    """

    strike: Strike | None
    struck: bool
    phase: str
    code: int
    seconds: float
    before: Mapping[str, RunState]
    after: Mapping[str, RunState]
    output: str


@dataclass
class Sweep:
    """One command in a folder of its own.

    Attributes:
        folder: the working directory; the results go into `out` there.
        words: the command's arguments.
        cache: the user's cache folder.
        environment: what else the process sees.
    """

    folder: Path
    words: Sequence[str]
    cache: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    count: int = 0

    @property
    def out(self) -> Path:
        """The results."""
        return self.folder / "out"

    def operations(self) -> list[str]:
        """The file operations of all starts so far."""
        path = self.folder / "operations.txt"
        return path.read_text().splitlines() if path.exists() else []

    def matching(self, phase: str) -> int:
        """How many of them belong to a phase."""
        wanted = re.compile(self.pattern(PHASES[phase]))
        return sum(wanted.search(line) is not None for line in self.operations())

    def pattern(self, at: str) -> str:
        """A strike's regular expression with the folders filled in."""
        return at.replace("{out}", re.escape(str(self.out))).replace("{cache}", re.escape(str(self.cache)))

    def popen(self, strike: Strike | None = None, words: Sequence[str] = ()) -> "Started":
        """Start the command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count += 1
        if strike is not None and strike.cold:
            self.cache = self.folder / f"cache_{self.count}"
        output, struck = self.folder / f"output_{self.count}.txt", self.folder / f"struck_{self.count}.txt"
        asked = {
            "folders": [str(self.out), str(self.cache)],
            "operations": str(self.folder / "operations.txt"),
            "at": self.pattern(strike.at) if strike else "",
            "count": strike.count if strike else 0,
            "delay": strike.delay if strike else 0.0,
            "signal": int(strike.signal) if strike else 0,
            "struck": str(struck),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "STABILITY_", "XLA_"))}
        environment = {
            **kept,
            "PYTHONPATH": f"{ROOT / 'tests' / 'strike'}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(self.cache),
            "STRIKE": json.dumps(asked),
            **({} if strike and strike.reexecuted else {"STABILITY_NO_REEXECUTION": "1"}),
            **self.environment,
        }
        arguments = [sys.executable, "-m", "stability.run", *self.words, *words, "output_dir=out"]
        with output.open("w") as file:
            process = subprocess.Popen(
                arguments, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        return Started(process, strike, output, struck, states(self.out), time.monotonic())

    def start(self, strike: Strike | None = None, words: Sequence[str] = ()) -> Start:
        """Start the command, have it struck, and wait for its end."""
        return self.popen(strike, words).end(self.out)


@dataclass
class Started:
    """A process under way."""

    process: "subprocess.Popen[bytes]"
    strike: Strike | None
    output: Path
    struck: Path
    before: Mapping[str, RunState]
    began: float

    def end(self, out: Path) -> Start:
        """Send what is to be sent by the clock, and wait for the end."""
        phase, since = (self.strike.phase if self.strike else ""), self.began
        by_clock = self.strike is not None and not self.strike.at
        struck = False
        try:
            if self.strike is not None and by_clock and self._due(self.strike):
                since, phase, struck = time.monotonic(), phase_now(self.output.read_text(), out, self.before), True
                self.process.send_signal(self.strike.signal)
            code = self.process.wait(DEADLINE_S)
        finally:
            if self.process.poll() is None:  # it hangs, or the test was stopped: leave nothing behind
                self.process.kill()
                self.process.wait()
        ended = time.monotonic()
        if self.struck.exists():
            since, struck = float(self.struck.read_text().split()[0]), True
        return Start(self.strike, struck, phase, code, ended - since, self.before, states(out), self.output.read_text())

    def _due(self, strike: Strike) -> bool:
        """Wait for the moment of a strike by the clock; whether the process is still there then."""
        self.says(strike.said)
        try:
            self.process.wait(strike.delay)
        except subprocess.TimeoutExpired:
            return True
        return False

    def says(self, words: str) -> None:
        """Wait until the process has said something, or has ended."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and words not in self.output.read_text():
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.01)


def phase_now(output: str, out: Path, before: Mapping[str, RunState]) -> str:
    """What a process is doing, by what it has said and what it has changed in its folder."""
    if TRAINED in output or (TRAINS not in output and "already done" in output and "0 already done" not in output):
        return "analysis"
    if TRAINS not in output:
        return "start-up"
    known = {name: state.starts for name, state in before.items()}
    if all(state.starts == known.get(name, ()) for name, state in states(out).items()):  # no run has begun
        return "compile"
    names = [path.name for path in out.rglob("*")]
    if any("orbax-checkpoint-tmp" in name for name in names):
        return "checkpoint write"
    return "record write" if any(name.endswith(".partial") for name in names) else "step"


def states(out: Path) -> dict[str, RunState]:
    """All runs of a results folder; every file of theirs that is there can be read."""
    found = {}
    for path in sorted((out / RUNS).glob("*")):
        run = RunFolder(path)
        summary = run.read_summary() or {}
        provenance = path / "provenance.json"
        starts = run.read_provenance() if provenance.exists() else []
        rows = read_rows(run.metrics)
        found[path.name] = RunState(
            summary.get("status"),
            tuple(start["resumed_from_step"] for start in starts),
            int(rows[-1]["step"] or 0) if rows else None,
            max((int(seal.stem) for seal in run.checkpoints.glob("*.json")), default=0),
        )
    return found


def disturbed(sweep: Sweep, strikes: Sequence[Strike]) -> list[Start]:
    """Start a command, once for each strike, and then until it ends well; what happened.

    A start that ends well ahead of its strike ends it too.
    """
    starts: list[Start] = []
    for strike in strikes:
        starts.append(sweep.start(strike))
        if starts[-1].code == 0:
            return starts
    starts.append(sweep.start())
    assert starts[-1].code == 0, starts[-1].output
    return starts


# --- what was lost ----------------------------------------------------------------------------------------------------


def problems(starts: Sequence[Start]) -> list[str]:
    """What should not have happened from one start to the next, in sentences."""
    return [f"start {i + 1}, {name}: {words}" for i, start in enumerate(starts) for name, words in _problems_of(start)]


def _problems_of(start: Start) -> Iterator[tuple[str, str]]:
    if start.code not in _codes(start):
        yield "exit code", f"{start.code}\n{start.output}"
    if start.code == 130 and "Traceback" in start.output:
        yield "output", start.output
    for name, after in start.after.items():
        before = start.before.get(name, RunState(None, (), None, 0))
        new = after.starts[len(before.starts) :]
        if after.starts[: len(before.starts)] != before.starts:
            yield name, f"its provenance forgets: {before.starts} became {after.starts}"
        if before.over and new:
            yield name, "trained again although it was finished"
        if len(new) > 1:
            yield name, f"started {len(new)} times by one command"
        if new and new[0] != before.saved:
            yield name, f"went on from step {new[0]} although step {before.saved} was saved"
        if _stopped(start) and after.status == "running" and (after.last_step or 0) >= max(after.saved, 1):
            yield name, f"stopped on request at step {after.last_step} or later, and step {after.saved} was saved"
    for name in start.before.keys() - start.after.keys():
        yield name, "is gone"


def _codes(start: Start) -> set[int]:
    """The exit codes that a start may have."""
    if start.strike is None or not start.struck:
        return {0}
    if start.strike.signal is signal.SIGKILL:
        return {-signal.SIGKILL}
    # Outside of training a signal ends the process as it ends any; one that comes with the end may come too late.
    return {130, -start.strike.signal, *([0] if start.phase not in ("start-up", "compile") else [])}


def _stopped(start: Start) -> bool:
    """It was asked to stop, and did so by itself while it trained."""
    return start.code == 130 and "To go on" in start.output


def executed(start: Start) -> int:
    """Steps that a start made, as far as the rows tell."""
    total = 0
    for name, after in start.after.items():
        known = len(start.before[name].starts) if name in start.before else 0
        for resumed in after.starts[known:]:
            total += max(0, (after.last_step or 0) - resumed)
    return total


def resumed(start: Start) -> int:
    """Steps that a start did not have to make again, because they were saved."""
    known = {name: len(state.starts) for name, state in start.before.items()}
    return sum(sum(after.starts[known.get(name, 0) :]) for name, after in start.after.items())


# --- what came out ----------------------------------------------------------------------------------------------------

_OF_A_PROCESS = ("seconds", "metrics", "sha256", "sweep_id", "commands")
"""What records hold of the clock, of a folder, or of files that hold such."""


def evidence(out: Path) -> dict[str, Any]:
    """All of a finished sweep that must not depend on how often it was started, by file."""
    found: dict[str, Any] = {name: _without(read_json(out / name)) for name in (MANIFEST, "summary.json")}
    for run in run_folders(out):
        found |= {
            f"{run.path.name}/{name}": _without(read_json(run.path / name)) for name in ("config.json", "summary.json")
        }
        found[f"{run.path.name}/metrics.jsonl"] = [
            {key: value for key, value in row.items() if not key.startswith("speed/")} for row in read_rows(run.metrics)
        ]
        found[f"{run.path.name}/checkpoints"] = parameters(run)
    found["files"] = files(out)
    return found


def _without(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without(value) for key, value in content.items() if key not in _OF_A_PROCESS}
    return [_without(value) for value in content] if isinstance(content, list) else content


def parameters(run: RunFolder) -> dict[str, str]:
    """The hash of every array of a run's last checkpoint, optimizer state included; empty where there is none."""
    steps = [int(path.name) for path in run.checkpoints.glob("*") if path.name.isdigit()]
    if not steps:
        return {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = run.checkpoints.absolute() / str(max(steps)) / "default"
        arguments = ocp.checkpoint_utils.construct_restore_args(checkpointer.metadata(path).item_metadata.tree)
        tree = checkpointer.restore(path, restore_args=arguments)
    return {str(key): digest(leaf) for key, leaf in _leaves(tree)}


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    import jax

    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(tree)[0]
    return leaves


def digest(array: Any) -> str:
    """An array's type, shape and bytes."""
    value = np.asarray(array)
    shape = ",".join(map(str, value.shape))
    return f"{value.dtype}({shape}) {hashlib.sha256(value.tobytes()).hexdigest()}"


def files(out: Path) -> list[str]:
    """Every file and folder of the results, but for what is inside a checkpoint, which Orbax names by chance."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    return sorted(name for name in names if not re.search(r"checkpoints/\d+/", name))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float = 0.0) -> list[str]:
    """What of the evidence differs, in words short enough to read.

    Args:
        ours, theirs: from `evidence`.
        tolerance: by how much numbers may differ, relative to the larger; where they may, arrays are compared by their
            types and shapes alone.
    """
    return [
        f"{key}: {words}"
        for key in sorted(ours.keys() | theirs.keys())
        if (words := _difference(ours.get(key), theirs.get(key), tolerance))
    ]


def _difference(one: Any, other: Any, tolerance: float) -> str | None:
    """The first one within two JSON values."""
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{len(one)} entries, not {len(other)}: {(one + other)[min(len(one), len(other))]}"
        pairs = [(f"entry {i}", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    else:
        return None if _alike(one, other, tolerance) else f"{one!r}, not {other!r}"
    found = ((name, _difference(a, b, tolerance)) for name, a, b in pairs)
    return next((f"{name}: {words}" for name, words in found if words), None)


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if tolerance and isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= tolerance * max(abs(one), abs(other), 1e-2)
    if tolerance and isinstance(one, str) and isinstance(other, str) and _ARRAY.match(one):
        return one.split(" ")[0] == other.split(" ")[0]
    return bool(one == other)


_ARRAY = re.compile(r"\w+\([\d,]*\) [0-9a-f]{64}$")


# --- a campaign -------------------------------------------------------------------------------------------------------


START_UP_S, COMPILING_S = 4.0, 4.0
"""About how long a command takes to say that it trains, and from there, with an empty cache, to its first step."""


def random_strikes(random: Random, undisturbed: Sweep) -> Iterator[Strike]:
    """Strikes without end: every phase by every signal before any comes again, each at a random moment of its phase.

    Args:
        random: seeded.
        undisturbed: the same sweep, finished: how many operations a phase has.
    """
    operations = {phase: undisturbed.matching(phase) for phase in PHASES}
    while True:
        pairs = [(phase, number) for phase in PHASES for number in SIGNALS]
        random.shuffle(pairs)
        for phase, number in pairs:
            often = random.random() < 1 / 6
            if phase == "start-up":
                yield Strike(number, phase, delay=random.uniform(0, START_UP_S), reexecuted=often)
            elif phase == "compile":
                yield Strike(number, phase, said=TRAINS, delay=random.uniform(0, COMPILING_S), cold=True)
            elif phase == "step":
                # Every other one of these tells that a run begins: its program is compiled, its first step comes next.
                begun = 1 + 2 * int(sweep_runs(undisturbed) / 2 * random.random() ** 2)
                yield Strike(number, phase, BEGUN, begun, delay=random.uniform(0.01, 0.5), reexecuted=often)
            else:
                # Of a sweep that goes on, only the rest is left: late operations may never come.
                count = 1 + int(operations[phase] / 2 * random.random() ** 2)
                delay = random.choice([0.0, random.uniform(0, 0.03)])
                yield Strike(number, phase, PHASES[phase], count, delay=delay, reexecuted=often)


BEGUN = r"rename \S+ {out}/runs/[^/]+/summary\.json"
"""Done twice for each run: when it begins, and with its results."""


def sweep_runs(sweep: Sweep) -> int:
    """How many runs a finished sweep has."""
    return len(run_folders(sweep.out))


@dataclass
class Figures:
    """What a campaign counts."""

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    missed: int = 0
    starts: int = 0
    steps_executed: int = 0
    steps_resumed: int = 0
    restarts_resumed: int = 0
    exit_seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    sweeps: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, starts: Sequence[Start]) -> None:
        """Count a sweep's starts."""
        self.sweeps[name] += 1
        self.starts += len(starts)
        for start in starts:
            self.steps_executed += executed(start)
            self.steps_resumed += resumed(start)
            self.restarts_resumed += resumed(start) > 0
            if start.strike is not None and start.struck:
                self.kills[name, start.phase, start.strike.signal.name] += 1
                if _stopped(start):
                    self.exit_seconds[start.phase in IN_TRAINING].append(start.seconds)
            elif start.strike is not None:
                self.missed += 1

    @property
    def total(self) -> int:
        """Kills so far."""
        return self.kills.total()

    def summary(self) -> dict[str, Any]:
        """As JSON holds it."""

        def by(part: Callable[[tuple[str, str, str]], str]) -> dict[str, int]:
            counts: Counter[str] = Counter()
            for key, count in self.kills.items():
                counts[part(key)] += count
            return dict(counts)

        return {
            "kills": self.total,
            "by_sweep": by(lambda key: key[0]),
            "by_phase": by(lambda key: key[1]),
            "by_signal": by(lambda key: key[2]),
            "by_phase_and_signal": by(lambda key: f"{key[1]}, {key[2]}"),
            "strikes_that_came_after_the_end": self.missed,
            "sweeps": dict(self.sweeps),
            "starts": self.starts,
            "starts_that_resumed_a_run": self.restarts_resumed,
            "steps_executed": self.steps_executed,
            "steps_not_executed_again": self.steps_resumed,
            "saved_and_ended_after_signal_while_steps_were_made": _spread(self.exit_seconds[True]),
            "ended_after_signal_while_compiling_or_beginning": _spread(self.exit_seconds[False]),
        }


def _spread(seconds: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "count": len(seconds),
        "median_seconds": round(statistics.median(seconds), 3) if seconds else None,
        "max_seconds": round(max(seconds), 3) if seconds else None,
    }
