"""Trackers: `Background` shields training from whatever a tracker does; W&B gets the record's numbers, offline."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import KEY as KEY_OF_FAKE
from fake_wandb import FakeWandb, environment, inspect, known_run, serve
from hypothesis import given
from hypothesis import strategies as st

from stability.tracking.names import tracked_name
from stability.tracking.tracker import Background, NoTracker, TrackedRun, TrackedSweep, Tracker

METHODS = ("start", "log", "finish", "analysed", "close")
SWEEP = TrackedSweep("id", "sweep", Path("sweep"), {}, {}, {})


def run_of(name: str) -> TrackedRun:
    return TrackedRun(name, name, "sweep", "train", (), {}, Path(name))


class Recorder:
    """Notes each call; `on` may do something else first at a method of its choice."""

    def __init__(self, **on: Callable[[], Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self._on = on

    def _call(self, method: str, *arguments: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.calls.append((method, *arguments))
        self._on.get(method, lambda: None)()

    def start(self, run: TrackedRun) -> None:
        self._call("start", run.id)

    def log(self, run_id: str, row: Any) -> None:
        self._call("log", run_id, row)

    def finish(self, run_id: str, summary: Any) -> None:
        self._call("finish", run_id, summary)

    def analysed(self, sweep: TrackedSweep) -> None:
        self._call("analysed", sweep.name)

    def close(self) -> None:
        self._call("close")

    def closing_words(self) -> list[str]:
        self._call("closing_words")
        return ["look", "there"]


def use(tracked: Tracker, run_id: str = "a") -> None:
    tracked.start(run_of(run_id))
    tracked.log(run_id, {"step": 0})
    tracked.log(run_id, {"step": 1})
    tracked.finish(run_id, {"status": "finished"})
    tracked.analysed(SWEEP)


EXPECTED = [
    ("start", "a"),
    ("log", "a", {"step": 0}),
    ("log", "a", {"step": 1}),
    ("finish", "a", {"status": "finished"}),
    ("analysed", "sweep"),
    ("close",),
]


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=40))
def test_calls_arrive_complete_in_order_and_in_one_other_thread(steps: list[tuple[str, int]]) -> None:
    recorder, said = Recorder(), []
    background = Background(recorder, said.append)
    row: dict[str, float | int | None] = {}
    for run_id, step in steps:
        row["step"] = step  # the caller may use its row again
        background.log(run_id, row)
    background.close()
    assert recorder.calls == [*(("log", run_id, {"step": step}) for run_id, step in steps), ("close",)]
    assert recorder.threads == {"tracker"}
    assert said == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [ValueError("no\nnetwork"), SystemExit(3), KeyboardInterrupt()])
def test_a_tracker_that_raises_is_said_once_and_left_alone(method: str, error: BaseException) -> None:
    def fail() -> None:
        raise error

    recorder, said = Recorder(**{method: fail}), []
    background = Background(recorder, said.append)
    use(background)
    use(background, "b")
    background.close()
    background.close()
    (line,) = said
    assert "\n" not in line
    assert "training goes on" in line
    assert type(error).__name__ in line
    if method != "close":
        first = next(i for i, call in enumerate(EXPECTED) if call[0] == method)
        assert recorder.calls == [*EXPECTED[: first + 1], ("close",)]


def test_a_warning_that_fails_goes_no_further() -> None:
    def refuse(line: str = "") -> None:
        raise RuntimeError(line)

    background = Background(Recorder(log=refuse), refuse)
    use(background)
    background.close()


@pytest.mark.parametrize(
    ("method", "lost"),
    [
        ("start", "events not delivered: 5"),
        ("finish", "events not delivered: 2"),
        ("close", "its last data may be missing"),
    ],
)
def test_a_tracker_that_hangs_holds_nobody_up(method: str, lost: str) -> None:
    hung, release = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        release.wait(10)

    recorder, said = Recorder(**{method: hang}), []
    background = Background(recorder, said.append)
    began = time.perf_counter()
    use(background)
    assert time.perf_counter() - began < 0.5
    closing = threading.Thread(target=background.close, args=(0.2,))
    closing.start()
    assert hung.wait(5)
    closing.join(5)
    assert time.perf_counter() - began < 2
    assert said == [f"Tracking did not finish within 0.2 s: {lost}. The plain files are complete."]
    release.set()
    background._thread.join(5)
    # What was waiting stays undelivered: the process is about to end.
    assert len(recorder.calls) == EXPECTED.index(next(c for c in EXPECTED if c[0] == method)) + 1 + (method != "close")
    assert recorder.calls[-1] == ("close",)


def test_settling_waits_for_what_was_put_and_for_no_tracker_that_will_not_have_it() -> None:
    slow = Recorder(log=lambda: time.sleep(0.1))
    background = Background(slow, lambda line: None)
    use(background)
    background.settle()
    assert len(slow.calls) == 5, "all of it has arrived"
    background.close()
    background.settle()

    release = threading.Event()
    for refusing in (Recorder(start=lambda: 1 / 0), Recorder(start=lambda: release.wait(10))):
        background = Background(refusing, lambda line: None)
        use(background)
        began = time.perf_counter()
        background.settle(0.3)
        assert time.perf_counter() - began < 2
        release.set()
        background.close()


def test_a_tracker_that_lags_too_far_behind_is_given_up() -> None:
    hung, release = threading.Event(), threading.Event()
    recorder, said = Recorder(start=lambda: (hung.set(), release.wait(10))), []
    background = Background(recorder, said.append, queue_limit=50)
    background.start(run_of("a"))
    assert hung.wait(5)
    for step in range(200):
        background.log("a", {"step": step})
    assert len(said) == 1
    assert "50 events wait" in said[0]
    release.set()
    background.close()
    assert recorder.calls == [("start", "a"), ("close",)]


def test_nothing_arrives_after_close() -> None:
    recorder = Recorder()
    background = Background(recorder, lambda line: None)
    background.close()
    use(background)
    assert recorder.calls == [("close",)]


def test_leaving_a_with_statement_closes_unless_interrupted() -> None:
    for error, calls in ((ValueError(), [("close",)]), (KeyboardInterrupt(), [])):
        recorder = Recorder()
        with pytest.raises(type(error)), Background(recorder, lambda line: None):
            raise error
        assert recorder.calls == calls


def test_no_tracker_takes_everything() -> None:
    nothing = NoTracker()
    use(nothing)
    nothing.close()
    assert list(nothing.closing_words()) == []


def test_closing_words_come_after_close_and_never_raise() -> None:
    recorder = Recorder()
    background = Background(recorder, lambda line: None)
    assert list(background.closing_words()) == []
    background.close()
    assert list(background.closing_words()) == ["look", "there"]
    assert recorder.calls == [("close",), ("closing_words",)]
    failing = Background(Recorder(closing_words=lambda: 1 / 0), lambda line: None)
    failing.close()
    assert list(failing.closing_words()) == []


PROGRAM = """
import json, sys
from pathlib import Path
from stability.tracking.tracker import Background, TrackedRun
from stability.tracking.wandb import WandbTracker

