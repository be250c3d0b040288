import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stability.analysis.best_learning_rate import (
    best_learning_rate,
    best_learning_rate_noise_sd,
    best_log_learning_rate_per_seed,
)
from stability.analysis.cells import Cell, cells
from stability.analysis.uncertainty import over_seeds
from stability.errors import InputError
from tests.test_analysis_measures import GRID, table
from tests.worlds import Arm, cell_of, world

NAN = math.nan
CALM = Arm(edge=1e9, edge_jitter=0.0, jump=50.0, loss_initial=None)
"""A bowl without an edge, on which nothing is capped."""
WIDE_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def only(runs: pl.DataFrame, **options: float) -> dict[str, object]:
    (row,) = best_learning_rate(runs, **options).to_dicts()
    return row


def errors(arm: Arm, seeds: int, repetitions: int, noise: float = 0.03) -> list[tuple[Cell, float]]:
    """Cells whose best LR lies anywhere between two LRs of the grid, and its logarithm."""
    rng = np.random.default_rng(seeds)
    found = []
    for _ in range(repetitions):
        best = 0.01 * math.exp(rng.uniform(-0.6, 0.6))
        found.append(
            (cell_of(rng, replace(arm, best=best), learning_rates=WIDE_GRID, seeds=seeds, noise=noise), math.log(best))
        )
    return found


def coverage(arm: Arm, seeds: int, repetitions: int, noise: float = 0.03) -> float:
    covered = []
    for cell, truth in errors(arm, seeds, repetitions, noise):
        noise_sd = best_learning_rate_noise_sd(cell, noise) if seeds == 1 else None
        interval = over_seeds(best_log_learning_rate_per_seed(cell, noise), noise_sd).interval
        assert interval is not None
        covered.append(interval[0] <= truth <= interval[1])
    return float(np.mean(covered))


