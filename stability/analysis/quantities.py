"""Quantities: a named number for each run, read from what was observed over its training.

    early_attention_logit_max: {metric: attention_logit/max/block_00, at_step: 2000}
    gradient_rms_final: {metric: gradient/rms/block_00/mlp/inner, last_steps: 500, reduce: mean}

A metric is a name in `metrics.jsonl` (docs/observations.md) or a column of a table. A quantity that is one value which
was not finite is null; a mean, a largest and a smallest value pass over those that were not.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Annotated, Any, Literal

import polars as pl
from annotated_types import MinLen
from pydantic import ConfigDict

from stability.analysis.source import RESERVED
from stability.errors import InputError
from stability.tracking.record import Metrics
from stability.typed import Count, Steps, from_mapping


@dataclass(frozen=True)
class Quantity:
    """How to make one number of a run's values of one metric.

    Without `at_step` and `last_steps` it is reduced over the whole run.

    Attributes:
        metric: a name in metrics.jsonl or a column of a table; rows that do not have it are passed over.
        at_step: the value at the last step up to this one. Null for a run that ended before this step.
        last_steps: over the rows of the last so many steps only: step > steps - last_steps, `steps` being the updates
            made. Not beside `at_step`.
        reduce: of several values the last observed, the mean, the largest or the smallest.
        absolute: of the absolute values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    metric: Annotated[str, MinLen(1)]
    at_step: Steps | None = None
    last_steps: Count | None = None
    reduce: Literal["last", "mean", "max", "min"] = "last"
    absolute: bool = False

    @property
    def needs_steps(self) -> bool:
        """It can be read only where a run's values are known step by step."""
        return self.at_step is not None or self.last_steps is not None


def parse_quantities(mapping: Mapping[str, Mapping[str, Any] | Quantity]) -> dict[str, Quantity]:
    """Quantities by their names, from plain mappings.

    Raises:
        InputError: a name belongs to another column, or a definition has an unknown key or a bad value.
    """
    if not isinstance(mapping, Mapping):
        raise InputError("quantities", mapping, "is no mapping", "Write name: {metric: ...}.")
    return {name: _parse(name, content) for name, content in mapping.items()}


def _parse(name: str, content: Mapping[str, Any] | Quantity) -> Quantity:
    key = f"quantities.{name}"
    if not isinstance(name, str) or not name.strip():
        raise InputError("quantities", repr(name), "is no name", "Give every quantity a name.")
    if name in RESERVED:
        raise InputError(key, content, "has the name of another column of the table of runs", "Choose another name.")
    if isinstance(content, Quantity):
        content = asdict(content)
    if not isinstance(content, Mapping):
        raise InputError(key, content, "is no mapping", "Write {metric: NAME} with at_step, last_steps or reduce.")
    known = [field.name for field in fields(Quantity)]
    for unknown in [word for word in content if word not in known]:
        near = difflib.get_close_matches(str(unknown), known, n=1)
        fix = f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(known)}."
        raise InputError(f"{key}.{unknown}", content[unknown], "there is no such key", fix)
    try:
        quantity = from_mapping(Quantity, content)
    except InputError as error:
        fix = f"It is a mapping such as {name}: {{metric: loss/train, last_steps: 500, reduce: mean}}."
        raise InputError(f"{key}.{error.key}", error.value, error.problem, fix) from None
    if quantity.at_step is not None and (quantity.last_steps is not None or quantity.reduce != "last"):
        raise InputError(
            f"{key}.at_step", quantity.at_step, "is one value, and leaves nothing to reduce", "Leave the others out."
        )
    return quantity


# --- of a run's metrics file ------------------------------------------------------------------------------------------


def of_metrics(quantity: Quantity, metrics: Metrics, steps: int | None) -> float | None:
    """One run's quantity, None where it has none.

    Args:
        quantity: what to read.
        metrics: the run's metrics file, open.
        steps: updates made; None takes the step of the last row.

    Raises:
        InputError: as `Metrics.values`.
    """
    end = metrics.last_step
    if end is None:
        return None
    if quantity.at_step is not None:
        if end < quantity.at_step:
            return None
        found: Iterator[float | None] = islice(metrics.values(quantity.metric, 0, quantity.at_step), 1)
    elif quantity.last_steps is not None:
        found = metrics.values(quantity.metric, (end if steps is None else steps) - quantity.last_steps + 1)
    else:
        found = metrics.values(quantity.metric)
    if quantity.reduce == "last":
        found = islice(found, 1)
    known = [abs(value) if quantity.absolute else value for value in found if value is not None]
    return _REDUCE[quantity.reduce](known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


_REDUCE: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[0],
    "mean": _mean,
    "max": max,
    "min": min,
}


def metric_names(metrics: Metrics) -> set[str]:
    """The metrics that a run's first and last rows hold, which is all of them but for rare ones."""
    last = metrics.last_step
    if last is None:
        return set()
    return {name for row in (*metrics.rows(0, 0), *metrics.rows(last - 1)) for name in row} - {"step"}


# --- of a table -------------------------------------------------------------------------------------------------------


def expression(quantity: Quantity, column: str, step: str | None, steps: pl.Expr | None) -> pl.Expr:
    """A run's quantity as an aggregation over its rows, which ascend in step.

    Args:
        quantity: what to read.
        column: a Float64 column, null where a row does not have the metric, NaN or infinite where it was not finite.
        step: the column of steps; None where a run is one row, and then the quantity must not need steps.
        steps: updates made, as an aggregation.
    """
    values = pl.col(column)
    wanted = values.is_not_null()
    if step is not None and quantity.at_step is not None:
        wanted &= pl.col(step) <= quantity.at_step
    if step is not None and steps is not None and quantity.last_steps is not None:
        wanted &= pl.col(step) > steps - quantity.last_steps
    values = values.filter(wanted)
    if quantity.reduce == "last":
        values = values.last()
    finite = pl.when(values.is_finite()).then(values.abs() if quantity.absolute else values)
    if quantity.reduce != "last":
        finite = getattr(finite, quantity.reduce)()
    if step is not None and quantity.at_step is not None:
        finite = pl.when(pl.col(step).max() >= quantity.at_step).then(finite)
    return finite


def unknown_metric_warning(name: str, quantity: Quantity, known: Iterable[str]) -> str:
    """What to say of a quantity whose metric no run has."""
    names = sorted(set(known))
    near = difflib.get_close_matches(quantity.metric, names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"No run has the metric {quantity.metric} of the quantity {name}, which is null everywhere{hint}"
