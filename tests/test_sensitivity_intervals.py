"""How far LR sensitivity and its growth with N may be from the truth, and what a reader is told."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from stability.analysis.cells import Cell, cells
from stability.analysis.scaling import fit_slope, sensitivity_scaling
from stability.analysis.sensitivity import (
    ESTIMATORS,
    Estimator,
    sensitivity,
    sensitivity_noise_sd,
    sensitivity_of,
    sensitivity_per_seed,
    sensitivity_warnings,
)
from stability.analysis.uncertainty import over_seeds
from stability.errors import InputError
from tests.test_analysis_measures import GRID, table
from tests.worlds import LEARNING_RATES, Arm, cell_of, world

NAN = math.nan
STEADY = Arm(edge=0.3, edge_jitter=0.0, curvature=0.06)
"""An arm whose seeds differ by the noise of the loss alone."""


def only_cell(runs: pl.DataFrame) -> Cell:
    (cell,) = cells(runs)
    return cell


def mean_row(runs: pl.DataFrame, **options: float) -> dict[str, object]:
    (row,) = sensitivity(runs, **options).filter(estimator="mean").to_dicts()
    return row


class TestIntervals:
    def test_of_seeds(self) -> None:
        runs = table([[3, 2, 2.5, 2.5, 4, None], [3, 2.5, 2, 2.5, 4, 8.0], [3, 2.2, 2, 2.4, 3.5, 5]])
        per_seed = sensitivity_per_seed(only_cell(runs))
        for row in sensitivity(runs).iter_rows(named=True):
            found = over_seeds(per_seed[row["estimator"]])
            assert (row["value"], (row["interval_low"], row["interval_high"])) == (found.value, found.interval)
            assert (row["basis"], row["n_seeds"]) == ("seeds", 3)

    def test_per_seed_is_each_seeds_own(self) -> None:
        losses = [[3, 2, 2.5, 2.5, 4, None], [3, 2.5, 2, 2.5, 4, 8.0]]
        per_seed = sensitivity_per_seed(only_cell(table(losses)))
        for seed, row in enumerate(losses):
            alone = sensitivity_of(GRID, [NAN if loss is None else loss for loss in row], 6.0)
            assert {name: per_seed[name][seed] for name in ESTIMATORS} == pytest.approx(alone)

    def test_of_one_seed_rests_on_the_noise_floor(self) -> None:
        runs = table([[3, 2, 2.5, 2.5, 4, None]])
        row, wider = mean_row(runs), mean_row(runs, loss_noise=0.06)
        half = row["interval_high"] - row["value"]
        assert row["basis"] == "noise_floor"
        assert row["value"] - row["interval_low"] == pytest.approx(half)
        assert half == pytest.approx(1.645 * sensitivity_noise_sd(only_cell(runs), "mean"), rel=1e-3)
        assert wider["interval_high"] - wider["value"] == pytest.approx(2 * half, rel=0.02)

    def test_sensitivity_is_never_negative(self) -> None:
        row = mean_row(table([[2.01, 2, 2.005, 2, 2.01, 2]]))
        assert row["interval_low"] == 0.0 < row["value"] < row["interval_high"]

    @pytest.mark.parametrize("seeds", [1, 3])
    def test_all_diverged_is_no_certainty(self, seeds: int) -> None:
        row = mean_row(table([[None] * 6] * seeds))
        assert (row["value"], row["interval_low"], row["interval_high"], row["basis"]) == (0.0, None, None, None)

    def test_no_value_has_no_interval(self) -> None:
        rows = [table([[3, None, 2, 2, 2, 2]], initial=None), table([[2.0]], grid=[0.1])]
        for runs in rows:
            assert mean_row(runs)["interval_low"] is None
            assert sensitivity_per_seed(only_cell(runs)) == dict.fromkeys(ESTIMATORS)
            assert sensitivity_noise_sd(only_cell(runs), "mean") is None
        assert sensitivity(table([[2] * 6]).clear()).is_empty()

    @pytest.mark.parametrize("noise", [0.0, -0.1, NAN, math.inf])
    def test_bad_noise(self, noise: float) -> None:
        runs = table([[2] * 6])
        for call in (sensitivity, sensitivity_warnings, sensitivity_scaling):
            with pytest.raises(InputError, match="loss_noise"):
                call(runs, loss_noise=noise)
        with pytest.raises(InputError, match="loss_noise"):
            sensitivity_noise_sd(only_cell(runs), "mean", noise)

    def test_other_columns_change_nothing(self) -> None:
        runs = world(np.random.default_rng(0), seeds=2)[0]
        assert sensitivity(runs.drop("output_rms", "attention_logit_noise_free")).equals(sensitivity(runs))


class TestNoise:
    def test_of_a_curve_with_one_best_by_hand(self) -> None:
        # mean = sum over the K - 1 others of (l_i - l*) / K, independent of each other: (K - 1)(1 + (K - 1)) / K^2.
        cell = only_cell(table([[4, 4, 2, 4, 4, 4]]))
        assert sensitivity_noise_sd(cell, "mean", 0.1) == pytest.approx(0.1 * math.sqrt(5 / 6), rel=0.05)
        assert sensitivity_noise_sd(cell, "mean_k_minus_1", 0.1) == pytest.approx(0.1 * math.sqrt(6 / 5), rel=0.05)

    def test_a_diverged_run_has_none(self) -> None:
        cell = only_cell(table([[4, 4, 2, None, None, None]]))
        # Only the two others and the best one are noisy: (2 + 5^2) / 6^2.
        assert sensitivity_noise_sd(cell, "mean", 0.1) == pytest.approx(0.1 * math.sqrt(27) / 6, rel=0.05)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_it_is_the_spread_over_seeds(self, estimator: Estimator) -> None:
        many = cell_of(np.random.default_rng(0), STEADY, seeds=4000)
        truth = cell_of(np.random.default_rng(0), STEADY, seeds=1, noise=0.0)
        spread = sensitivity_per_seed(many)[estimator].std()
        assert sensitivity_noise_sd(truth, estimator) == pytest.approx(spread, rel=0.06)

    def test_noise_raises_the_value_of_a_flat_curve(self) -> None:
        flat = replace(STEADY, curvature=0.02)
        many = sensitivity_per_seed(cell_of(np.random.default_rng(0), flat, seeds=4000))["mean"].mean()
        truth = sensitivity_per_seed(cell_of(np.random.default_rng(0), flat, seeds=1, noise=0.0))["mean"][0]
        assert 0.003 < many - truth < 0.03


def covered(arm: Arm, seeds: int, repetitions: int, estimator: Estimator = "mean") -> float:
    """How often the interval holds the mean over all seeds there might be."""
    rng = np.random.default_rng(seeds)
    truth = sensitivity_per_seed(cell_of(rng, arm, seeds=20_000))[estimator].mean()
    many = cell_of(rng, arm, seeds=seeds * repetitions)
    found = []
    for index in range(repetitions):
        mine = slice(index * seeds, (index + 1) * seeds)
        cell = replace(
            many, losses=many.losses[mine], diverged=many.diverged[mine], losses_initial=many.losses_initial[mine]
        )
        noise_sd = sensitivity_noise_sd(cell, estimator) if seeds == 1 else None
        low, high = over_seeds(sensitivity_per_seed(cell)[estimator], noise_sd).interval
        found.append(low <= truth <= high)
    return float(np.mean(found))


class TestCoverage:
    # The edge's jitter makes the values of the second arm skewed: most seeds are calm, a few are not.
    @pytest.mark.parametrize(("arm", "seeds"), [(STEADY, 1), (STEADY, 3), (replace(STEADY, edge_jitter=0.1), 3)])
    def test_covers(self, arm: Arm, seeds: int) -> None:
        assert 0.85 <= covered(arm, seeds, 400) <= 0.95

    @pytest.mark.slow
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize(
        ("arm", "seeds"),
        [(STEADY, 1), *((replace(STEADY, edge_jitter=jitter), seeds) for jitter in (0.0, 0.1) for seeds in (2, 3, 5))],
    )
    def test_covers_over_thousands_of_repetitions(self, arm: Arm, seeds: int, estimator: Estimator) -> None:
        found = covered(arm, seeds, 2000, estimator)
        print(f"{estimator}, {seeds} seeds, jitter {arm.edge_jitter}: a 90 % interval covers {found:.1%}")
        assert 0.84 <= found <= 0.95


def power_law(
    exponent: float, sizes: dict[str, int], seeds: int = 1, noise: float = 0.0, arm: str = "a"
) -> pl.DataFrame:
    """Cells whose sensitivity is N^exponent times a constant, times exp(noise) for each seed."""
    rng = np.random.default_rng(0)
    shape = np.array([0.2, 0.0, 0.1, 0.5])
    tables = []
    for scale, size in sizes.items():
        factors = (size / 1000) ** exponent * np.exp(noise * rng.normal(size=(seeds, 1)))
        rows = (2 + factors * shape).tolist()
        tables.append(table(rows, initial=100.0, grid=GRID[:4], scale=scale, n_params=size, arm=arm))
    return pl.concat(tables)


SIZES = {"s": 1_000, "m": 3_000, "l": 20_000, "xl": 50_000}


class TestScaling:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_recovers_a_power_law(self, estimator: Estimator) -> None:
        runs = pl.concat([power_law(0.3, SIZES), power_law(-0.1, SIZES, arm="b")])
        found = sensitivity_scaling(runs, estimator)
        assert found["arm"].to_list() == ["a", "b"]
        assert found["exponent"].to_list() == pytest.approx([0.3, -0.1])
        assert found.select("n_scales", "n_seeds", "estimator").row(0) == (4, 1, estimator)

    def test_an_exact_line_of_one_seed_rests_on_the_noise_floor(self) -> None:
        row = sensitivity_scaling(power_law(0.3, SIZES), loss_noise=0.005).row(0, named=True)
        assert row["basis"] == "noise_floor"
        assert row["interval_low"] < 0.3 < row["interval_high"]
        twice = sensitivity_scaling(power_law(0.3, SIZES), loss_noise=0.01).row(0, named=True)
        assert twice["interval_high"] - 0.3 == pytest.approx(2 * (row["interval_high"] - 0.3), rel=0.05)

    def test_two_scales_of_several_seeds_rest_on_them(self) -> None:
        runs = power_law(0.3, {"s": 1000, "m": 3000}, seeds=4, noise=0.1)
        row = sensitivity_scaling(runs).row(0, named=True)
        assert (row["basis"], row["n_scales"], row["n_seeds"], row["reason"]) == ("seeds", 2, 4, None)
        assert row["interval_low"] < 0.3 < row["interval_high"]

    def test_scales_off_the_line_widen_it(self) -> None:
        on = power_law(0.3, SIZES, seeds=4, noise=0.01)
        moved = pl.col("loss_validation") + pl.when(pl.col("scale") == "m").then(0.3 * (pl.col("loss_validation") - 2))
        off = on.with_columns(pl.coalesce(moved, pl.col("loss_validation")).alias("loss_validation"))
        calm, wild = (sensitivity_scaling(runs).row(0, named=True) for runs in (on, off))
        assert wild["basis"] == "scatter"
        assert wild["interval_high"] - wild["interval_low"] > 5 * (calm["interval_high"] - calm["interval_low"])

    def test_a_scale_without_sensitivity_is_left_out(self) -> None:
        broken = table([[2, None, 2, 2]], initial=None, grid=GRID[:4], scale="broken", n_params=9000, arm="a")
        row = sensitivity_scaling(pl.concat([power_law(0.3, SIZES), broken])).row(0, named=True)
        assert row["exponent"] == pytest.approx(0.3)
        assert "broken" in row["reason"]
        assert row["n_scales"] == 4

    @pytest.mark.parametrize(
        ("runs", "why"),
        [
            (power_law(0.3, {"s": 1000}), "two sizes"),
            (power_law(0.3, {"s": 1000, "wide": 1000}), "two sizes"),
            (
                pl.concat([power_law(0.3, SIZES), table([[None] * 4], grid=GRID[:4], scale="z", n_params=7, arm="a")]),
                "z",
            ),
        ],
    )
    def test_no_exponent(self, runs: pl.DataFrame, why: str) -> None:
        row = sensitivity_scaling(runs).row(0, named=True)
        assert (row["exponent"], row["interval_low"], row["basis"]) == (None, None, None)
        assert why in row["reason"]

    def test_an_empty_table_and_a_bad_estimator(self) -> None:
        assert sensitivity_scaling(table([[2] * 6]).clear()).is_empty()
        with pytest.raises(InputError, match="estimator"):
            sensitivity_scaling(table([[2] * 6]), "median")


def slope_coverage(scales: int, seeds: int, scatter: float, repetitions: int) -> float:
    """How often the interval of a slope holds 0.4, with noise 0.1 of a seed and a scatter of the scales."""
    rng = np.random.default_rng(scales * 10 + seeds)
    xs = np.linspace(9, 14, scales)
    found = []
    for _ in range(repetitions):
        means = 0.4 * xs + scatter * rng.normal(size=scales)
        slope, half, _ = fit_slope(xs, list(means[:, None] + 0.1 * rng.normal(size=(scales, seeds))), None)
        found.append(abs(slope - 0.4) <= half)
    return float(np.mean(found))


class TestSlope:
    @pytest.mark.parametrize("scales", [3, 5])
    @pytest.mark.parametrize("scatter", [0.0, 0.3])
    def test_covers(self, scales: int, scatter: float) -> None:
        assert 0.84 <= slope_coverage(scales, 3, scatter, 1000) <= 0.97

    @pytest.mark.slow
    @pytest.mark.parametrize("scales", [2, 3, 4, 5])
    @pytest.mark.parametrize("seeds", [1, 2, 3, 5])
    @pytest.mark.parametrize("scatter", [0.0, 0.1, 0.3])
    def test_covers_over_thousands_of_repetitions(self, scales: int, seeds: int, scatter: float) -> None:
        if scales == 2 and (seeds == 1 or scatter):
            pytest.skip("two scales show no scatter about a line")
        found = slope_coverage(scales, seeds, scatter, 4000)
        print(f"{scales} scales, {seeds} seeds, scatter {scatter}: a 90 % interval covers {found:.1%}")
        assert 0.84 <= found <= 0.97

    def test_seeds_count_by_their_number(self) -> None:
        xs, ys = [0.0, 1.0, 2.0], [np.array([0.0, 0.2]), np.array([1.3]), np.array([2.0, 2.1, 2.2])]
        slope, half, basis = fit_slope(xs, ys, None)
        assert slope == pytest.approx(np.polyfit(np.repeat(xs, [2, 1, 3]), np.concatenate(ys), 1)[0])
        assert half > 0
        assert basis == "scatter"


class TestWarnings:
    def test_cells_of_one_kind_share_a_sentence(self) -> None:
        rising = [[3, 2.5, 2.4, 2.3, 2.2, 2.1]] * 2
        runs = [
            table(rising, arm=arm, scale=scale, n_params=size) for arm in "ab" for scale, size in (("s", 1), ("t", 2))
        ]
        (warning,) = sensitivity_warnings(pl.concat(runs))
        assert warning.startswith("a (s, t); b (s, t): the best learning rate, 0.3, is at the edge")

    def test_one_seed(self) -> None:
        calm = [3, 2, 1, 2, 3, 4]
        (warning,) = sensitivity_warnings(table([calm]), loss_noise=0.05)
        assert warning.startswith("One seed a curve")
        assert "0.05 nats" in warning
        two = table([calm, calm], scale="t", n_params=200)
        (warning,) = sensitivity_warnings(pl.concat([table([calm]), two]))
        assert warning.startswith("default, s: one seed")
        assert sensitivity_warnings(two) == []

    def test_learning_rates_that_mean_something_else(self) -> None:
        calm = [[3, 2, 1, 2, 3, 4]] * 2
        scaled = table(calm, arm="learning_rate_scaling=tensor_rms")
        plain = table(calm, arm="learning_rate_scaling=none")
        (warning,) = sensitivity_warnings(pl.concat([scaled, plain]))
        assert warning.startswith("learning_rate_scaling=tensor_rms: ")
        assert sensitivity_warnings(scaled) == []  # nothing to compare it with

    def test_blind_to_the_level(self) -> None:
        good, bad = [[3, 2, 1, 2, 3, 4]] * 2, [[3, 3, 2.5, 3, 3, 3]] * 2
        runs = pl.concat([table(good, arm="good"), table(bad, arm="bad")])
        (warning,) = sensitivity_warnings(runs)
        assert warning.startswith("bad, s: less sensitive")
        assert "blind to the level" in warning
        elsewhere = pl.concat([table(good, arm="good"), table(bad, arm="bad", scale="t", n_params=7)])
        assert sensitivity_warnings(elsewhere) == []

    def test_hardly_learned_and_unknown(self) -> None:
        runs = pl.concat(
            [
                table([[5.9, 5.8, 5.9, 6, None, None]] * 2, arm="dull"),
                table([[3, 2, 2, 2, 2.4, None]] * 2, initial=None, arm="lost"),
            ]
        )
        dull, lost = sensitivity_warnings(runs)
        assert dull.startswith("dull, s: hardly learned")
        assert lost.startswith("lost, s: a run diverged and its loss at initialisation is unknown")


class TestWorlds:
    def test_their_truth_is_what_is_measured_without_noise(self) -> None:
        arms = {"calm": Arm(edge_jitter=0.0), "wild": Arm(edge_jitter=0.0, diverged_above=3.0, best_exponent=-0.3)}
        runs, truth = world(np.random.default_rng(0), arms=arms, noise=0.0, seeds=1)
        found = sensitivity(runs).pivot(on="estimator", index=["arm", "scale", "n_params"], values="value")
        joined = found.join(truth, on=["arm", "scale", "n_params"], suffix="_truth")
        assert joined.height == 8
        for name in ESTIMATORS:
            assert joined[name].to_list() == pytest.approx(joined[f"{name}_truth"].to_list())
        assert runs.filter(arm="wild", status="diverged").height > 0
        assert (truth["learning_rate_unstable"] > truth["best_learning_rate"]).all()

    def test_their_quantities(self) -> None:
        runs = world(np.random.default_rng(0), seeds=1)[0]
        powers = np.log(runs.select("n_params", "learning_rate").to_numpy())
        for column, slopes in (("attention_logit_noise_free", (0.8, 1.2)), ("output_rms", (0.0, 0.3))):
            design = np.column_stack([np.ones(len(powers)), powers])
            fitted = np.linalg.lstsq(design, np.log(runs[column].to_numpy()), rcond=None)[0]
            assert fitted[1:] == pytest.approx(slopes, abs=0.01)
        assert set(runs["learning_rate"]) == set(LEARNING_RATES)
