"""Sensitivity, curves and the highest stable learning rate: hand-worked numbers, properties, published values."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.analysis import (
    ESTIMATORS,
    curves,
    load,
    max_stable_learning_rate,
    outcomes,
    sensitivity,
    sensitivity_of,
    sensitivity_warnings,
)
from stability.errors import InputError

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "oec_lr_sweep.csv"
GRID = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
NAN = math.nan


def table(
    losses: Sequence[Sequence[float | None]], initial: float | None = 6.0, grid: Sequence[float] = GRID, **columns: Any
) -> pl.DataFrame:
    """One arm at one scale; a row of losses a seed, None for a run that diverged."""
    rows = [
        {
            "arm": "default",
            "scale": "s",
            "n_params": 100,
            "learning_rate": rate,
            "seed": seed,
            "status": "diverged" if loss is None else "finished",
            "loss_validation": loss,
            "loss_initial": initial,
            **columns,
        }
        for seed, row in enumerate(losses)
        for rate, loss in zip(grid, row, strict=True)
    ]
    return pl.DataFrame(rows, schema_overrides={"loss_validation": pl.Float64, "loss_initial": pl.Float64})


def values(runs: pl.DataFrame, **bounds: float) -> dict[str, float | None]:
    found = sensitivity(runs, **bounds)
    return dict(zip(found["estimator"], found["value"], strict=True))


def edge(runs: pl.DataFrame, **options: float) -> tuple[float | None, float | None, float | None]:
    return max_stable_learning_rate(runs, **options).select("lower", "upper", "fraction_unstable").row(0)


def cautions(runs: pl.DataFrame, **bounds: float) -> list[str]:
    """What a reader is told, but for what is said of one seed (tests/test_sensitivity_intervals.py)."""
    return [warning for warning in sensitivity_warnings(runs, **bounds) if "One seed" not in warning]


curve = st.lists(
    st.tuples(st.floats(1e-5, 10), st.floats(0, 20)), min_size=2, max_size=9, unique_by=lambda point: point[0]
)


class TestEstimators:
    def test_hand_worked(self) -> None:
        # l0 = 5 caps 9 and replaces inf; l* = 2: excess 1, 0, 3, 3 at decades.
        found = sensitivity_of([0.001, 0.01, 0.1, 1.0], [3.0, 2.0, 9.0, math.inf], 5.0)
        assert found["mean"] == pytest.approx(7 / 4)
        assert found["mean_k_minus_1"] == pytest.approx(7 / 3)
        assert found["trapezoid_log_lr"] == pytest.approx((0.5 + 1.5 + 3.0) / 3)

    def test_trapezoid_is_exact_for_a_line_in_log_lr_on_any_grid(self) -> None:
        rates = np.array([1e-4, 2e-4, 3e-2, 0.9, 1.0])
        found = sensitivity_of(rates, 2 + 0.3 * np.log(rates / rates[0]))
        assert found["trapezoid_log_lr"] == pytest.approx(0.3 * math.log(1e4) / 2)

    @given(curve, st.floats(-5, 5), st.floats(0.1, 10))
    def test_shift_leaves_and_scale_scales(self, points: list[tuple[float, float]], shift: float, scale: float) -> None:
        rates, losses = np.array(points).T
        before = sensitivity_of(rates, losses, 15.0)
        shifted = sensitivity_of(rates, losses + shift, 15.0 + shift)
        scaled = sensitivity_of(rates, losses * scale, 15.0 * scale)
        for name in ESTIMATORS:
            assert shifted[name] == pytest.approx(before[name], abs=1e-9)
            assert scaled[name] == pytest.approx(before[name] * scale, abs=1e-9)

    @given(curve, st.randoms())
    def test_order_does_not_matter(self, points: list[tuple[float, float]], random: Any) -> None:
        mixed = random.sample(points, len(points))
        first, second = (sensitivity_of(*np.array(p).T, 15.0) for p in (points, mixed))
        assert first == pytest.approx(second)

    @given(curve)
    def test_bounds_and_capping(self, points: list[tuple[float, float]]) -> None:
        rates, losses = np.array(points).T
        found = sensitivity_of(rates, losses, 10.0)
        largest = np.ptp(np.minimum(losses, 10.0))
        assert 0 <= found["mean"] <= found["mean_k_minus_1"]
        assert found["mean"] <= largest + 1e-12
        assert -1e-12 <= found["trapezoid_log_lr"] <= largest + 1e-9
        assert found == sensitivity_of(rates, np.where(losses > 10, NAN, losses), 10.0)

    def test_equal_losses_score_zero(self) -> None:
        assert sensitivity_of(GRID, [3.0] * 6) == dict.fromkeys(ESTIMATORS, 0.0)
        assert sensitivity_of(GRID, [NAN] * 6, 6.0) == dict.fromkeys(ESTIMATORS, 0.0)

    @pytest.mark.parametrize(("rates", "losses"), [([0.1], [2.0]), ([], []), ([0.1, 0.2], [2.0, NAN])])
    def test_no_value(self, rates: list[float], losses: list[float]) -> None:
        assert sensitivity_of(rates, losses) == dict.fromkeys(ESTIMATORS)

    @pytest.mark.parametrize(
        ("rates", "losses"), [([0.1], [1, 2]), ([0, 1], [1, 2]), ([0.1, 0.1], [1, 2]), ([NAN, 1], [1, 2])]
    )
    def test_bad_curves(self, rates: list[float], losses: list[float]) -> None:
        with pytest.raises(InputError):
            sensitivity_of(rates, losses)


class TestSensitivityOfTables:
    def test_per_seed_then_averaged(self) -> None:
        seeds = [[3, 2, 2.5, 2.5, 4, None], [3, 2.5, 2, 2.5, 4, 8.0]]
        per_seed = [sensitivity_of(GRID, [NAN if v is None else v for v in row], 6.0) for row in seeds]
        found = sensitivity(table(seeds))
        assert found["n_seeds"].to_list() == [2] * 3
        assert found["n_learning_rates"].to_list() == [6] * 3
        for row in found.iter_rows(named=True):
            assert row["value"] == pytest.approx(sum(one[row["estimator"]] for one in per_seed) / 2)

    def test_seeds_of_data_alone_are_seeds_too(self) -> None:
        rows = table([[3, 2, 2.5, 2.5, 4, 5], [3, 2.5, 2, 2.5, 4, 5]])
        data_seeds = rows.with_columns(data_seed=pl.col("seed"), seed=pl.lit(0))
        assert sensitivity(data_seeds).equals(sensitivity(rows))

    def test_a_diverged_status_counts_as_l0_whatever_the_loss(self) -> None:
        rows = table([[3, 2, 2, 2, 2, 2.0]]).with_columns(
            status=pl.when(pl.col("learning_rate") == 0.3).then(pl.lit("diverged")).otherwise("status")
        )
        assert values(rows)["mean"] == values(table([[3, 2, 2, 2, 2, None]]))["mean"] == pytest.approx(5 / 6)

    def test_the_range_is_inclusive_and_forgives_rounding(self) -> None:
        rows = table([[9, 2, 2.5, 2.5, 4, None]])
        inner = sensitivity_of(GRID[1:5], [2, 2.5, 2.5, 4])
        assert values(rows, learning_rate_min=0.003, learning_rate_max=0.1 * (1 - 1e-12)) == pytest.approx(inner)

    def test_runs_without_a_result_do_not_count(self) -> None:
        rows = table([[3, 2, 2.5, 2.5, 4, 5]])
        unfinished = rows.with_columns(
            status=pl.when(pl.col("learning_rate") == 0.3).then(pl.lit("running")).otherwise("status")
        )
        assert values(unfinished) == values(rows.filter(pl.col("learning_rate") < 0.3))

    def test_arms_and_scales_stand_apart_and_order_does_not_matter(self) -> None:
        rows = pl.concat(
            [
                table([[3, 2, 2, 2, 2, 2]], arm="a", scale="s", n_params=10),
                table([[3, 2, 2, 2, 2, 5]], arm="a", scale="t", n_params=20),
                table([[3, 2, 2, 2, 2, 2]], arm="b", scale="s", n_params=10),
            ]
        )
        found = sensitivity(rows).filter(estimator="mean")
        assert found.select("arm", "scale").rows() == [("a", "s"), ("a", "t"), ("b", "s")]
        assert found["value"].to_list() == pytest.approx([1 / 6, 4 / 6, 1 / 6])
        shuffled = rows.sample(fraction=1, shuffle=True, seed=3)
        assert sensitivity(shuffled).equals(sensitivity(rows))
        assert max_stable_learning_rate(shuffled).equals(max_stable_learning_rate(rows))

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"learning_rate_min": 0.0}, "learning_rate_min"),
            ({"learning_rate_max": NAN}, "learning_rate_max"),
            ({"learning_rate_min": 1.0, "learning_rate_max": 0.1}, "learning_rate_min"),
        ],
    )
    def test_bad_ranges(self, options: dict[str, float], key: str) -> None:
        with pytest.raises(InputError) as caught:
            sensitivity(table([[2] * 6]), **options)
        assert caught.value.key == key

    def test_bad_tables(self) -> None:
        with pytest.raises(InputError, match="status"):
            sensitivity(table([[2] * 6]).drop("status"))
        with pytest.raises(InputError, match="more than one run"):
            sensitivity(pl.concat([table([[2] * 6]), table([[2] * 6])]))


class TestWarnings:
    @pytest.mark.parametrize(
        ("losses", "proposal"),
        [
            ([1, 2, 3, 3, 3, 3], r"learning rate, 0\.001, is at the edge.*\[0\.00011, 0\.3\]"),
            ([3, 3, 3, 3, 2, 1], r"learning rate, 0\.3, is at the edge.*\[0\.001, 2\.7\]"),
        ],
    )
    def test_best_at_the_edge_proposes_a_longer_range(self, losses: list[float], proposal: str) -> None:
        (warning,) = cautions(table([losses]))
        assert warning.startswith("default, s: ")
        assert re.search(proposal, warning)

    @pytest.mark.parametrize("losses", [[3, 2, 1, 2, 3, 4], [3, 1, 2, 2, 3, 1]])
    def test_nothing_to_say(self, losses: list[float]) -> None:
        assert cautions(table([losses])) == []

    def test_range_that_cuts_the_best_off(self) -> None:
        rows = table([[3, 2, 1, 2, 3, 4]])
        assert "edge" in cautions(rows, learning_rate_min=0.01)[0]

    def test_hardly_learned(self) -> None:
        (warning,) = cautions(table([[5.9, 5.8, 5.9, 6, None, None]]))
        assert "hardly learned" in warning

    def test_all_diverged(self) -> None:
        assert "hardly learned" in cautions(table([[None] * 6]))[0]
        assert values(table([[None] * 6]))["mean"] == 0.0
        assert edge(table([[None] * 6])) == (None, 0.001, 1.0)

    def test_unknown_l0(self) -> None:
        rows = table([[3, 2, 2, 2, 2.4, None]], initial=None)
        assert values(rows) == dict.fromkeys(ESTIMATORS)
        assert "unknown" in cautions(rows)[0]
        assert edge(rows) == (0.1, 0.3, 1.0)
        assert values(table([[3, 2, 2, 2, 3, 3]], initial=None))["mean"] == pytest.approx(0.5)
        assert edge(table([[None] * 6], initial=None)) == (None, 0.001, 1.0)

    def test_seeds_with_different_grids(self) -> None:
        rows = pl.concat([table([[3, 2, 2, 2, 3, 4]]), table([[3, 2, 2]], grid=GRID[:3], seed=1)])
        (warning,) = cautions(rows)
        assert "0.03, 0.1, 0.3" in warning
        assert sensitivity(rows)["n_learning_rates"].to_list() == [3] * 3

    def test_one_learning_rate_and_none(self) -> None:
        one = table([[2.0]], grid=[0.1])
        assert values(one) == dict.fromkeys(ESTIMATORS)
        assert "one learning rate" in cautions(one)[0]
        assert edge(one) == (0.1, None, None)
        none = one.with_columns(status=pl.lit("running"))
        assert values(none) == dict.fromkeys(ESTIMATORS)
        assert "no learning rate" in cautions(none)[0]
        assert edge(none) == (None, None, None)

    def test_grids_that_differ_between_cells(self) -> None:
        rows = pl.concat([table([[3, 2, 2, 2, 3, 4]]), table([[3, 2, 2, 3]], grid=GRID[:4], arm="b")])
        assert "4 from 0.001 to 0.03" in cautions(rows)[0]
        assert cautions(rows, learning_rate_max=0.03) == []

    def test_an_empty_table(self) -> None:
        empty = table([[2] * 6]).clear()
        assert sensitivity(empty).is_empty()
        assert max_stable_learning_rate(empty).is_empty()
        assert curves(empty).is_empty()
        assert cautions(empty) == []


class TestStableEdge:
    @pytest.mark.parametrize(
        ("losses", "expected"),
        [
            ([3, 2, 2, 2.2, 2.6, None], (0.03, 0.1, 1.0)),
            ([5, 2, 2, 2.2, 2.5, 2.5], (0.3, None, None)),  # under-trained below the best; exactly at the excess above
            ([3, 2, 2, 2.2, 2.2, 6.5], (0.1, 0.3, 1.0)),  # ends above l0
            ([3, 2, 9, 2, 9, 9], (0.003, 0.01, 1.0)),  # the lowest unstable one, whatever lies above it
            ([2, 9, 9, 9, 9, 9], (0.001, 0.003, 1.0)),
            ([None, None, 2, 2, 2, 2], (0.3, None, None)),
        ],
    )
    def test_one_seed(self, losses: list[float | None], expected: tuple[float | None, ...]) -> None:
        assert edge(table([losses])) == expected

    def test_half_of_the_seeds_suffice(self) -> None:
        calm, wild, wilder = [3, 2, 2, 2, 2, 3], [3, 2, 2, 2, 3, 3], [3, 2, 2, None, 3, 3]
        assert edge(table([calm, wild])) == (0.03, 0.1, 0.5)
        assert edge(table([calm, calm, wild])) == (0.1, 0.3, 1.0)
        assert edge(table([calm, wilder, wilder])) == (0.01, 0.03, pytest.approx(2 / 3))

    def test_each_seed_is_judged_by_its_own_best(self) -> None:
        assert edge(table([[3, 1, 1, 1, 1.4, 1.4], [4, 2, 2, 2, 2.4, 2.4]])) == (0.3, None, None)

    @given(st.lists(st.floats(1, 5.5), min_size=6, max_size=6), st.floats(0.01, 3), st.floats(0.01, 3))
    def test_a_larger_excess_never_lowers_the_edge(self, losses: list[float], first: float, second: float) -> None:
        low, high = sorted((first, second))
        upper = [edge(table([losses]), unstable_excess=excess)[1] or math.inf for excess in (low, high)]
        assert upper[0] <= upper[1]

    @pytest.mark.parametrize("excess", [0.0, -1.0, NAN, math.inf])
    def test_bad_excess(self, excess: float) -> None:
        with pytest.raises(InputError, match="unstable_excess"):
            max_stable_learning_rate(table([[2] * 6]), excess)


def test_curves_and_outcomes() -> None:
    rows = pl.concat([table([[3, 2, None], [4, 2.5, 8]], grid=GRID[:3]), table([[2.0]], grid=[0.03])])
    assert curves(rows).columns[3:] == ["learning_rate", "loss_mean", "loss_min", "loss_max", "n_runs", "n_diverged"]
    assert curves(rows).select(pl.nth(range(3, 9))).rows() == [
        (0.001, 3.5, 3.0, 4.0, 2, 0),
        (0.003, 2.25, 2.0, 2.5, 2, 0),
        (0.01, 6.0, 6.0, 6.0, 2, 2),
        (0.03, 2.0, 2.0, 2.0, 1, 0),
    ]
    unknown = curves(table([[3, None], [2, 2]], grid=GRID[:2], initial=None))
    assert unknown["loss_mean"].to_list() == [2.5, None]
    assert outcomes(rows)["loss"].null_count() == 0


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data lie beside the checkout, not in it")
def test_published_sensitivities(tmp_path: Path) -> None:
    """arXiv 2601.02031: a rerun by other authors, whose sensitivities divide by k - 1."""
    published = {
        "baseline": {16: 0.306, 29: 0.391, 57: 0.508, 109: 0.344, 221: 0.412},
        "zloss": {16: 0.054, 29: 0.033, 57: 0.235, 109: 0.118, 221: 0.109},
    }
    path = tmp_path / "reference.csv"
    pl.read_csv(REFERENCE).select(
        "n_params",
        pl.col("lr").alias("learning_rate"),
        pl.col("test_loss").alias("loss"),
        pl.col("variant").alias("arm"),
    ).write_csv(path)
    found = sensitivity(load(path)).filter(estimator="mean_k_minus_1")
    assert {
        (row["arm"], row["n_params"] // 10**6): row["value"] for row in found.iter_rows(named=True)
    } == pytest.approx(
        {(arm, size): value for arm, sizes in published.items() for size, value in sizes.items()}, abs=0.002
    )