class TestTheBottom:
    @given(
        st.floats(0.005, 0.1),
        st.floats(-1, 1),
        st.lists(st.floats(0.3, 1.6), min_size=4, max_size=8),
        st.floats(0.001, 0.1),
    )
    def test_a_parabola_is_recovered_on_any_grid(
        self, curvature: float, offset: float, steps: list[float], noise: float
    ) -> None:
        logs = -4 + np.cumsum(steps)
        best = logs[len(logs) // 2] + offset * 0.15
        losses = 2 + curvature * (logs - best) ** 2
        centre = int(losses.argmin())
        assume(losses[[centre - 1, centre + 1]].max() < losses.min() + 0.5)
        row = only(table([losses.tolist()], grid=np.exp(logs).tolist()), loss_noise=noise)
        assert row["value"] == pytest.approx(math.exp(best), rel=1e-6)
        assert (row["at_edge"], row["basis"], row["reason"]) == (False, "noise_floor", None)

    def test_scaling_the_learning_rates_scales_the_best(self) -> None:
        losses = [[3, 2.2, 2.0, 2.05, 2.4, 3], [3, 2.3, 2.1, 2.0, 2.4, None]]
        first, second = (only(table(losses, grid=[scale * rate for rate in GRID])) for scale in (1, 7))
        for key in ("value", "interval_low", "interval_high"):
            assert second[key] == pytest.approx(7 * first[key])
        assert first["interval_low"] < first["value"] < first["interval_high"]
        assert first["basis"] == "seeds"
        assert second["grid_step"] == pytest.approx(first["grid_step"])

    def test_per_seed_then_averaged(self) -> None:
        losses = [[3, 2.2, 2.0, 2.05, 2.4, 3], [3, 2.3, 2.1, 2.0, 2.4, None]]
        (cell,) = cells(table(losses))
        per_seed = best_log_learning_rate_per_seed(cell)
        assert per_seed == pytest.approx([math.log(only(table([row]))["value"]) for row in losses])
        assert only(table(losses))["value"] == pytest.approx(math.exp(per_seed.mean()))

    def test_a_flat_curve_uses_more_points(self) -> None:
        # Symmetric about 10^-2.25 but for the least loss, which noise has put at its side.
        flat = [[2.2, 2.08, 2.05, 2.04, 2.08, 2.2]]
        grid = [10**power for power in (-3.5, -3, -2.5, -2, -1.5, -1)]
        wide, narrow = (only(table(flat, grid=grid), loss_noise=noise)["value"] for noise in (0.03, 0.001))
        assert abs(math.log10(wide) + 2.25) < 0.03
        assert math.log10(narrow) > -2.2

    def test_what_lies_beyond_a_rise_does_not_count(self) -> None:
        first = only(table([[3, 2.5, 2.0, 2.3, 2.02, 2.01]]))["value"]
        assert first == pytest.approx(only(table([[3, 2.5, 2.0, 2.3, 4, 4]]))["value"])

    @pytest.mark.parametrize("beyond", [2.6, 4.0, 7.0, None])
    def test_the_height_of_a_jump_does_not_matter(self, beyond: float | None) -> None:
        plateau = only(table([[2.6, 2.1, 2.0, 2.51, 2.6, 2.7]]))["value"]
        assert only(table([[2.6, 2.1, 2.0, beyond, beyond, beyond]]))["value"] == pytest.approx(plateau)
        assert only(table([[2.6, 2.1, 2.0, beyond, None, None]], initial=None))["value"] == pytest.approx(plateau)

    def test_it_lies_within_half_a_step_of_the_least_loss_of_a_steep_curve(self) -> None:
        value = only(table([[2.6, 2.001, 2.0, None, None, None]]))["value"]
        assert math.sqrt(0.003 * 0.01) <= value <= 0.01

    def test_nothing_but_the_losses_counts(self) -> None:
        runs = world(np.random.default_rng(0), seeds=2)[0]
        shuffled = runs.sample(fraction=1, shuffle=True, seed=1).with_columns(output_rms=pl.lit(0.0))
        assert best_learning_rate(shuffled).equals(best_learning_rate(runs))


class TestNoBottom:
    @pytest.mark.parametrize(
        ("losses", "end", "beyond"),
        [([2, 2.5, 3, 3, 3, 3], 0.001, "below"), ([3, 3, 3, 2.5, 2.2, 2], 0.3, "above")],
    )
    def test_at_an_end_of_the_grid(self, losses: list[float], end: float, beyond: str) -> None:
        row = only(table([losses]))
        assert (row["value"], row["at_edge"], row["interval_low"], row["basis"]) == (end, True, None, None)
        assert beyond in row["reason"]
        (cell,) = cells(table([losses]))
        assert np.isnan(best_log_learning_rate_per_seed(cell)).all()
        assert best_learning_rate_noise_sd(cell) is None

    def test_an_end_that_ties_with_an_inner_one_is_inside(self) -> None:
        assert only(table([[2, 2.1, 2, 2.1, 3, 3]]))["at_edge"] is False

    def test_some_seeds_at_an_end(self) -> None:
        inner, outer = [2.4, 2.2, 2.0, 2.2, 3, 3], [2.05, 2.2, 2.1, 2.2, 3, 3]
        row = only(table([inner, inner, outer]))
        mean_curve = np.mean([inner, inner, outer], axis=0).tolist()
        assert row["value"] == pytest.approx(only(table([mean_curve]))["value"])
        assert (row["interval_low"], row["at_edge"]) == (None, False)
        assert row["reason"].startswith("1 of 3 seeds")

    @pytest.mark.parametrize("initial", [6.0, None])
    def test_all_diverged(self, initial: float | None) -> None:
        row = only(table([[None] * 6, [None] * 6], initial=initial))
        assert (row["value"], row["at_edge"]) == (None, None)
        assert "diverged" in row["reason"]

    @pytest.mark.parametrize(("grid", "step"), [([0.1], None), ([0.1, 0.2], math.log(2))])
    def test_a_grid_without_an_inside(self, grid: list[float], step: float | None) -> None:
        row = only(table([[2.0, 3.0][: len(grid)]], grid=grid))
        assert (row["value"], row["at_edge"], row["interval_high"]) == (0.1, True, None)
        assert row["grid_step"] == (None if step is None else pytest.approx(step))

    def test_no_results(self) -> None:
        row = only(table([[2] * 6]).with_columns(status=pl.lit("running")))
        assert (row["value"], row["grid_step"], row["n_seeds"]) == (None, None, 0)
        assert row["reason"]
        assert best_learning_rate(table([[2] * 6]).clear()).is_empty()

    def test_equal_seeds_rest_on_the_noise_floor(self) -> None:
        one, three = (only(table([[3, 2.2, 2.0, 2.1, 3, 3]] * seeds)) for seeds in (1, 3))
        assert (three["basis"], three["value"]) == ("noise_floor", pytest.approx(one["value"]))
        widths = [math.log(row["interval_high"] / row["interval_low"]) for row in (one, three)]
        assert widths[1] == pytest.approx(widths[0] / math.sqrt(3))

    @pytest.mark.parametrize("noise", [0.0, -1.0, NAN])
    def test_bad_noise(self, noise: float) -> None:
        (cell,) = cells(table([[2] * 6]))
        for call in (
            lambda: best_learning_rate(table([[2] * 6]), noise),
            lambda: best_log_learning_rate_per_seed(cell, noise),
            lambda: best_learning_rate_noise_sd(cell, noise),
        ):
            with pytest.raises(InputError, match="loss_noise"):
                call()


class TestUncertainty:
    def test_unbiased(self) -> None:
        found = [best_log_learning_rate_per_seed(cell)[0] - truth for cell, truth in errors(CALM, 1, 600)]
        assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))

    def test_the_noise_floor_is_the_spread_over_seeds(self) -> None:
        rng = np.random.default_rng(0)
        for curvature in (0.04, 0.1):
            arm = replace(CALM, curvature=curvature)
            spread = best_log_learning_rate_per_seed(cell_of(rng, arm, learning_rates=WIDE_GRID, seeds=2000)).std()
            truth = cell_of(rng, arm, learning_rates=WIDE_GRID, seeds=1, noise=0.0)
            assert best_learning_rate_noise_sd(truth) == pytest.approx(spread, rel=0.1)

    @pytest.mark.parametrize("seeds", [1, 3, 5])
    def test_covers(self, seeds: int) -> None:
        assert 0.85 <= coverage(CALM, seeds, 400) <= 0.95

    @pytest.mark.slow
    @pytest.mark.parametrize("seeds", [1, 2, 3, 5])
    @pytest.mark.parametrize("noise", [0.01, 0.03])
    @pytest.mark.parametrize("curvature", [0.02, 0.04, 0.08])
    def test_covers_over_a_thousand_repetitions(self, seeds: int, noise: float, curvature: float) -> None:
        found = coverage(replace(CALM, curvature=curvature), seeds, 1000, noise)
        print(f"{seeds} seeds, noise {noise}, curvature {curvature}: a 90 % interval covers {found:.1%}")
        assert 0.85 <= found <= 0.95