imported = sorted({"wandb", "jax"} & set(sys.modules))
said = []
tracker = Background(WandbTracker("project", "someone", "auto", Path(sys.argv[1])), said.append)
names = ["diverged", "failed", "open"]
for name in names:
    config = {"model": {"width": 48}, "optimizer": {"learning_rate": 0.01}}
    tags = ("a" * 80, "", "micro")
    tracker.start(TrackedRun(name, "the " + name, "my_sweep", "train", tags, config, Path(name)))
for step in (0, 10):
    for name in names:
        tracker.log(name, {"step": step, "tokens": step * 100, "loss/train": 5.5 - step / 100, "loss/validation": None,
            "attention_logit/max/block_00/head_00": 1.0})
for name in names[:2]:
    tracker.finish(name, {"status": name, "loss/validation": 2.5})
tracker.close(30)
print(json.dumps({"imported": imported, "said": said, "jax": "jax" in sys.modules}))
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Three runs tracked by the real W&B in a process of their own, with empty home and working folders."""
    root = tmp_path_factory.mktemp("tracked")
    (root / "cwd").mkdir()
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, "../sweep"]
    done = subprocess.run(
        command, cwd=root / "cwd", env=environment(root / "home"), capture_output=True, text=True, timeout=120
    )
    return root, done


def test_wandb_says_nothing_and_is_imported_late(tracked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = tracked
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"imported": [], "said": [], "jax": False}
    assert done.returncode == 0


def test_wandb_writes_only_under_its_folder(tracked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, _ = tracked
    assert sorted(path.name for path in root.iterdir()) == ["cwd", "home", "sweep"]
    assert list((root / "cwd").iterdir()) == []
    assert list((root / "home").iterdir()) == []
    assert [path.name for path in (root / "sweep").iterdir()] == ["wandb"]


def of_run(root: Path, run_id: str) -> list[dict[str, Any]]:
    (file,) = (root / "sweep").rglob(f"run-{run_id}.wandb")
    return inspect(file, root / "home")


def test_wandb_has_the_numbers_of_the_record(tracked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    records = of_run(tracked[0], "diverged")
    first, *_, last = [record["run"] for record in records if record["type"] == "run"]
    assert (first["run_id"], first["display_name"]) == ("diverged", "the diverged")
    assert (first["run_group"], first["job_type"]) == ("my_sweep", "train")
    assert (first["project"], first["entity"]) == ("project", "someone")
    assert first["tags"] == ["a" * 64, "micro"]
    assert last["tags"] == ["a" * 64, "micro", "diverged"]
    config = first["config"]["update"]
    assert config["model"] == {"width": 48}
    assert config["optimizer"] == {"learning_rate": 0.01}
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    ours = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert ours == [
        {"step": 0, "tokens": 0, "loss/train": 5.5, "loss/validation": "NaN"},
        {"step": 10, "tokens": 1000, "loss/train": 5.4, "loss/validation": "NaN"},
    ]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert [metric.get("name") or (metric["glob_name"], metric["step_metric"]) for metric in metrics] == [
        "step",
        "tokens",
        ("*", "step"),
    ]
    summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert {"status": "diverged", "loss/validation": 2.5, "max/loss/train": 5.5, "min/loss/train": 5.4} in summaries
    assert records[-1]["exit"]["exit_code"] == 0


@pytest.mark.parametrize("run_id", ["failed", "open"])
def test_wandb_marks_a_run_without_a_result_as_failed(
    run_id: str, tracked: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    assert of_run(tracked[0], run_id)[-1]["exit"]["exit_code"] == 1


RESUMED = """
import json, os, signal, sys, time
from pathlib import Path
from stability.tracking.tracker import TrackedRun
from stability.tracking.wandb import WandbTracker

