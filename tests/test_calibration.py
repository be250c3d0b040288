"""What a machine does: fitted, kept, found again on the same machine only, and used by plans."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import pytest
from quick import QUICKLY

from stability.launching import calibration
from stability.launching.calibration import (
    Calibration,
    Measured,
    calibration_config,
    calibration_path,
    fit,
    keep,
    known_calibration,
    matmul_flops,
)
from tests.conftest import TINY, Command

TRUTH = Calibration(
    date="2026-01-01", device="a test", matmul_flops={"float32": 4e11, "bfloat16": 8e11}, seconds_per_step=2e-4,
    seconds_per_flop=4e-12, seconds_per_byte=2e-11, compile_seconds=2.0, compile_seconds_per_block=0.5,
    start_seconds=0.1, largest_error=0.0,
)  # fmt: skip
MANY = ["optimizer.learning_rate=0.01,0.1", *TINY, "training.steps=3000", "dry_run=true"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", sorted(calibration.SHAPES))
def test_the_fit_finds_what_made_the_times(kind: str) -> None:
    configs = [calibration_config(shape) for shape in calibration.SHAPES[kind]]
    measured = [Measured(one, TRUTH.step_seconds(one), TRUTH.program_seconds(one)) for one in configs]
    found = fit(measured, TRUTH.matmul_flops, "a test")
    for name in ("seconds_per_step", "seconds_per_flop", "seconds_per_byte", "compile_seconds"):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6), name
    assert found.largest_error < 1e-6


def test_no_step_is_foretold_faster_than_matrix_products_run() -> None:
    configs = [calibration_config(shape) for shape in calibration.SHAPES["cpu"]]
    found = fit([Measured(one, 1e-9, 1.0) for one in configs], TRUTH.matmul_flops, "a test")
    assert found.seconds_per_flop == pytest.approx(1 / 4e11)


def test_time_follows_precision_lanes_and_length() -> None:
    config = calibration_config((64, 2, 16, 64))
    overhead = TRUTH.seconds_per_step
    assert TRUTH.step_seconds(config, 3) - overhead == pytest.approx(3 * (TRUTH.step_seconds(config) - overhead))
    fast = dataclasses.replace(config, training=dataclasses.replace(config.training, precision="bfloat16"))
    assert TRUTH.step_seconds(fast) < TRUTH.step_seconds(config)
    steps = config.training.steps + 2 * 512 / 16 / 3
    assert TRUTH.run_seconds(config) == pytest.approx(TRUTH.start_seconds + steps * TRUTH.step_seconds(config))


def test_a_calibration_is_found_again_on_this_machine_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_calibration() is None
    path = calibration_path()
    assert cache in path.parents
    keep(TRUTH)
    assert path.is_file()
    assert known_calibration() == TRUTH
    for name in ("processor", "device_description"):
        with monkeypatch.context() as patch:
            patch.setattr(calibration, name, lambda: "another")
            assert known_calibration() is None
    path.write_text('{"date"')
    assert known_calibration() is None
    path.write_text('{"schema_version": 1, "calibration": {"date": "2026-01-01"}}')
    assert known_calibration() is None


def test_a_plan_tells_time_once_the_machine_is_calibrated(
    command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "calibrate=true does it" in command(*MANY).out
    measured: list[calibration.Shape] = []

    def quick(shape: calibration.Shape) -> Measured:
        measured.append(shape)
        config = calibration_config(shape)
        return Measured(config, TRUTH.step_seconds(config), TRUTH.program_seconds(config))

    monkeypatch.setattr(calibration, "_measured", quick)
    monkeypatch.setattr(calibration, "matmul_flops", lambda precision: TRUTH.matmul_flops[precision])
    first = command(*MANY, "calibrate=true")
    assert "Time: about " in first.out
    assert measured == list(calibration.SHAPES["cpu"])
    again = command(*MANY)
    assert again.out in first.out, "from the cache"
    assert len(measured) == len(calibration.SHAPES["cpu"])


def test_a_structure_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICKLY))
    with calibration.compiling_anew():
        found = calibration._measured((16, 1, 2, 8))
    assert found.step_seconds > 0
    assert found.compile_seconds > 0.1, "compiled, not loaded"
    assert matmul_flops("bfloat16", sizes=(64,), repeats=2) > 1e6


def test_calibrate_is_true_or_false(command: Command) -> None:
    outcome = command(*TINY, "calibrate=maybe")
    assert outcome.code == 2
    assert outcome.err.startswith("error: calibrate=maybe")
