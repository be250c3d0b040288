"""Forecasts of quantities: exact answers, no leakage, recoveries from known worlds, and what must be refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
import yaml
from conftest import TINY, Command
from forecast_worlds import KINDS, LEARNING_RATES, World, draw_world
from scipy.stats import norm, t
from test_report import make_sweep

import stability
from stability.analysis import analyze
from stability.analysis.forecast import answers, forecast, parse_forecasts, quantity_forecasts
from stability.analysis.forecast import joint as joint_models
from stability.analysis.forecast.backtest import AVERAGED, BackTest
from stability.analysis.forecast.data import Observations, imputed, observations, shrunk_variances
from stability.analysis.forecast.joint import fit_gaussian_process, fit_pooled
from stability.analysis.forecast.models import MODELS, Persistence, Polynomial
from stability.analysis.forecast.next_run import expected_shrinkage, next_runs
from stability.analysis.forecast.predictive import Predictive, mixed, student, student_cdf
from stability.analysis.forecast.threshold import estimated, given
from stability.errors import InputError
from stability.tracking import files

SCHEMA = json.loads((Path(answers.__file__).parents[1] / "summary.schema.json").read_text())


def made(
    values: Any, sizes: Sequence[float], rates: Sequence[float] = (0.01,), *, unstable: Any = None
) -> Observations:
    """Runs of S sizes x K learning rates x seeds, ln q being `values`."""
    array = np.asarray(values, float).reshape(len(sizes), len(rates), -1)
    size, rate, _ = np.indices(array.shape)
    flags = np.zeros(array.size, bool) if unstable is None else np.asarray(unstable, bool).ravel()
    return Observations(
        "default",
        "above",
        np.log(np.array(sizes))[size.ravel()],
        np.log(np.array(rates))[rate.ravel()],
        array.ravel(),
        np.zeros(array.size, bool),
        flags,
    )


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(np.random.default_rng(11), "quadratic", 5, 3)


@pytest.fixture(scope="module")
def table(world: World) -> pl.DataFrame:
    return world.table(np.random.default_rng(4))


@pytest.fixture(scope="module")
def test_of_table(table: pl.DataFrame) -> BackTest:
    return BackTest(observations(table, "q")["default"])


class TestPredictive:
    @pytest.mark.parametrize("degrees", [1.0, 2.0, 2.5, 3.7, 12.0, 1e6])
    def test_the_cdf_is_students(self, degrees: float) -> None:
        z = np.linspace(-9, 9, 301)
        np.testing.assert_allclose(student_cdf(z, np.full(301, degrees)), t.cdf(z, degrees), atol=5e-5)

    def test_a_mixture_of_two_normals(self) -> None:
        one = student(np.array([-1.0]), np.array([1.0]), 1e6)
        other = student(np.array([2.0]), np.array([0.5]), 1e6)
        both = mixed([one, other], [1.0, 3.0])
        at = np.array([1.2])
        expected = 0.25 * norm.cdf(1.2, -1, 1) + 0.75 * norm.cdf(1.2, 2, 0.5)
        assert both.cdf(at)[0] == pytest.approx(expected, abs=1e-6)
        density = 0.25 * norm.pdf(1.2, -1, 1) + 0.75 * norm.pdf(1.2, 2, 0.5)
        assert both.log_density(at)[0] == pytest.approx(math.log(density), abs=1e-5)
        assert both.cdf(both.quantile(0.3))[0] == pytest.approx(0.3, abs=1e-5)

    def test_widening_keeps_the_median(self) -> None:
        both = mixed([student(np.zeros(1), np.ones(1), 5.0), student(np.ones(1) * 3, np.ones(1), 5.0)], [0.3, 0.7])
        wide = both.widened(2.0)
        median = both.quantile(0.5)
        assert wide.quantile(0.5) == pytest.approx(median, abs=1e-5)
        assert wide.quantile(0.95) - median == pytest.approx(2 * (both.quantile(0.95) - median), rel=1e-4)


class TestModels:
    def test_the_straight_line_has_the_textbook_prediction_interval(self) -> None:
        """One seed: y0 +- t(n - 2) s sqrt(1 + 1/n + (x0 - mean)^2 / Sxx), with numbers worked out by hand.

        x = 0, 1, 2, 3, y = 1, 3, 4, 8: slope 2.2, intercept 0.7, residuals .3, .1, -1.1, .7, s^2 = 1.8 / 2 = .9,
        Sxx = 5. At x0 = 4: y0 = 9.5, s^2 (1 + 1/4 + 2.5^2 / 5) = .9 x 2.5 = 2.25.
        """
        data = made([1, 3, 4, 8], np.exp([0.0, 1.0, 2.0, 3.0]))
        found = Polynomial(data, 1).predict(np.array([4.0]), np.log([0.01]))
        assert found is not None
        low, high = found.interval(0.9)
        half = t.ppf(0.95, 2) * 1.5
        assert (found.quantile(0.5)[0], low[0], high[0]) == pytest.approx((9.5, 9.5 - half, 9.5 + half))

    def test_seeds_add_their_own_spread_to_the_mean_square(self) -> None:
        means = np.array([1.0, 3.0, 4.0, 8.0])
        data = made(means[:, None] + np.array([-0.2, 0.0, 0.2]), np.exp([0.0, 1.0, 2.0, 3.0]))
        found = Polynomial(data, 1).predict(np.array([4.0]), np.log([0.01]))
        assert found is not None
        # Of the variance over seeds, 0.04 before it is shrunk, a mean of three has a third, a run all of it.
        variance = float(data.cells.variance.mean())
        assert 0.04 <= variance < 0.08
        assert found.scale[0, 0] ** 2 == pytest.approx(0.9 * 2.5 + variance * 2 / 3)

    def test_the_parabola_finds_a_parabola(self) -> None:
        x = np.arange(5.0)
        found = Polynomial(made(1 + 2 * x - 0.3 * x**2, np.exp(x)), 2).predict(np.array([6.0]), np.log([0.01]))
        assert found is not None
        assert found.quantile(0.5)[0] == pytest.approx(1 + 12 - 0.3 * 36)

    @pytest.mark.parametrize(("degree", "sizes"), [(1, 2), (2, 3)])
    def test_without_degrees_of_freedom_there_is_no_forecast(self, degree: int, sizes: int) -> None:
        data = made(np.arange(sizes), np.exp(np.arange(sizes)))
        assert Polynomial(data, degree).predict(np.array([9.0]), np.log([0.01])) is None

    def test_persistence_is_the_last_value_and_a_random_walk(self) -> None:
        """Steps of 1, 1 and 2 over lengths of 1 in ln N: mean square 2; two further units away variance 4."""
        found = Persistence(made([0, 1, 2, 4], np.exp(np.arange(4.0)))).predict(np.array([5.0]), np.log([0.01]))
        assert found is not None
        assert (found.location[0, 0], found.scale[0, 0] ** 2) == pytest.approx((4.0, 4.0))

    @pytest.mark.parametrize("kernel", [joint_models.POOLED, joint_models.PROCESS])
    def test_kernels_are_covariances_and_their_diagonals_agree(self, kernel: joint_models.Kernel) -> None:
        generator = np.random.default_rng(0)
        places = generator.normal(size=(6, 2))
        hyper = np.exp(generator.normal(size=(4, 6 if kernel is joint_models.POOLED else 5)))
        covariance = kernel.between(hyper, places, places)
        np.testing.assert_allclose(np.einsum("daa->da", covariance), kernel.at(hyper, places))
        assert np.linalg.eigvalsh(covariance).min() > -1e-9

    def test_the_pooled_model_is_a_bayesian_regression(self) -> None:
        """Given its hyperparameters: against the posterior of the same linear model, written with coefficients."""
        data = made([[0.0, 0.3], [1.0, 1.6], [2.1, 2.7]], np.exp([0.0, 1.0, 2.0]), (0.01, 0.1))
        model = fit_pooled(data)
        x, z = model.cells.log_size - model.centre[0], model.cells.log_rate - model.centre[1]
        hyper = model.hyper[0]
        rate = (z > 0).astype(int)
        new_x, new_z = 2.0, float(z.max())

        def features(x: Any, z: Any, rate: Any) -> Any:
            polynomial = [x**0, x, z, x * z, z**2, x * z**2, x**2, x**2 * z]
            own = [(rate == k) * power for power in (x**0, x, x**2) for k in (0, 1)]
            return np.stack([*polynomial, *own], axis=-1)

        fixed = list(joint_models.FIXED_SDS.values())
        sds = np.array([*fixed, hyper[0], hyper[0] / 2, *np.repeat(hyper[1:4], 2)])
        size = np.unique(x, return_inverse=True)[1]
        random = np.concatenate([np.eye(3)[size] * hyper[4], np.eye(6) * hyper[5]], axis=1)
        noise = random @ random.T + 1e-8 * np.eye(6)
        design = features(x, z, rate) * sds
        solved = np.linalg.solve(design @ design.T + noise, model.cells.mean - model.level)
        new = features(np.array(new_x), np.array(new_z), np.array(1)) * sds
        found = model.predict(np.array([new_x + model.centre[0]]), np.array([new_z + model.centre[1]]))
        assert found is not None
        assert found.location[0, 0] == pytest.approx(model.level + float(new @ design.T @ solved), rel=1e-6)

    def test_the_same_runs_give_the_same_numbers_in_any_order(self, table: pl.DataFrame) -> None:
        one, other = (observations(runs, "q")["default"] for runs in (table, table.reverse()))
        places = np.full(5, math.log(1e8)), one.log_rates
        for fit in (fit_pooled, fit_gaussian_process):
            first, second = fit(one).predict(*places), fit(other).predict(*places)
            assert first is not None
            assert second is not None
            np.testing.assert_allclose(first.quantile(0.9), second.quantile(0.9), rtol=1e-7)


class TestObservations:
    def test_shrunk_variances_lie_between_their_own_and_the_common_one(self) -> None:
        squares, degrees = np.array([0.02, 0.1, 4.0, 0.05]), np.full(4, 2)
        shrunk, prior = shrunk_variances(squares, degrees)
        own = squares / 2
        common = shrunk[0] * (prior + 2) / prior - squares[0] / prior
        assert ((shrunk - own) * (shrunk - common) <= 1e-12).all()

    def test_a_diverged_run_without_a_value_is_a_bound_and_others_are_left_out(self, table: pl.DataFrame) -> None:
        gone = table.with_row_index("row").with_columns(
            q=pl.when(pl.col("row") < 2).then(None).otherwise("q"),
            status=pl.when(pl.col("row") == 0).then(pl.lit("diverged")).otherwise("status"),
        )
        data = observations(gone, "q", threshold=1e9)["default"]
        assert (data.censored.sum(), data.left_out) == (1, 1)
        assert data.value[data.censored] == pytest.approx(math.log(1e9))
        assert (imputed(data)[data.censored] > math.log(1e9)).all()

    def test_what_is_not_positive_is_left_out(self, table: pl.DataFrame) -> None:
        gone = table.with_row_index("row").with_columns(q=pl.when(pl.col("row") < 3).then(0.0).otherwise("q"))
        assert observations(gone, "q")["default"].left_out == 3


class TestBackTest:
    def test_nothing_of_a_held_out_size_is_seen(self, table: pl.DataFrame, test_of_table: BackTest) -> None:
        largest, second = sorted(table["n_params"].unique(), reverse=True)[:2]
        for size, held_out in ((largest, {1, 2, 3}), (second, {2, 3})):
            q = pl.when(pl.col("n_params") == size).then(pl.col("q") ** 2 * 31).otherwise("q")
            loss = pl.when(pl.col("n_params") == size).then(pl.lit(9.0)).otherwise("loss_validation")
            changed = BackTest(observations(table.with_columns(q=q, loss_validation=loss), "q")["default"])
            pairs = zip(test_of_table.held_out, changed.held_out, strict=True)
            compared = [(one, other) for one, other in pairs if one.held_out in held_out]
            assert {one.model for one, _ in compared} >= {*MODELS, AVERAGED} - {"quadratic"}
            for one, other in compared:
                for name in ("low", "middle", "high"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

    def test_scores_are_of_the_runs_held_out(self, test_of_table: BackTest) -> None:
        score = next(s for s in test_of_table.scores if s.model == "linear" and s.held_out == 1)
        data = test_of_table.data
        model = Polynomial(data.up_to(4), 1)
        held = data.subset(data.log_size == data.log_sizes[-1])
        found = model.predict(held.log_size, held.log_rate)
        assert found is not None
        logs = t.logpdf(held.value, found.degrees[0], found.location[0], found.scale[0])
        low, high = found.interval(0.9)
        below, above = np.maximum(low - held.value, 0), np.maximum(held.value - high, 0)
        assert score.log_score == pytest.approx(logs.mean())
        assert score.interval_score == pytest.approx(float(np.mean(high - low + 20 * (below + above))))
        assert score.coverage == np.mean((low <= held.value) & (held.value <= high))

    def test_the_model_that_forecasts_better_gets_more_weight(self) -> None:
        x = np.log(np.geomspace(1e4, 1e6, 6))
        line = 0.8 * (x - x[0])
        generator = np.random.default_rng(0)
        values = line[:, None, None] + np.array([0, 1, 2])[:, None] + 0.1 * generator.standard_normal((6, 3, 3))
        test = BackTest(made(values, np.exp(x), (0.01, 0.03, 0.1)))
        weights = test.averaged.weights
        assert math.fsum(weights.values()) == pytest.approx(1)
        assert weights["linear"] > weights["quadratic"]

    def test_a_forecast_that_was_wrong_is_widened(self) -> None:
        """Values that jump at every size and hardly move in between: no smooth curve expects it."""
        values = np.array([0, 0.01, 0.02, 0.01, 6.0, 1.0])[:, None, None] + np.zeros((6, 3, 1))
        values = values + 0.01 * np.random.default_rng(0).standard_normal((6, 3, 3))
        test = BackTest(made(values, np.geomspace(1e4, 1e6, 6), (0.01, 0.03, 0.1)))
        assert test.averaged.widening > 1.5


class TestThreshold:
    def test_it_is_found_where_the_verdicts_change(self) -> None:
        generator = np.random.default_rng(1)
        values = generator.uniform(0, 12, (5, 6, 3))
        data = made(values, np.geomspace(1e4, 1e6, 5), (*LEARNING_RATES, 1.0), unstable=values > 6.5)
        found = estimated(data)
        assert found is not None
        low, high = found.interval() or (math.inf, 0)
        assert low < math.exp(6.5) < high < low * 5
        assert found.value == pytest.approx(math.exp(6.5), rel=0.5)

    def test_a_drift_with_size_is_found(self) -> None:
        sizes = np.geomspace(1e4, 1e6, 5)
        limit = 6.5 - 0.4 * np.log(sizes / 1e5)
        values = np.random.default_rng(1).uniform(2, 11, (5, 6, 8))
        data = made(values, sizes, (*LEARNING_RATES, 1.0), unstable=values > limit[:, None, None])
        found = estimated(data)
        assert found is not None
        assert np.median(found.drift) == pytest.approx(-0.4, abs=0.12)
        assert np.quantile(found.drift, 0.95) < 0

    def test_below(self) -> None:
        values = np.random.default_rng(1).uniform(0, 12, (5, 6, 3))
        data = made(values, np.geomspace(1e4, 1e6, 5), (*LEARNING_RATES, 1.0), unstable=values < 4)
        turned = Observations(**{**data.__dict__, "direction": "below"})
        found = estimated(turned)
        assert found is not None
        assert math.log(found.value) == pytest.approx(4, abs=0.7)

    @pytest.mark.parametrize("verdict", [False, True])
    def test_runs_that_all_end_alike_tell_none(self, verdict: bool) -> None:
        values = np.arange(6.0).reshape(3, 2, 1)
        assert estimated(made(values, (1e4, 1e5, 1e6), (0.01, 0.1), unstable=np.full(6, verdict))) is None

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_given_threshold_is_a_tail_of_the_forecast(self, sign: int) -> None:
        forecast = student(np.array([1.0]), np.array([2.0]), 7.0)
        expected = t.sf(sign * (2.5 - 1) / 2, 7)
        assert given(math.exp(2.5), sign).probability(forecast, np.zeros(1))[0] == pytest.approx(expected, abs=1e-5)


class TestAnswers:
    def test_crossings_are_linear_in_the_probit(self) -> None:
        places, p = np.array([0.0, 1.0, 2.0]), norm.cdf([-2.0, -1.0, 1.0])
        assert answers.crossing(places, p, 0.5) == pytest.approx(1.5)
        assert answers.crossing(places, p, norm.cdf(-1.5)) == pytest.approx(0.5)
        assert answers.crossing(places, p, 0.99) is None
        assert answers.crossing(places, p, 0.001) is None

    def test_an_lr_above_an_unstable_one_is_unstable(self) -> None:
        assert answers.crossing(np.arange(3.0), np.array([0.1, 0.9, 0.2]), 0.5) == pytest.approx(0.5)

    def test_the_edge_of_a_known_world_is_found(self) -> None:
        """A straight line with hardly any noise: the LR at which ln q passes the threshold at 4 times the largest N."""
        world = World(
            n_params=(10_000, 30_000, 90_000, 270_000, 810_000),
            n_seeds=3,
            levels=(0.0, 1.0, 2.0, 3.0, 4.0),
            slopes=(0.5,) * 5,
            curvatures=(0.0,) * 5,
            ceiling=math.inf,
            omega=0.0,
            eta=0.02,
            noise=0.05,
            threshold=4.6,
        )
        runs = world.table(np.random.default_rng(0))
        found = forecast(runs, quantity="q", factors=[4], threshold="estimated")
        edge = found.highest_stable.row(0, named=True)
        # ln q = 1.2 / ln(10)... per LR step of ln(10/3) or ln 3: level + 0.5 ln(324) = 4.6 at level 1.71.
        truth = 0.01 * (3 ** (1.71 - 1))
        assert edge["interval"][0] < truth < edge["interval"][1]
        assert edge["value"] == pytest.approx(truth, rel=0.25)
        assert edge["safe"] < edge["value"]
        last = found.unstable_from.filter(pl.col("learning_rate") == 0.1).row(0, named=True)
        # level 3 + 0.5 ln(N / 1e4) = 4.6
        assert last["n_params"] == pytest.approx(1e4 * math.exp(3.2), rel=0.5)

    def test_too_few_sizes_give_a_reason_and_no_number(self, table: pl.DataFrame) -> None:
        sizes = sorted(table["n_params"].unique())[:2]
        found = forecast(table.filter(pl.col("n_params").is_in(sizes)), quantity="q", factors=[2])
        assert found.reason is not None
        assert "needs 3" in found.reason
        assert found.predictions.is_empty()

    def test_too_far_is_said_of_that_size_alone(self, table: pl.DataFrame) -> None:
        found = forecast(table, quantity="q", factors=[2, 1e6])
        near, far = found.predictions.partition_by("n_params", maintain_order=True)
        assert near["value"].null_count() == 0
        assert far["value"].null_count() == far.height
        assert "back-tests reach" in far["reason"][0]

    def test_noise_supports_no_extrapolation(self) -> None:
        """Values that have nothing to do with N: persistence is as good as any model, or intervals say nothing."""
        runs = draw_world(np.random.default_rng(0), "linear", 4, 1).table(np.random.default_rng(1))
        values = np.exp(np.random.default_rng(5).normal(0, 12, runs.height))
        found = forecast(runs.with_columns(q=pl.Series(values)), quantity="q", factors=[2], threshold=1.0)
        assert found.predictions["value"].null_count() == found.predictions.height
        assert found.predictions["reason"].null_count() == 0


class TestNextRun:
    def test_the_expected_shrinkage_is_what_a_run_brings(self) -> None:
        """Adding a run at its own forecast changes no mean; the posterior variance must fall as expected."""
        generator = np.random.default_rng(0)
        x = np.arange(4.0)
        values = (0.7 * x)[:, None, None] + np.array([0.0, 1.0])[:, None] + 0.1 * generator.standard_normal((4, 2, 2))
        model = fit_pooled(made(values, np.exp(x), (0.01, 0.1)))
        one = joint_models.JointModel(
            **{**model.__dict__, "hyper": model.hyper[:1], "weights": np.ones(1), "root": model.root[:1]}
            | {"solved": model.solved[:1]}
        )
        target, place = (5.0, math.log(0.1)), np.array([[4.0, math.log(0.1)]])
        found = expected_shrinkage(one, target, place)[0]
        known = np.stack([one.cells.log_size, one.cells.log_rate], axis=1)
        noise = [*(one.cells.variance / one.cells.count + 1e-8), one.cells.noise(place[:, 1])[0] ** 2]

        def variance(places: Any, noises: Any) -> float:
            kernel = one.kernel.between(one.hyper, places - one.centre, places - one.centre)[0] + np.diag(noises)
            at = one.kernel.between(one.hyper, places - one.centre, np.array([target]) - one.centre)[0]
            prior = one.kernel.at(one.hyper, np.array([target]) - one.centre)[0, 0]
            return float((prior - at.T @ np.linalg.solve(kernel, at)).item() + one.cells.noise(np.log([0.1]))[0] ** 2)

        before, after = variance(known, noise[:-1]), variance(np.concatenate([known, place]), noise)
        assert found == pytest.approx(1 - math.sqrt(after / before), rel=1e-4)

    def test_a_further_size_teaches_more_than_a_further_seed(self, test_of_table: BackTest) -> None:
        model = fit_pooled(test_of_table.data)
        largest = math.exp(float(test_of_table.data.log_sizes[-1]))
        rows = next_runs(model, 8 * largest, math.log(0.1))
        best = rows[0]
        assert best["n_params"] > largest
        assert best["gain"] >= max(row["gain"] for row in rows)
        cheap = [row for row in rows if row["best_by"] == "gain_per_cost"]
        assert cheap[0]["gain_per_cost"] >= best["gain_per_cost"]


class TestInterface:
    def test_summary_report_and_figure(self, table: pl.DataFrame, tmp_path: Path) -> None:
        table.rename({"loss_validation": "loss"}).write_csv(tmp_path / "runs.csv")
        wanted = {
            "fails": {"quantity": "q", "threshold": "estimated", "factors": [2]},
            "low": {"quantity": "q", "threshold": 0.5, "direction": "below", "n_params": [1e12], "factors": []},
        }
        summary = analyze(tmp_path / "runs.csv", tmp_path / "out", forecasts=wanted, figure_formats=["svg"])
        jsonschema.validate(summary, SCHEMA)
        assert [one["name"] for one in summary["quantity_forecasts"]] == ["fails", "low"]
        assert (tmp_path / "out/analysis/forecast_fails.svg").exists()
        page = (tmp_path / "out/report.html").read_text()
        start = page.index("Forecast: fails")
        assert page[start : page.index("Forecast: low")].count("would narrow") == 2
        assert page.index("<h3>Back-test</h3>", start) < page.index("<h3>Forecast</h3>", start)
        text = stability.analysis.format_forecasts(summary)
        assert text.index("back-test averaged") < text.index("highest stable LR")
        assert "times the largest size trained" in text

    def test_a_quantity_that_no_run_has(self, table: pl.DataFrame) -> None:
        empty = forecast(table.with_columns(q=pl.lit(None, pl.Float64)), quantity="q")
        assert empty.reason == "no run has a positive value of q"
        jsonschema.validate(
            files.without_nonfinite(empty.to_dict()), {**SCHEMA, **SCHEMA["$defs"]["quantity_forecast"]}
        )

    @pytest.mark.parametrize(
        ("fields", "key"),
        [
            ({"quantity": "q", "threshold": "unknown"}, "forecasts.f.threshold"),
            ({"quantity": "q", "threshold": -1.0}, "forecasts.f.threshold"),
            ({"quantity": "q", "direction": "up"}, "forecasts.f.direction"),
            ({"quantity": "q", "n_params": [0.5]}, "forecasts.f.n_params"),
            ({"quantity": "q", "sizes": [1]}, "forecasts.f.sizes"),
            ({}, "forecasts.f.quantity"),
            ("q", "forecasts.f"),
        ],
    )
    def test_bad_definitions_are_refused(self, fields: Any, key: str) -> None:
        with pytest.raises(InputError) as refused:
            parse_forecasts({"f": fields})
        assert refused.value.key == key

    def test_bad_arguments_are_refused(self, table: pl.DataFrame) -> None:
        with pytest.raises(InputError, match="absent"):
            forecast(table, quantity="absent")
        with pytest.raises(InputError, match=r"forecasts\.f\.arms"):
            quantity_forecasts(table, parse_forecasts({"f": {"quantity": "q", "arms": ["none"]}}))
        two = pl.concat([table, table.with_columns(arm=pl.lit("other"))])
        with pytest.raises(InputError, match="arm"):
            forecast(two, quantity="q")
        assert stability.forecast(two, quantity="q", arm="other", factors=[2]).arm == "other"

    def test_a_sweep_declares_them_in_its_manifest(self, tmp_path: Path) -> None:
        folder = make_sweep(tmp_path / "growth")
        manifest = files.read_json(folder / "sweep.json")
        wanted = {"growth": {"quantity": "early_logit", "threshold": 10.0, "arms": ["qk_layernorm=none"]}}
        files.write_json(folder / "sweep.json", {**manifest, "forecasts": wanted})
        (found,) = analyze(folder, tmp_path / "out", figure_formats=[], report=False)["quantity_forecasts"]
        assert (found["name"], found["arm"], found["n_scales"]) == ("growth", "qk_layernorm=none", 2)
        assert "needs 3" in found["reason"]

    def test_a_bad_one_is_refused_before_training(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "sweeps/sweep").mkdir(parents=True)
        declared = "{grids: {main: {seed: [0]}}, forecasts: {f: {quantity: q, threshold: soon}}}"
        (tmp_path / "sweeps/sweep/mine.yaml").write_text(f"# @package _global_\nsweep: {declared}\n")
        outcome = command(*TINY, "+sweep=mine")
        assert outcome.code == 2
        assert "forecasts.f.threshold=soon" in outcome.err

    @pytest.mark.parametrize("name", ["logit_growth_forecast", "gradient_rms"])
    def test_the_sweeps_that_forecast(self, name: str) -> None:
        content = yaml.safe_load((Path(__file__).parents[1] / f"sweeps/sweep/{name}.yaml").read_text())["sweep"]
        assert {one.quantity for one in parse_forecasts(content["forecasts"]).values()} <= content["quantities"].keys()


# --- calibration ------------------------------------------------------------------------------------------------------

FACTORS = (2, 4, 16)


def forecasts_of(test: BackTest, n_params: float) -> dict[str, Predictive]:
    """Every model's forecast of one further run at each LR."""
    places = np.full(len(LEARNING_RATES), math.log(n_params)), test.data.log_rates
    found = {name: test.model(name).predict(*places) for name in (*MODELS, AVERAGED)}
    return {name: one for name, one in found.items() if one is not None}


