"""What can be forecast: declared in sweep files under `forecasts`, or in any YAML.

forecasts:
  logits_that_fail:
    quantity: logit_max_early
    threshold: estimated
    factors: [2, 4]
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from stability.analysis.forecast.data import Direction
from stability.errors import InputError

Positive = Annotated[float, Field(allow_inf_nan=False), Gt(0)]
Size = Annotated[Positive, Field(ge=1, lt=1e18)]


@dataclass(frozen=True, kw_only=True)
class QuantityForecast:
    """A quantity to forecast over N and LR.

    Attributes:
        quantity: a column of the table of runs: one of the sweep's quantities, or any number of a table.
        threshold: beyond which runs fail, as a value of the quantity, or `estimated` from the runs' verdicts.
        direction: on which side of the threshold the danger lies.
        n_params: sizes.
        factors: sizes, as multiples of an arm's largest.
        arms: labels of the arms to forecast; all of them when empty.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    quantity: Annotated[str, Field(min_length=1)]
    threshold: Positive | Literal["estimated"] = "estimated"
    direction: Direction = "above"
    n_params: tuple[Size, ...] = ()
    factors: tuple[Positive, ...] = (2.0, 4.0)
    arms: tuple[str, ...] = ()

    @property
    def nominal(self) -> float | None:
        """The threshold where it is given."""
        return None if self.threshold == "estimated" else float(self.threshold)


def parse_forecasts(forecasts: Mapping[str, Any]) -> dict[str, QuantityForecast]:
    """Read forecasts, name -> fields.

    Raises:
        InputError: an unknown field, or a value of a wrong type or range, with what is allowed.
    """
    if not isinstance(forecasts, Mapping):
        raise InputError("forecasts", forecasts, "is no mapping", "Write NAME: {quantity: ..., threshold: ...}.")
    return {str(name): _parse(str(name), content) for name, content in forecasts.items()}


def _parse(name: str, content: Any) -> QuantityForecast:
    if isinstance(content, QuantityForecast):
        content = asdict(content)
    if not isinstance(content, Mapping):
        raise InputError(f"forecasts.{name}", content, "is not a forecast", "Give it a `quantity` and a `threshold`.")
    try:
        return TypeAdapter(QuantityForecast).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        words = {field.name for field in fields(QuantityForecast)}
        key = next((str(part) for part in first["loc"] if str(part) in words), ".".join(map(str, first["loc"])))
        problem = "must be a positive number, or `estimated`" if key == "threshold" else first["msg"]
        fix = f"A forecast has the fields {', '.join(sorted(words))}."
        raise InputError(f"forecasts.{name}.{key}", first.get("input"), problem, fix) from None
