"""The figure that shows what a claim is about."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from stability.analysis import figures, sensitivity
from stability.analysis.claims import Claim
from stability.analysis.claims.results import LOSS, SENSITIVITY
from stability.analysis.figures import Chart
from stability.analysis.figures.catalogue import file_names
from stability.analysis.load import Source
from stability.analysis.source import COLUMNS

BY_LOSS, BY_SENSITIVITY, BY_EDGE = "loss_by_learning_rate", "sensitivity_by_n_params", "stable_edge_by_n_params"
BY_LOGIT = "attention_logit_max_by_learning_rate"
_OF_A_KIND = {
    "sensitivity_below": BY_SENSITIVITY,
    "sensitivity_alike": BY_SENSITIVITY,
    "stable_edge_falls_with_n": BY_EDGE,
    "trains_at_every_learning_rate": BY_LOSS,
    "best_learning_rate_stays": BY_LOSS,
    "best_learning_rate_rises": BY_LOSS,
    "best_learning_rate_falls": BY_LOSS,
}
_OF_A_QUANTITY = {
    LOSS: BY_LOSS,
    SENSITIVITY: BY_SENSITIVITY,
    "attention_logit_max": BY_LOGIT,
}


def figure_of(claim: Claim, quantities: Sequence[str]) -> str:
    """The name of the figure, as the analysis names its files.

    Args:
        claim: one of a sweep.
        quantities: those that its table of runs has, in order.
    """
    if claim.kind in _OF_A_KIND:
        return _OF_A_KIND[claim.kind]
    curve = getattr(claim, "curve", None)
    quantity: str = curve.quantity if curve is not None else getattr(claim, "quantity", LOSS)
    return _OF_A_QUANTITY.get(quantity) or file_names(quantities).get(quantity, BY_LOSS)


def draw(found: Source, summary: Mapping[str, Any], names: Collection[str]) -> dict[str, Chart]:
    """Those of the figures that `figure_of` may name, by their names; one that has nothing to show is left out.

    Args:
        found: the runs.
        summary: what the analysis made of them.
        names: which figures.
    """
    table = found.table
    edges = (summary[key] for key in ("max_stable_learning_rate", "stable_edge_fit", "forecasts"))
    ways: dict[str, Callable[[], Chart | None]] = {
        BY_LOSS: lambda: figures.loss_by_learning_rate(table),
        BY_SENSITIVITY: lambda: figures.sensitivity_by_n_params(sensitivity(table)),
        BY_EDGE: lambda: figures.stable_edge_by_n_params(*edges),
        BY_LOGIT: lambda: figures.attention_logit_max_by_learning_rate(table),
    }
    for name, file in file_names(table.columns[len(COLUMNS) :]).items():
        ways[file] = partial(figures.quantity_by_learning_rate, table, name)
    return {name: chart for name in sorted(names) if (chart := ways[name]()) is not None}
