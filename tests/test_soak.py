"""The soak benchmark: its arithmetic, and that it sees a process train."""

import sys
from pathlib import Path

import pytest

from benchmarks.soak import POINTS, parts, soak, trend


@pytest.mark.parametrize("slope", [0.0, 0.5, -2.0])
def test_a_slope_is_recovered_whatever_the_start_was(slope: float) -> None:
    steps = [100.0 * i for i in range(1, 201)]
    values = [1e6 if i < 20 else 7.0 + slope * step / 1000 for i, step in enumerate(steps)]  # 20: a tenth, warming up
    found = trend(steps, values)
    assert found["slope"] == pytest.approx(slope, abs=1e-5)
    assert found["first_tenth"] == found["highest"] == 1e6
    assert found["last_tenth"] == pytest.approx(7.0 + slope * 19.05, abs=1e-3)
    assert len(found["series"]) == POINTS
    assert found["series"][0] == [100.0, 1e6]


def test_a_process_is_watched_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABILITY_NO_REEXECUTION", "1")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "orig_argv", sys.orig_argv)
    long, short = (soak(words, every_s=0.001) for words in parts(600, 3, tmp_path).values())
    assert long["steps"] == 600
    assert short["steps"] == 3 * 30
    assert long["samples"] >= 10
    assert long["memory_mb"]["last_tenth"] > 100
    assert long["threads"]["first_tenth"] >= 1
    assert 0 < long["ms_a_step"]["last_tenth"] < 1000
    assert long["open_files"]["last_tenth"] <= long["open_files"]["first_tenth"] + 3
