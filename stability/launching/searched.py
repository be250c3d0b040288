"""A searched axis, as a sweep file or a command says it: a grid of its own making, whose points a search chooses from.

Apart from the search itself (`stability.launching.search`), which measures: commands are read without that.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stability.errors import InputError
from stability.launching.settings import settings
from stability.typed import Number, Positive, from_mapping

SEARCHED_KEY = "optimizer.learning_rate"
TOLERANCE_MIN = 1.05
"""Learning rates are rounded to three digits, which are up to 1 % apart; and seeds differ by more than this."""


@settings
@dataclass(frozen=True, kw_only=True)
class Bisection:
    """A searched axis, as a sweep file or a command line says it.

    Attributes:
        search: how; there is one way.
        low: the lowest LR of the grid.
        high: the highest.
        tolerance: how far apart neighbours on the grid may be at most, as a ratio.
    """

    search: Literal["bisection"]
    low: Positive
    high: Positive
    tolerance: Number

    @property
    def points(self) -> list[float]:
        """The grid: as few LRs as the tolerance allows, of three digits each, evenly spaced in ln LR but for that."""
        intervals = max(1, math.ceil(math.log(self.high / self.low) / math.log(self.tolerance) - 1e-9))
        while True:
            ratio = (self.high / self.low) ** (1 / intervals)
            inner = [float(f"{self.low * ratio**i:.3g}") for i in range(1, intervals)]
            rates = [self.low, *inner, self.high]
            if max(b / a for a, b in itertools.pairwise(rates)) <= self.tolerance * (1 + 1e-9):
                return rates
            intervals += 1


def searched_points(where: str, values: Mapping[str, Any]) -> list[float]:
    """The grid of a searched axis.

    Args:
        where: the axis, as errors name it.
        values: the fields of `Bisection`.

    Raises:
        InputError: it is no search, its range is none, or its tolerance is too small.
    """
    if not where.endswith(SEARCHED_KEY):
        raise InputError(where, dict(values), "cannot be searched", f"Search {SEARCHED_KEY}, or list the values.")
    try:
        axis = from_mapping(Bisection, values)
    except InputError as error:
        raise InputError(f"{where}.{error.key}", error.value, error.problem, _FIX) from None
    if axis.low >= axis.high:
        raise InputError(f"{where}.low", axis.low, f"is not below high={axis.high:g}", "Swap them.")
    if axis.tolerance < TOLERANCE_MIN:
        problem = f"is below {TOLERANCE_MIN:g}: no seed's edge is known so well"
        raise InputError(f"{where}.tolerance", axis.tolerance, problem, "Give a ratio of neighbours, such as 1.25.")
    return axis.points


_FIX = "Write {search: bisection, low: LR, high: LR, tolerance: RATIO}, such as low: 0.003, high: 1.0, tolerance: 1.25."
