import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2, norm, t

from stability.analysis.uncertainty import INTERVAL_LEVEL, Estimate, over_seeds, standard_noise, without_spread
from stability.errors import InputError

POPULATIONS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "gamma, skewness 1": (lambda rng, n: rng.gamma(4, size=n), 4.0),
    "gamma, skewness 1.4": (lambda rng, n: rng.gamma(2, size=n), 2.0),
}
"""How to draw a sample of n, and the mean."""

few = st.lists(st.floats(-100, 100), min_size=2, max_size=6)


def interval(values: object, **options: float) -> tuple[float, float]:
    found = over_seeds(values, **options).interval
    assert found is not None
    return found


def coverage(population: str, n: int, repetitions: int) -> float:
    draw, mean = POPULATIONS[population]
    rng = np.random.default_rng(n)
    covered = [low <= mean <= high for low, high in (interval(draw(rng, n)) for _ in range(repetitions))]
    return float(np.mean(covered))


class TestOverSeeds:
    @pytest.mark.parametrize("population", ["normal", "gamma, skewness 1"])
    @pytest.mark.parametrize("n", [2, 3, 5, 10])
    def test_covers(self, population: str, n: int) -> None:
        assert 0.85 <= coverage(population, n, 400) <= 0.95

    @pytest.mark.slow
    @pytest.mark.parametrize("population", POPULATIONS)
    @pytest.mark.parametrize("n", [2, 3, 5, 10])
    def test_covers_over_thousands_of_repetitions(self, population: str, n: int) -> None:
        found = coverage(population, n, 4000)
        print(f"{population}, {n} seeds: a {INTERVAL_LEVEL:.0%} interval covers {found:.1%}")
        assert 0.84 <= found <= 0.95

    def test_two_seeds_by_hand(self) -> None:
        # Resamples of 0 and 2 have the means 0, 1, 2 with probabilities 1/4, 1/2, 1/4: the upper end x solves
        # P(sqrt(2 / X) > x) / 4 = 0.05 with X chi-squared with one degree of freedom.
        half = math.sqrt(2 / chi2.ppf(0.2, 1))
        assert interval([2.0, 0.0]) == pytest.approx((1 - half, 1 + half))

    def test_many_seeds_approach_students_interval(self) -> None:
        values = np.random.default_rng(0).normal(size=200)
        half = t.ppf(0.95, 199) * values.std(ddof=1) / math.sqrt(200)
        assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)

    @given(few, st.floats(-10, 10), st.floats(0.1, 10), st.permutations(range(6)))
    def test_shift_scale_sign_and_order(
        self, values: list[float], shift: float, scale: float, order: list[int]
    ) -> None:
        assume(np.ptp(values) > 1e-3)
        low, high = interval(values)
        assert low < np.mean(values) < high
        mixed = [shift - scale * values[index] for index in order if index < len(values)]
        assert interval(mixed) == pytest.approx((shift - scale * high, shift - scale * low), rel=1e-5, abs=1e-5)

    @given(few)
    def test_a_higher_level_is_wider(self, values: list[float]) -> None:
        assume(not without_spread(values))
        (low, high), (lower, higher) = interval(values, level=0.8), interval(values, level=0.95)
        assert lower < low < high < higher

    def test_a_long_tail_makes_a_long_side(self) -> None:
        low, high = interval([0.0, 0.1, 0.2, 0.1, 3.0, 0.0, 0.2, 0.1])
        mean = 3.7 / 8
        assert high - mean > 1.2 * (mean - low)

    def test_what_it_rests_on(self) -> None:
        half = norm.ppf(0.95) * 0.03
        assert over_seeds([]) == Estimate(None, None, 0, None)
        assert over_seeds([2.0]) == Estimate(2.0, None, 1, None)
        assert over_seeds([2.0], 0.03) == Estimate(
            2.0, (pytest.approx(2 - half), pytest.approx(2 + half)), 1, "noise_floor"
        )
        assert over_seeds([2.0, 2.5], 0.03).basis == "seeds"
        assert over_seeds([2.0, 2.5], 0.03) == over_seeds([2.0, 2.5])

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
    def test_equal_seeds_are_not_certain(self, value: float) -> None:
        values = [value, value * (1 + 1e-15), value, value]
        assert over_seeds(values) == Estimate(pytest.approx(value), None, 4, None)
        found = over_seeds(values, 0.2)
        assert found.basis == "noise_floor"
        assert found.interval == pytest.approx((value - norm.ppf(0.95) * 0.1, value + norm.ppf(0.95) * 0.1))

    def test_the_same_values_give_the_same_numbers(self) -> None:
        values = np.random.default_rng(1).normal(size=12)
        first = over_seeds(values)
        np.random.default_rng().normal()
        assert over_seeds(values[::-1].copy()) == first

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [
            (([1.0, math.nan],), "values"),
            (([1.0, math.inf],), "values"),
            (([[1.0, 2.0]],), "values"),
            (([1.0], -0.1), "one_seed_sd"),
            (([1.0], math.nan), "one_seed_sd"),
            (([1.0, 2.0], None, 0.0), "level"),
            (([1.0, 2.0], None, 90), "level"),
        ],
    )
    def test_bad_arguments(self, arguments: tuple[object, ...], key: str) -> None:
        with pytest.raises(InputError) as caught:
            over_seeds(*arguments)
        assert caught.value.key == key


def test_standard_noise_is_standard_and_fixed() -> None:
    noise = standard_noise(7)
    assert noise is standard_noise(7)
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="read-only"):
        noise[0, 0] = 1.0
