"""What the terminal shows: times and numbers as people write them, a time left that comes true, and whole lines."""

import io
import math
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from stability.tracking import console as console_module
from stability.tracking import live as live_module
from stability.tracking.console import Console, QuietConsole, duration, number
from stability.tracking.live import LiveConsole, RunFacts, console_for

FINISHED = {"status": "finished", "loss_validation": 2.345, "attention_logit_max": 12345.0}


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Text output that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (console_module, live_module):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def console(
    work: dict[str, float], *, kinds: dict[str, int] | None = None, is_terminal: bool = False, **more: Any
) -> Any:
    return Console(work=work, kinds=kinds or dict.fromkeys(work, 0), out=Terminal(is_terminal), _mark=100.0, **more)


def text(shown: Console) -> str:
    assert isinstance(shown.out, io.StringIO)
    return shown.out.getvalue()


def seconds_in(said: str) -> float:
    """The seconds that a duration of `duration`'s own making stands for."""
    value, unit = said.split()
    if unit == "s":
        return float(value)
    large, small = value.split(":")
    return (60 * int(large) + int(small)) * {"min": 1, "h": 60}[unit]


def left(line: str) -> float | None:
    """Seconds left that a line tells, None where it tells none."""
    if not line.rstrip().endswith(" left"):
        return None
    return seconds_in(" ".join(line.rstrip().removesuffix(" left").split()[-2:]))


def train(shown: Any, clock: Clock, fingerprint: str, seconds: float, every: int = 10) -> list[tuple[str, float]]:
    """Drive one run of 100 steps at a constant speed; what each report added to the output, and when."""
    reports = []
    for step in (*range(every, 101, every), None):
        before = len(text(shown))
        if step is None:
            shown.ended(fingerprint, fingerprint, FINISHED, seconds)
        else:
            clock.now += seconds * every / 100
            shown.progress(fingerprint, fingerprint, step, 100)
        reports.append((text(shown)[before:], clock.now))
    return reports


# --- times and numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3.0, "0 s"),
        (0.0, "0 s"),
        (8.4, "8 s"),
        (59.4, "59 s"),
        (60.0, "1:00 min"),
        (200.9, "3:20 min"),
        (3599.0, "59:59 min"),
        (3600.0, "1:00 h"),
        (18420.0, "5:07 h"),
        (1e6, "277:46 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(st.floats(0, 1e7))
def test_a_duration_is_right_to_its_last_digit(seconds: float) -> None:
    said = duration(seconds)
    precision = 60 if said.endswith("h") else 1
    assert abs(seconds_in(said) - seconds) <= precision


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_longer_time_never_reads_shorter(a: float, b: float) -> None:
    assert seconds_in(duration(min(a, b))) <= seconds_in(duration(max(a, b)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0.0, "0.000"),
        (2.34567, "2.346"),
        (-7.1, "-7.100"),
        (99.9, "99.900"),
        (100.0, "1.0e+02"),
        (-12345.0, "-1.2e+04"),
    ],
)
def test_numbers_are_short(value: float | None, said: str) -> None:
    assert number(value) == said


# --- time left --------------------------------------------------------------------------------------------------------


def test_the_time_left_comes_true_when_runs_cost_what_they_should(clock: Clock) -> None:
    work = {f"run{i}": 1.0 + i for i in range(5)}
    shown = console(work, is_terminal=True)
    shown.compiled(2.0)
    end = clock.now + 40.0 * sum(work.values())
    reports = [report for name, cost in work.items() for report in train(shown, clock, name, 40.0 * cost)]
    told = [(said, end - now) for line, now in reports if (said := left(line)) is not None]
    assert len(told) > 50
    for said, truth in told:
        assert said == pytest.approx(truth, abs=1.0)


def test_the_time_left_learns_the_speed_of_each_structure(clock: Clock) -> None:
    names = [f"{kind}{i}" for kind in "ab" for i in range(3)]
    shown = console(dict.fromkeys(names, 1.0), kinds={name: int(name[0] == "b") for name in names}, is_terminal=True)
    shown.compiled(1.0)
    for name in names[:3]:
        line, _ = train(shown, clock, name, 30.0)[-1]
    assert left(line) == pytest.approx(3 * 30 + 1, abs=1), "a structure never seen is as fast as what was seen"
    shown.compiled(1.0)
    for name in names[3:5]:
        line, _ = train(shown, clock, name, 300.0)[-1]
    assert left(line) == pytest.approx(300, abs=1)


