"""W&B down: whatever its server or its library does, the sweep goes on, its record is whole, and W&B can have it later.

The default suite tries every kind of failing server on the tracker, and every call of the library; the slow tests try
them on whole sweeps in processes of their own, with the timeouts that users get.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY
from fake_wandb import KEY, FakeWandb, Trouble, environment, serve
from test_sweep import stories
from test_tracked_sweeps import start

from stability.tracking.files import read_json
from stability.tracking.names import tracked_name
from stability.tracking.record import RunFolder, read_rows, run_folders
from stability.tracking.tracker import Background, TrackedRun, TrackedSweep
from stability.tracking.wandb import FINISH_TIMEOUT_S, INIT_TIMEOUT_S, WandbTracker

SECRET = "s3cr3tValue0123456789"
NO_SERVER = "http://127.0.0.1:9"  # "discard": nobody listens

TROUBLES: dict[str, Trouble | None] = {
    "nobody listens": None,
    "hangs": Trouble("hangs"),
    "hangs after a while": Trouble("hangs", after=12),
    "drops every connection": Trouble("drops"),
    "goes down after a while": Trouble("drops", after=12),
    "says 500": Trouble("says", status=500),
    "says 500 after a while": Trouble("says", status=500, after=12),
    "key has expired": Trouble("says", status=401),
    "key expires after a while": Trouble("says", status=401, after=12),
}
FLAKY = Trouble("drops", every=3)
"""A server that fails now and then, which W&B itself makes up for."""


@contextmanager
def troubled(trouble: Trouble | None) -> Iterator[tuple[FakeWandb, str]]:
    """A server in trouble, and its address; of None the address is nobody's."""
    fake = FakeWandb({})
    with serve(fake) as url:
        fake.trouble = trouble
        yield fake, url if trouble else NO_SERVER


def as_recorded(sent: dict[str, Any]) -> dict[str, Any]:
    """A row that W&B was sent without what it adds of its own, and with null for what was not finite."""
    return {key: None if value != value else value for key, value in sent.items() if key[0] != "_"}