def campaign(worlds: int, scales: int, seeds: int, kinds: Sequence[str] = KINDS) -> pl.DataFrame:
    """A row for each kind of world, factor and model: share of 90 % intervals that hold a further run, and more."""
    rows = []
    for kind in kinds:
        for repetition in range(worlds):
            generator = np.random.default_rng([repetition, KINDS.index(kind), scales, seeds])  # type: ignore[arg-type]
            world = draw_world(generator, kind, scales, seeds)  # type: ignore[arg-type]
            test = BackTest(observations(world.table(generator), "q")["default"])
            threshold = estimated(test.data)
            for factor in FACTORS:
                n_params = world.n_params[-1] * factor
                truth = world.one_run(generator, n_params)
                for name, found in forecasts_of(test, n_params).items():
                    low, high = found.interval(0.9)
                    row = {"kind": kind, "scales": scales, "seeds": seeds, "factor": factor, "model": name}
                    row |= {"coverage": float(np.mean((low <= truth) & (truth <= high)))}
                    row |= {"log_score": float(np.maximum(found.log_density(truth), -20).mean())}
                    row |= {"width": float(np.mean(high - low)), "brier": None}
                    if threshold is not None:
                        p = threshold.probability(found, np.full(len(truth), math.log(n_params)))
                        row |= {"brier": float(np.mean((p - (truth > world.threshold)) ** 2))}
                    rows.append(row)
    return pl.DataFrame(rows, schema_overrides={"brier": pl.Float64})


def test_intervals_cover_in_a_handful_of_worlds() -> None:
    found = campaign(2, 4, 3).filter(pl.col("factor") < 16)
    own = found.filter(pl.col("model") == AVERAGED)
    assert own["coverage"].mean() >= 0.8  # type: ignore[operator]
    persistence = found.filter(pl.col("model") == "persistence")
    assert own["log_score"].mean() > persistence["log_score"].mean()  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("scales", [4, 5, 6])
@pytest.mark.parametrize("seeds", [1, 3])
def test_calibration_of_every_model(scales: int, seeds: int) -> None:
    found = campaign(60, scales, seeds)
    table = found.group_by("kind", "factor", "model").agg(
        pl.col("coverage").mean(),
        pl.col("log_score").mean(),
        pl.col("width").median(),
        pl.col("brier").mean(),
    )
    with pl.Config(tbl_rows=-1):
        print(table.sort("kind", "factor", "model"))
    own = table.filter(pl.col("model") == AVERAGED)
    assert own["coverage"].min() > 0.8  # type: ignore[operator]