def test_a_run_that_ends_early_takes_its_time_with_it(clock: Clock) -> None:
    shown = console({"a": 1.0, "b": 1.0}, is_terminal=True)
    shown.compiled(1.0)
    for step in (10, 20):
        clock.now += 10.0
        shown.progress("a", "a", step, 100)
    shown.ended("a", "a", {"status": "diverged"}, 20.0)
    assert left(text(shown).splitlines()[-1]) == pytest.approx(100, abs=1)


def test_a_resumed_run_does_not_count_work_of_an_earlier_process(clock: Clock) -> None:
    shown = console({"a": 1.0, "b": 1.0}, is_terminal=True)
    shown.compiled(1.0)
    for step in (82, 84, 86, 88, 90):
        clock.now += 2.0
        shown.progress("a", "a", step, 100)
    # 10 s for 8 to 10 % of a run, so about 100 s a run, 1.1 runs left.
    assert left(text(shown).split("\r\x1b[K")[-1]) == pytest.approx(110, rel=0.3)


@given(
    speeds=st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=5),
    work=st.floats(1e-6, 1e18),
    kinds=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    compiled=st.booleans(),
)
def test_the_time_left_is_never_negative_and_ends_at_nothing(
    speeds: list[float], work: float, kinds: list[int], compiled: bool
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console_module, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
        names = [f"run{i}" for i in range(len(speeds))]
        shown = console(
            {name: work * (i + 1) for i, name in enumerate(names)},
            kinds={name: kinds[i] for i, name in enumerate(names)},
            is_terminal=True,
        )
        for name, seconds in zip(names, speeds, strict=True):
            if compiled:
                shown.compiled(1.0)
            for line, _ in train(shown, clock, name, seconds):
                said = left(line)
                assert said is None or (said >= 0 and math.isfinite(said))
        assert left(line) is None


def test_no_time_is_told_before_enough_was_seen(clock: Clock) -> None:
    shown = console({"a": 1.0}, is_terminal=True)
    clock.now += 0.5
    shown.progress("a", "a", 1, 100)
    assert "left" not in text(shown)


# --- lines ------------------------------------------------------------------------------------------------------------


def test_every_run_that_ends_has_one_line_which_says_what_it_came_to(clock: Clock) -> None:
    shown = console({"a": 1.0, "b": 1.0, "c": 1.0}, done=4)
    for name in "ab":
        train(shown, clock, name, 5.0)
    shown.ended("c", "c", {"status": "failed", "error": "ValueError: no"}, 1.0)
    lines = [line for line in text(shown).splitlines() if "step" not in line]
    assert [line.split("]")[0] for line in lines] == ["[5/7", "[6/7", "[7/7"]
    assert "finished" in lines[0]
    assert "2.345" in lines[0]
    assert "1.2e+04" in lines[0]
    assert "ValueError: no" in lines[2]


def test_the_count_of_runs_stays_the_same_from_start_to_end(clock: Clock) -> None:
    shown = console({"a": 1.0, "b": 1.0}, is_terminal=True, done=1)
    for name in "ab":
        for line, _ in train(shown, clock, name, 100.0):
            assert "/3]" in line


@pytest.mark.parametrize("seconds", [0.1, 1000.0])
def test_a_log_holds_whole_lines_only(clock: Clock, seconds: float) -> None:
    shown = console({"a": 1.0, "b": 1.0})
    shown.say("hello")
    for name in "ab":
        for line, _ in train(shown, clock, name, seconds):
            assert not line or line.endswith("\n")
    assert not {"\r", "\x1b"} & set(text(shown))


def test_a_log_is_told_of_progress_now_and_then_only(clock: Clock) -> None:
    shown = console({"a": 1.0})
    train(shown, clock, "a", 100.0, every=1)
    assert 3 <= text(shown).count("step") <= 4


def test_a_terminal_s_progress_gives_way_to_the_lines_that_stay(clock: Clock) -> None:
    shown = console({"a": 1.0}, is_terminal=True)
    clock.now += 5.0
    shown.progress("a", "a", 10, 100)
    assert not text(shown).endswith("\n")
    shown.say("something else")
    assert text(shown).endswith("\r\x1b[Ksomething else\n")
    shown.say("and more")
    assert text(shown).endswith("\nand more\n")


# --- the live table ---------------------------------------------------------------------------------------------------


def facts(count: int) -> dict[str, RunFacts]:
    return {f"r{i:02d}": RunFacts("qk_layernorm=none", f"w{i}", 0.01 * (i + 1), i) for i in range(count)}


def live(count: int, height: int, monkeypatch: pytest.MonkeyPatch) -> LiveConsole:
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("COLUMNS", "100")
    runs = facts(count)
    return LiveConsole(
        work=dict.fromkeys(runs, 1.0), kinds=dict.fromkeys(runs, 0), out=Terminal(True), _mark=100.0, facts=runs
    )


def frame(shown: LiveConsole) -> list[str]:
    """The lines of the table as they stand now, without colours."""
    plain = RichConsole(file=io.StringIO(), width=100, force_terminal=False)
    plain.print(shown._view())
    output = plain.file
    assert isinstance(output, io.StringIO)
    return [line.rstrip() for line in output.getvalue().splitlines() if line.strip()]


def test_runs_are_rows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = live(3, 24, monkeypatch)
    shown.started(["r00"])
    assert frame(shown)[1].split() == ["qk_layernorm=none", "w0", "0.01", "0", "-", "-", "starting"]
    for step in (10, 20, 50):
        clock.now += 2.0
        shown.row(
            "r00", {"step": step, "loss/train": 3.25, "attention_logit/max": 7.5, "speed/tokens_per_second": 640.0}
        )
        shown.progress("r00", "first", step, 100)
    lines = frame(shown)
    assert lines[1].split() == ["qk_layernorm=none", "w0", "0.01", "0", "3.250", "7.500", "50/100"]
    assert lines[2].split()[-1] == "waiting"
    assert "0/3 runs" in lines[-1]
    assert "640 tokens/s" in lines[-1]
    assert left(lines[-1]) == pytest.approx(25.0, abs=1.0)  # 40 steps took 4 s; 250 remain
    shown.ended("r00", "first", {**FINISHED, "status": "diverged", "loss_validation": None}, 5.0)
    assert frame(shown)[1].split() == ["qk_layernorm=none", "w0", "0.01", "0", "-", "1.2e+04", "diverged"]
    shown.say("[bold]one\nmore[/bold]")
    shown.close()
    assert "[bold]one" in text(shown), "what is said is text, not markup"


@pytest.mark.parametrize(("count", "height"), [(1, 24), (5, 10), (60, 24), (60, 3), (2000, 50)])
def test_the_table_fits_and_follows_the_run_under_way(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, count: int, height: int
) -> None:
    shown = live(count, height, monkeypatch)
    for i in sorted({0, count // 2, count - 1}):
        for j in range(i):
            shown._lines[f"r{j:02d}"].status = "finished"
        shown._lines[f"r{i:02d}"].status = "10/100"
        window = shown._window()
        assert len(window) <= max(3, height - 6)
        assert shown._lines[f"r{i:02d}"] in window
        assert len(window) == min(count, max(3, height - 7))


@pytest.mark.parametrize(
    ("progress", "is_terminal", "environment", "kind"),
    [
        ("auto", True, {"TERM": "xterm"}, LiveConsole),
        ("auto", True, {"TERM": "dumb"}, Console),
        ("auto", True, {"TERM": "xterm", "CI": "true"}, Console),
        ("auto", False, {"TERM": "xterm"}, Console),
        ("live", False, {"TERM": "xterm"}, LiveConsole),
        ("lines", True, {"TERM": "xterm"}, Console),
        ("quiet", True, {"TERM": "xterm"}, QuietConsole),
    ],
)
def test_who_shows_what(
    progress: Any, is_terminal: bool, environment: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = console_for(progress, {}, work={}, kinds={}, out=Terminal(is_terminal))
    assert type(made) is kind


def test_quiet_says_what_went_wrong_and_no_more(clock: Clock) -> None:
    shown = QuietConsole(work={"a": 1.0, "b": 1.0}, kinds={"a": 0, "b": 0}, out=Terminal(False), _mark=100.0)
    train(shown, clock, "a", 60.0)
    assert text(shown) == ""
    shown.ended("b", "second", {"status": "failed", "error": "ValueError: no"}, 1.0)
    assert text(shown) == "[2/2] second".ljust(len("[2/2] ") + 44) + " failed: ValueError: no\n"