def sync(folder: Path, home: Path, url: str) -> None:
    """Send what is on disk, as the command at the end of a sweep says."""
    env = environment(home, WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", folder / "wandb"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr


# --- the server, at the tracker --------------------------------------------------------------------------------------

TRACKED = """
import json, sys, time
from pathlib import Path
from stability.tracking import wandb as tracking
from stability.tracking.record import RunFolder
from stability.tracking.tracker import Background, TrackedRun

folder, said, patience = Path(sys.argv[1]), [], float(sys.argv[2])
tracking.RUN_SETTINGS |= {"init_timeout": patience, "finish_timeout": patience}
tracker = Background(tracking.WandbTracker("project", "someone", "online", folder), said.append)
for name in ("first", "second"):
    run = RunFolder(folder / "runs" / name)
    run.path.mkdir(parents=True)
    config = {"learning_rate": 0.1, "note": sys.argv[3]}
    tracker.start(TrackedRun(name, name, "sweep", "train", (), config, run.path))
    for step in range(0, 100, 10):
        row = {"step": step, "loss/train": 4 / (step + 1), "loss/validation": None}
        run.append([row])
        tracker.log(name, row)
    time.sleep(0.5)
    tracker.finish(name, {"status": "finished", "loss_validation": 2.5})
tracker.close(50)
print(json.dumps({"said": said, "words": list(tracker.closing_words())}))
"""


LIKE_OTHERS = (
    "nobody listens",
    "hangs after a while",
    "drops every connection",
    "says 500 after a while",
    "key has expired",
    "fails now and then",
)
"""Slow: the default suite has one of each kind."""


@pytest.mark.parametrize(
    "kind",
    [
        *(kind for kind in [*TROUBLES, "fails now and then"] if kind not in LIKE_OTHERS),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in LIKE_OTHERS),
    ],
)
def test_runs_go_offline_where_the_server_fails_and_arrive_once(kind: str, tmp_path: Path) -> None:
    folder, trouble = tmp_path / "sweep", FLAKY if kind == "fails now and then" else TROUBLES[kind]
    with troubled(trouble) as (fake, url):
        env = environment(tmp_path / "home", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
        patience = "30" if trouble is FLAKY else "3"
        command = [sys.executable, "-c", TRACKED, str(folder), patience, f"token={SECRET}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        if trouble is FLAKY:
            assert found["said"] == []
        else:
            (line,) = found["said"]
            assert line.startswith("W&B failed (")
            assert "Training goes on" in line
            assert any(word.strip().startswith("wandb sync ") for word in found["words"])
        fake.trouble = None
        sync(folder, tmp_path / "home", fake.url)
    expected = [{"step": s, "loss/train": 4 / (s + 1), "loss/validation": None} for s in range(0, 100, 10)]
    written = [path for path in (folder / "wandb").rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    for name in ("first", "second"):
        rows = fake.sent["someone", "project", name]
        assert [as_recorded(row) for row in rows] == expected
        summary = fake.summaries["someone", "project", name]
        assert (summary["status"], summary["loss_validation"], summary["max/loss/train"]) == ("finished", 2.5, 4.0)


# --- the library, any call of it ------------------------------------------------------------------------------------

ALWAYS = 10**9
CALLS = (
    "Settings",
    "setup",
    "init",
    "define_metric",
    "log",
    "summary.update",
    "tags",
    "finish",
    "config.update",
    "Table",
    "plot.line",
    "Image",
    "Html",
    "Artifact",
    "Artifact.add_file",
    "Artifact.new_file",
    "log_artifact",
    "teardown",
)
"""Every call of W&B that a tracked sweep makes; a test says that there is no other."""


class Boom(Exception):
    """What W&B raises here."""


@dataclass
class Stub:
    """The library `wandb`, as far as it is called, which raises at the first so many calls of one name.

    Attributes:
        bad: which call raises.
        times: how often.
        called: the names of the calls that were made.
        opened: the runs, in the order in which they were opened.
    """

    bad: str = ""
    times: int = 0
    called: set[str] = field(default_factory=set)
    opened: list["StubRun"] = field(default_factory=list)

    def call(self, name: str) -> None:
        self.called.add(name)
        if name == self.bad and self.times:
            self.times -= 1
            raise Boom(name)

    def quiet(self, name: str, result: Callable[..., Any] = SimpleNamespace) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            self.call(name)
            return result()

        return called

    def module(self) -> SimpleNamespace:
        artifact = SimpleNamespace(add_file=self.quiet("Artifact.add_file"), new_file=self.new_file)
        return SimpleNamespace(
            Settings=self.quiet("Settings"),
            setup=self.quiet("setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))),
            teardown=self.quiet("teardown"),
            init=self.init,
            Table=self.quiet("Table"),
            Image=self.quiet("Image"),
            Html=self.quiet("Html"),
            Artifact=self.quiet("Artifact", lambda: artifact),
            plot=SimpleNamespace(line=self.quiet("plot.line")),
        )

    @contextmanager
    def new_file(self, *_: Any, **__: Any) -> Iterator[Any]:
        self.call("Artifact.new_file")
        with Path("/dev/null").open("wb") as file:
            yield file

    def init(self, **settings: Any) -> "StubRun":
        self.call("init")
        Path(settings["dir"], "wandb").mkdir(parents=True, exist_ok=True)
        self.opened.append(StubRun(self, settings))
        return self.opened[-1]

    def last(self, id_: str) -> "StubRun":
        return [run for run in self.opened if run.settings["id"] == id_][-1]


class StubRun:
    """A run of the stub, which notes what it is given."""

    step, project_url = 0, "https://example.org/project"

    def __init__(self, stub: Stub, settings: dict[str, Any]) -> None:
        self.stub, self.settings = stub, settings
        self.rows: list[dict[str, Any]] = []
        self.end: int | None = None
        self.given: dict[str, Any] = {}
        self.summary = SimpleNamespace(update=self.update)
        self.config = SimpleNamespace(update=stub.quiet("config.update"))
        self.define_metric = stub.quiet("define_metric")
        self.log_artifact = stub.quiet("log_artifact")

    @property
    def offline(self) -> bool:
        return bool(self.settings["mode"] == "offline")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.settings["tags"])

    @tags.setter
    def tags(self, tags: tuple[str, ...]) -> None:
        self.stub.call("tags")

    def update(self, values: dict[str, Any]) -> None:
        self.stub.call("summary.update")
        self.given |= values

    def log(self, row: dict[str, Any], **_: Any) -> None:
        self.stub.call("log")
        self.rows.append(row)

    def finish(self, exit_code: int = 0) -> None:
        self.stub.call("finish")
        self.end = exit_code


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()
    monkeypatch.setitem(sys.modules, "wandb", found.module())
    monkeypatch.setattr("stability.tracking.wandb.has_key", lambda: True)
    return found


STEPS = [{"step": step, "loss/train": 4 / (step + 1)} for step in range(0, 100, 10)]


def follow(folder: Path, said: list[str]) -> None:
    """Two runs at once, one that diverges, and an analysis, told to a tracker behind its shield."""
    tracker = Background(WandbTracker("project", "someone", "online", folder), said.append)
    for name in ("finished", "diverged"):
        (folder / "runs" / name).mkdir(parents=True)
        tracker.start(TrackedRun(name, name, "sweep", "train", ("w32",), {}, folder / "runs" / name))
    for row in STEPS:
        for name in ("finished", "diverged"):
            RunFolder(folder / "runs" / name).append([row])
            tracker.log(name, row)
    for name in ("finished", "diverged"):
        tracker.finish(name, {"status": name})
    (folder / "analysis").mkdir()
    for name in ("sweep.json", "summary.json", "report.html", "analysis/loss.png"):
        (folder / name).write_text("{}")
    tables = {name: [{"curve": "a", "log10_learning_rate": 0, "loss_mean": 1.0}] for name in ("curves", "runs")}
    summary = {"complete": True, "runs": [], "sensitivity": [], "max_stable_learning_rate": [], "claims": []}
    tracker.analysed(TrackedSweep("id", "sweep", folder, {}, summary, tables))
    tracker.close(20)


def test_these_are_all_calls_that_are_made(stub: Stub, tmp_path: Path) -> None:
    said: list[str] = []
    follow(tmp_path, said)
    assert said == []
    assert stub.called == set(CALLS) - {"teardown"}
    stub.bad, stub.times = "log", 1
    follow(tmp_path / "again", said)
    assert stub.called == set(CALLS)


@pytest.mark.parametrize("times", [1, ALWAYS])
@pytest.mark.parametrize("bad", CALLS)
def test_wandb_may_raise_from_any_call(bad: str, times: int, stub: Stub, tmp_path: Path) -> None:
    stub.bad, stub.times = bad, times
    said: list[str] = []
    follow(tmp_path, said)
    off = [line for line in said if line.startswith("Tracking is off")]
    failed = [line for line in said if line.startswith("W&B failed (Boom")]
    assert len(said) == len(off) + len(failed)
    assert len(off) == (times == ALWAYS and bad != "teardown")
    if bad == "teardown":  # called after a failure, and then what it does is all the same
        stub.times, stub.bad = 0, ""
        assert said == []
        return
    assert said, "one line at least"
    if off:
        return
    assert len(failed) == 1
    for name in ("finished", "diverged"):
        run = stub.last(name)
        assert run.rows == [{tracked_name(key): value for key, value in row.items()} for row in STEPS]
        assert (run.end, run.given["status"]) == (0, name)
    assert stub.last("analysis-id").end == 0


SWEEP = ["optimizer.learning_rate=0.01,0.1", "training.evaluate_every=10"]


@pytest.mark.parametrize(
    "bad", ["log", *(pytest.param(call, marks=pytest.mark.slow) for call in CALLS if call != "log")]
)
def test_a_sweep_is_recorded_as_if_there_were_no_wandb(bad: str, stub: Stub, command: Any) -> None:
    tiny = [word for word in TINY if word != "tracking=files"]
    assert command(*tiny, *SWEEP, "tracking=files", "output_dir=without").code == 0
    stub.bad, stub.times = bad, ALWAYS
    outcome = command(*tiny, *SWEEP, "tracking.mode=online", "output_dir=with")
    assert outcome.code == 0, outcome.err
    assert_same_record(Path("without"), Path("with"))
    # Tags, pictures and pages are for runs and figures that this sweep lacks; the library's end is not told.
    quiet = ("tags", "Image", "Html", "teardown")
    assert ("Tracking is off for the rest of this session" in outcome.out) == (bad not in quiet)


OF_THE_CLOCK = {"seconds": 0, "metrics": None}


def assert_same_record(one: Path, other: Path) -> None:
    """All that does not come from a clock, or says where it is, is equal."""
    assert stories(one) == stories(other)
    for mine, theirs in zip(run_folders(one), run_folders(other), strict=True):
        assert mine.read_config() == theirs.read_config()
        summaries = [run.read_summary() or {} for run in (mine, theirs)]
        assert summaries[0] | OF_THE_CLOCK == summaries[1] | OF_THE_CLOCK
        assert sorted(file.name for file in mine.path.iterdir()) == sorted(file.name for file in theirs.path.iterdir())
    first, second = (read_json(folder / "summary.json") | {"sweep": ""} for folder in (one, other))
    assert first == second


# --- the server, at a whole sweep -----------------------------------------------------------------------------------

GRACE_S = 15.0
"""What W&B may take beside its timeouts: importing it, writing again what it did not send, a busy machine."""
LONGEST_S = INIT_TIMEOUT_S + FINISH_TIMEOUT_S + GRACE_S


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The sweep without W&B, and how long it took."""
    root = tmp_path_factory.mktemp("alone")
    took = 0.0
    for _ in range(2):  # compiled for the first
        began = time.perf_counter()
        done = start(root, root / "compiled", *SWEEP, "tracking=files", f"output_dir=out{_}")
        took = time.perf_counter() - began
        assert done.returncode == 0, done.stderr
    return root, took


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TROUBLES, "fails now and then"])
def test_a_sweep_ends_in_time_and_can_be_sent_later(kind: str, alone: tuple[Path, float], tmp_path: Path) -> None:
    root, took = alone
    trouble = FLAKY if kind == "fails now and then" else TROUBLES[kind]
    with troubled(trouble) as (fake, url):
        began = time.perf_counter()
        variables = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        done = start(tmp_path, root / "compiled", *SWEEP, "tracking.mode=online", "output_dir=out", **variables)
        delay = time.perf_counter() - began - took
        print(f"{kind}: {delay:.1f} s longer than without W&B, which took {took:.1f} s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        assert delay < LONGEST_S
        told = [line for line in done.stdout.splitlines() if line.startswith(("W&B failed", "Tracking"))]
        assert len(told) == (trouble is not FLAKY), done.stdout
        assert KEY not in done.stdout
        fake.trouble = None
        sync(tmp_path / "out", tmp_path / "home", fake.url)
    assert_same_record(root / "out1", tmp_path / "out")
    assert len(fake.sent) == 3
    for run in run_folders(tmp_path / "out"):
        rows: dict[int, dict[str, Any]] = {}
        for row in run_rows(run):
            rows.setdefault(row["step"], {}).update(row)
        (sent,) = [sent for place, sent in fake.sent.items() if place[2].startswith(run.path.name.rsplit("-", 1)[-1])]
        assert [row["step"] for row in sent] == list(rows), "every row, once"
        for ours, theirs in zip(rows.values(), sent, strict=True):
            assert as_recorded(theirs) == ours


def run_rows(run: RunFolder) -> list[dict[str, Any]]:
    """A run's rows as W&B is to have them."""
    return [
        {tracked_name(key): value for key, value in row.items() if "/head_" not in key}
        for row in read_rows(run.metrics)
    ]