def row(step, kind):
    if kind == "evaluated":
        return {"step": step, "tokens": step, "loss/validation": 3.0 + 1 / (step + 1)}
    names = [f"gradient/rms/tensor_{i}" for i in range(40)]
    logit = float(step)
    return {"step": step, "tokens": step, "loss/train": 4 / (step + 7), "attention_logit/max": logit,
        **{name: (i + 1) / (step + 3) for i, name in enumerate(names)}}

def rows(start, end):
    for step in range(start, end, 10):
        if step % 50 == 0:
            yield row(step, "evaluated")
        yield row(step, "observed")

folder, mode, part, end = Path(sys.argv[1]), *sys.argv[2:]
tracker = WandbTracker("project", "someone", mode, folder)
RUNS = (("early", 500), ("late", 1500), ("before", 0))
for name, checkpoint in RUNS:
    known = () if part == "first" else tuple(rows(0, checkpoint))
    config = {"learning_rate": 0.1, "host": {"part": part}}  # another host is no reason to stop
    tracker.start(TrackedRun(name, name, "sweep", "train", (), config, folder, rows=known))
    for one in rows(0, 1500) if part == "first" else rows(checkpoint, 2000):
        tracker.log(name, one)
    if part == "first":
        tracker.log(name, row(1500, "evaluated"))  # what is trained beside it has not been measured yet
if end == "kill":
    for name, _ in RUNS:
        while not any(file.stat().st_size >= 1 << 16 for file in folder.glob(f"wandb/*/run-{name}.wandb")):
            time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
if end == "finish":
    for name, _ in RUNS:
        tracker.log(name, row(2000, "evaluated"))
        tracker.finish(name, {"status": "finished"})
