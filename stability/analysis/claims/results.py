"""The records that claims are tested on: arms and scales found by name, cells and quantities as arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Float

from stability.analysis.cells import Cell, cells, outcomes
from stability.analysis.stable_edge import UNSTABLE_EXCESS, unstable
from stability.analysis.uncertainty import LOSS_NOISE

LOSS = "loss"
"""The quantity that every table has: L = min(loss, loss at initialisation)."""

SENSITIVITY = "sensitivity"
"""The quantity that claims about growth may take in place of a column: the plain mean estimator, of each cell."""

_CELL = ("arm", "n_params", "scale")
_RUN = (*_CELL, "learning_rate", "seed", "data_seed")
_ROUNDING = 1e-9
Replica = tuple[int, int | None]


class Unanswerable(Exception):
    """The records do not hold what a claim needs; the message says what is missing."""


@dataclass(frozen=True)
class Box:
    """One quantity of one arm over a full table of Z seeds x C scales x K learning rates, NaN nowhere.

    Attributes:
        left_out: learning rates at which some seed or scale has no value.
    """

    seeds: tuple[Replica, ...]
    scales: tuple[str, ...]
    n_params: Float[np.ndarray, " C"]
    learning_rates: Float[np.ndarray, " K"]
    values: Float[np.ndarray, "Z C K"]
    left_out: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """A table of runs, as claims look at it.

    Attributes:
        table: one row a run, quantities as further columns.
        unstable_excess: see `max_stable_learning_rate`.
        loss_noise: the declared noise floor, for tables of one seed.
    """

    table: pl.DataFrame
    unstable_excess: float = UNSTABLE_EXCESS
    loss_noise: float = LOSS_NOISE

    @cached_property
    def _cells(self) -> dict[tuple[str, str], Cell]:
        return {(cell.arm, cell.scale): cell for cell in cells(self.table)}

    @cached_property
    def _sizes(self) -> dict[str, list[tuple[int, str]]]:
        """Arm -> its (n_params, scale), smallest first."""
        found: dict[str, list[tuple[int, str]]] = {}
        for arm, n_params, scale in self.table.select(_CELL).unique().sort(_CELL).iter_rows():
            found.setdefault(arm, []).append((n_params, scale))
        return found

    @cached_property
    def runs(self) -> pl.DataFrame:
        """Finished and diverged runs with `loss`, `diverged` and `unstable` (see `stability.analysis.stable_edge`)."""
        flags = [
            {**cell.key, "learning_rate": rate, "seed": seed, "data_seed": data_seed, "unstable": bool(flag)}
            for cell in self._cells.values()
            for (seed, data_seed), row in zip(cell.seeds, unstable(cell, self.unstable_excess), strict=True)
            for rate, flag in zip(cell.learning_rates.tolist(), row, strict=True)
        ]
        runs = outcomes(self.table)
        schema = pl.Schema({**{name: runs.schema[name] for name in _RUN}, "unstable": pl.Boolean()})
        return runs.join(pl.DataFrame(flags, schema=schema), on=_RUN, how="inner", nulls_equal=True)

    @property
    def arms(self) -> list[str]:
        """Every arm of the table, sorted."""
        return list(self._sizes)

    def arm(self, named: str) -> str:
        """The one arm that a claim names: by its label, or by parts of it; "" names the only arm there is.

        Raises:
            Unanswerable: none fits, or several do.
        """
        return find_arm(named, self.arms)

    def scales(self, arm: str, named: str | Sequence[str]) -> list[str]:
        """The scales of an arm that a claim names, smallest first.

        Raises:
            Unanswerable: one of them has no runs.
        """
        known = [scale for _, scale in self._sizes[arm]]
        if named == "every":
            return known
        if named == "largest":
            return known[-1:]
        missing = [scale for scale in named if scale not in known]
        if missing:
            raise Unanswerable(f"arm {arm!r} has no runs at {', '.join(missing)}; its scales are {', '.join(known)}")
        return [scale for scale in known if scale in named]

    def common_scales(self, arms: Sequence[str], named: str | Sequence[str]) -> list[str]:
        """The scales named that all the arms have, smallest first; `largest` is the largest of those.

        Raises:
            Unanswerable: there is none.
        """
        shared = list(self.scales(arms[0], "every" if named == "largest" else named))
        for arm in arms[1:]:
            have = set(self.scales(arm, "every" if isinstance(named, str) else named))
            shared = [scale for scale in shared if scale in have]
        if not shared:
            raise Unanswerable("no scale is common to " + " and ".join(map(repr, arms)))
        return shared[-1:] if named == "largest" else shared

    def cell(self, arm: str, scale: str, learning_rates: tuple[float, float] | None = None) -> Cell:
        """One arm at one scale, within a range of learning rates.

        Raises:
            Unanswerable: it has no results.
        """
        cell = self._cells.get((arm, scale))
        if cell is None or not cell.losses.size:
            raise Unanswerable(f"arm {arm!r} has no results at {scale}")
        if learning_rates is None:
            return cell
        return at_learning_rates(cell, [rate for rate in cell.learning_rates if within(rate, learning_rates)])

    def values(
        self,
        quantity: str,
        arm: str,
        scales: Sequence[str],
        learning_rates: tuple[float, float] | None = None,
    ) -> pl.DataFrame:
        """The runs of an arm with their `value` of a quantity (null where a run has none).

        Raises:
            Unanswerable: the table has no such quantity, or no run is left.
        """
        if quantity not in self.runs.columns:
            raise Unanswerable(f"the table has no quantity {quantity!r}")
        if not self.runs.schema[quantity].is_numeric():
            raise Unanswerable(f"{quantity!r} is not a number")
        low, high = learning_rates or (0.0, math.inf)
        inside = pl.col("learning_rate").is_between(low * (1 - _ROUNDING), high * (1 + _ROUNDING))
        chosen = self.runs.filter((pl.col("arm") == arm) & pl.col("scale").is_in(list(scales)) & inside)
        if chosen.is_empty():
            raise Unanswerable(f"arm {arm!r} has no results there")
        value = pl.col(quantity).cast(pl.Float64)
        return chosen.with_columns(pl.when(value.is_finite()).then(value).alias("value"))

    def box(
        self, quantity: str, arm: str, scales: Sequence[str], learning_rates: tuple[float, float] | None = None
    ) -> Box:
        """A quantity over all seeds and scales, on the learning rates at which every one of them has a value.

        Raises:
            Unanswerable: as `values`, or no learning rate is complete.
        """
        runs = self.values(quantity, arm, scales, learning_rates).sort("n_params", "learning_rate", "seed", "data_seed")
        seeds = list(dict.fromkeys(runs.select("seed", "data_seed").iter_rows()))
        sizes = dict(runs.select("scale", "n_params").iter_rows())
        names, rates = list(sizes), sorted(set(runs["learning_rate"]))
        array = np.full((len(seeds), len(names), len(rates)), math.nan)
        for seed, data_seed, scale, rate, value in runs.select(
            "seed", "data_seed", "scale", "learning_rate", "value"
        ).iter_rows():
            if value is not None:
                array[seeds.index((seed, data_seed)), names.index(scale), rates.index(rate)] = value
        whole = np.isfinite(array).all(axis=(0, 1))
        if not whole.any():
            raise Unanswerable(
                f"{quantity!r} has no learning rate at which every seed and scale of {arm!r} has a value"
            )
        sizes_array = np.array([sizes[name] for name in names], float)
        kept, lost = np.array(rates)[whole], np.array(rates)[~whole]
        return Box(tuple(seeds), tuple(names), sizes_array, kept, array[:, :, whole], tuple(lost.tolist()))


def find_arm(named: str, known: Sequence[str]) -> str:
    """The one of the known arms that a claim names; see `Results.arm`."""
    if named in known:
        return named
    fitting = [arm for arm in known if _parts(named) <= _parts(arm)] if named else list(known)
    if len(fitting) == 1:
        return fitting[0]
    problem = "names several arms" if fitting else "names no arm"
    raise Unanswerable(f"{named or 'no name'!r} {problem}: there are {', '.join(map(repr, known)) or 'none'}")


def within(rate: float, bounds: tuple[float, float]) -> bool:
    """Whether a learning rate lies in a range, ends included."""
    return bool(bounds[0] * (1 - _ROUNDING) <= rate <= bounds[1] * (1 + _ROUNDING))


def at_learning_rates(cell: Cell, rates: Sequence[float]) -> Cell:
    """A cell at some of its learning rates only."""
    keep = np.isin(cell.learning_rates, list(rates))
    return replace(
        cell,
        learning_rates=cell.learning_rates[keep],
        losses=cell.losses[:, keep],
        diverged=cell.diverged[:, keep],
    )


def at_seeds(cell: Cell, seeds: Sequence[Replica]) -> Cell:
    """A cell with some of its seeds only, in the order given."""
    rows = [cell.seeds.index(seed) for seed in seeds]
    return replace(
        cell,
        losses=cell.losses[rows],
        diverged=cell.diverged[rows],
        losses_initial=cell.losses_initial[rows],
        seeds=tuple(seeds),
    )


def slope_weights(x: Sequence[float] | Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
    """What to multiply values with to get their least-squares slope on ln x."""
    centred = np.log(np.asarray(x, float))
    centred = centred - centred.mean()
    total = float(np.sum(centred**2))
    if total == 0:
        raise Unanswerable("all scales have the same N")
    return np.asarray(centred / total)


def _parts(label: str) -> frozenset[str]:
    return frozenset(part.strip() for part in label.split(",") if part.strip())