tracker.close()
print(json.dumps({"rows": [*rows(0, 2000), row(2000, "evaluated")], "words": tracker.closing_words()}))
"""
IDS = ("early", "late", "before")


@pytest.mark.parametrize(
    ("mode", "end", "synced"),
    [
        ("offline", "kill", False),
        ("offline", "interrupt", True),
        ("online", "interrupt", False),
    ],
)
def test_a_run_that_goes_on_keeps_its_id_and_has_every_row_once(
    mode: str, end: str, synced: bool, tmp_path: Path
) -> None:
    fake, folder = FakeWandb({}), tmp_path / "sweep"
    with serve(fake) as url:
        env = environment(tmp_path / "home", WANDB_BASE_URL=url, WANDB_API_KEY=KEY_OF_FAKE)

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=120)

        first = run("-c", RESUMED, str(folder), mode, "first", end)
        assert first.returncode == (-signal.SIGKILL if end == "kill" else 0), first.stderr
        if synced:
            run("-m", "wandb", "sync", str(folder / "wandb"))
        if end == "interrupt":
            assert {place[2]: rows[-1]["_step"] for place, rows in fake.sent.items()} == dict.fromkeys(IDS, 1490)
        second = run("-c", RESUMED, str(folder), mode, "second", "finish")
        assert second.returncode == 0, second.stderr
        if mode == "offline":
            for id_ in IDS:
                (file,) = folder.glob(f"wandb/*/run-{id_}.wandb")
                assert known_run(inspect(file, tmp_path / "home"))["name"] == id_
            sync = run("-m", "wandb", "sync", str(folder / "wandb"))
            assert "ERROR" not in sync.stderr
    assert fake.unknown == []
    wanted: dict[int, dict[str, float]] = {}
    said = json.loads(second.stdout)
    if mode == "online":
        assert said["words"] == [f"On W&B: {fake.url}/someone/project/groups/sweep/workspace"]
    else:
        assert said["words"][0].startswith("W&B: 3 runs on this disk only.")
    for row in said["rows"]:
        wanted.setdefault(row["step"], {}).update({tracked_name(name): value for name, value in row.items()})
    assert {place[2] for place in fake.sent} == set(IDS)
    assert all(config["host"]["value"] == {"part": "second"} for config in fake.configs.values())
    for place, rows in fake.sent.items():
        assert [row["_step"] for row in rows] == sorted(wanted)
        sent = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
        assert sent == list(wanted.values())
        # Extremes are of the whole run, whichever start saw them.
        assert fake.summaries[place]["max/attention_logit/max"] == 1990
        assert fake.summaries[place]["first_step_above/attention_logit_max_1e2"] == 110
        assert fake.summaries[place]["min/loss/train"] == 4 / 1997


MODES = """
import json, os, sys
import wandb
from stability.tracking.wandb import resolve_mode
from stability.errors import InputError

before = dict(os.environ)
for mode, variables in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before | variables)
    try:
        print(resolve_mode(mode))
    except InputError as error:
        print(error)
    wandb.teardown()
"""
KEY = {"WANDB_API_KEY": "0" * 40}
SERVER = "http://localhost:1"  # never asked: finding a key sends nothing
OFFLINE_BY_SETTING = {"WANDB_CONFIG_DIR": "offline_by_setting"}
MODE_CASES: list[tuple[str, dict[str, str], str]] = [
    ("auto", {}, "offline"),
    ("auto", KEY, "online"),
    ("auto", {"NETRC": "netrc", "WANDB_BASE_URL": SERVER}, "online"),
    ("auto", {"NETRC": "netrc"}, "offline"),
    ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
    ("auto", {**KEY, "WANDB_MODE": "dryrun"}, "offline"),
    ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
    ("auto", {**KEY, **OFFLINE_BY_SETTING}, "offline"),
    ("offline", {**KEY, "WANDB_MODE": "online"}, "offline"),
    ("online", {**KEY, "WANDB_MODE": "offline"}, "online"),
    ("auto", {"WANDB_MODE": "online"}, "WANDB_MODE=online: no W&B API key is configured. "),
    ("online", {}, "tracking.mode=online: no W&B API key is configured. Run `wandb login`"),
]


def test_the_mode_is_what_wandb_is_set_up_for(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine localhost:1 login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "offline_by_setting").mkdir()
    (tmp_path / "offline_by_setting" / "settings").write_text("[default]\nmode = offline\n")
    cases = json.dumps([case[:2] for case in MODE_CASES])
    env = environment(tmp_path / "home", WANDB_CACHE_DIR=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", MODES, cases], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    found = done.stdout.splitlines()
    assert [line[: len(case[2])] for line, case in zip(found, MODE_CASES, strict=True)] == [c[2] for c in MODE_CASES]


def test_wandb_disabled_is_never_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stability.tracking.wandb import WandbTracker

    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WandbTracker("project", None, "disabled", tmp_path / "sweep")
    use(tracker)
    tracker.close()
    assert list(tmp_path.iterdir()) == []
