"""What can be claimed of a sweep's records: a small typed vocabulary, read from a sweep file or any YAML.

    qk_layernorm_lowers_sensitivity:
      kind: sensitivity_below
      arm: qk_layernorm=per_head
      than: qk_layernorm=none

An arm is named by its label or by the parts of it that tell it apart (`qk_layernorm=none` also names the only one of
several whose label holds it). Scales are named, or `every`, or `largest`. Nothing here holds a verdict.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from annotated_types import Ge, Gt, Len, Lt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from stability.analysis.sensitivity import Estimator
from stability.errors import InputError

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Gt(0)]
NonNegative = Annotated[Number, Ge(0)]
Share = Annotated[Number, Gt(0), Lt(1)]
Scales = Literal["every", "largest"] | tuple[str, ...]
Arms = Annotated[tuple[str, ...], Len(2)]
Range = tuple[Positive, Positive]
Axis = Literal["n_params", "learning_rate"]


C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def claim(cls: type[C]) -> type[C]:
    """A frozen keyword-only dataclass that refuses unknown keys."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


@claim
class Statement:
    """What every claim may hold beside its test.

    Attributes:
        paper: what the paper states, in our own words. Shown beside the verdict, and no part of the test.
    """

    paper: str = ""


@claim
class SensitivityBelow(Statement):
    """LR sensitivity of `arm` is below that of `than` by more than `margin` (nats per token), at the scales named.

    Per seed and on the learning rates that both arms have. With `than_ranges` each arm keeps its own grid, and `than`
    gets the best of the ranges given (arXiv 2309.14322, Section 3.2.2: the better of two).
    """

    kind: Literal["sensitivity_below"]
    arm: str
    than: str
    scales: Scales = "every"
    margin: NonNegative = 0.0
    estimator: Estimator = "mean"
    than_ranges: tuple[Range, ...] = ()


@claim
class SensitivityAlike(Statement):
    """LR sensitivity of any two of the arms differs by less than `within` (nats per token), at the scales named."""

    kind: Literal["sensitivity_alike"]
    arms: Arms
    within: Positive
    scales: Scales = "every"
    estimator: Estimator = "mean"


@claim
class StableEdgeFalls(Statement):
    """The highest stable LR falls as N grows: the slope of its logarithm on log N is negative."""

    kind: Literal["stable_edge_falls_with_n"]
    arm: str = ""


@claim
class TrainsAtEveryLearningRate(Statement):
    """At most a share `tolerance` of the arm's runs, over all learning rates of the grid, is unstable."""

    kind: Literal["trains_at_every_learning_rate"]
    arm: str = ""
    scales: Scales = "every"
    tolerance: Share = 0.1


@claim
class BestLearningRateStays(Statement):
    """The best LR moves by less than `within` steps of the grid between any two of the scales."""

    kind: Literal["best_learning_rate_stays"]
    arm: str = ""
    scales: Scales = "every"
    within: Positive = 1.0


@claim
class BestLearningRateTrend(Statement):
    """The best LR rises, or falls, with N (over the scales of `arm`), or over `arms` in the order given."""

    kind: Literal["best_learning_rate_rises", "best_learning_rate_falls"]
    arm: str = ""
    arms: tuple[str, ...] = ()
    scales: Scales = "every"


@claim
class ExceedsOnlyIn(Statement):
    """`quantity` exceeds `threshold` only in runs that diverge (`runs: diverged`) or fail to train (`runs: unstable`).

    Holds when at most a share `tolerance` of the runs beyond the threshold are of the other kind, fails when more are.
    """

    kind: Literal["exceeds_only_in"]
    quantity: str
    threshold: Number
    runs: Literal["diverged", "unstable"] = "diverged"
    arm: str = ""
    scales: Scales = "every"
    tolerance: Share = 0.2


@claim
class QuantityBelow(Statement):
    """`quantity` is lower in `arm` than in `than`, run by run: same seed, scale and LR.

    Without `than`, `quantity` is lower than `than_quantity` in the same runs.
    """

    kind: Literal["quantity_below"]
    quantity: str
    arm: str = ""
    than: str = ""
    than_quantity: str = ""
    scales: Scales = "every"
    learning_rates: Range | None = None
    margin: NonNegative = 0.0


@claim
class QuantityWithin(Statement):
    """`quantity` is at most `at_most` and at least `at_least` in all but a share `tolerance` of the arm's runs."""

    kind: Literal["quantity_within"]
    quantity: str
    arm: str = ""
    at_most: Number | None = None
    at_least: Number | None = None
    scales: Scales = "every"
    learning_rates: Range | None = None
    tolerance: Share = 0.1


@claim
class Curve:
    """One side of a comparison of growth: whose quantity, along which scales."""

    quantity: str
    arm: str = ""
    scales: Scales = "every"


@claim
class QuantityTrend(Statement):
    """`quantity` rises, or falls, with N or with LR: its log-log slope, the other being held, is beyond `slope`."""

    kind: Literal["quantity_rises", "quantity_falls"]
    quantity: str
    along: Axis
    arm: str = ""
    scales: Scales = "every"
    learning_rates: Range | None = None
    slope: NonNegative = 0.0


@claim
class GrowsFaster(Statement):
    """A quantity (or `sensitivity`) grows faster with N, or LR, along one curve than along another: log-log slopes."""

    kind: Literal["grows_faster"]
    along: Axis = "n_params"
    curve: Curve
    than: Curve
    learning_rates: Range | None = None


@claim
class SetByLearningRate(Statement):
    """`quantity` is set by the LR and not by N: over scales it changes by less than `at_most` of its change over LRs.

    Changes are of its logarithm's means, over a full table of scales and learning rates.
    """

    kind: Literal["set_by_learning_rate"]
    quantity: str
    arm: str = ""
    scales: Scales = "every"
    learning_rates: Range | None = None
    at_most: Share = 0.25


Claim = (
    SensitivityBelow
    | SensitivityAlike
    | StableEdgeFalls
    | TrainsAtEveryLearningRate
    | BestLearningRateStays
    | BestLearningRateTrend
    | ExceedsOnlyIn
    | QuantityBelow
    | QuantityWithin
    | QuantityTrend
    | GrowsFaster
    | SetByLearningRate
)
CLAIMS: Mapping[str, type[Any]] = {
    kind: cls for cls in get_args(Claim) for kind in get_args(cls.__annotations__["kind"])
}
"""Kind -> the class that says what a claim of it needs."""


def parse_claims(claims: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Read claims, name -> fields, into the vocabulary.

    Raises:
        InputError: an unknown kind or field, or a value of a wrong type or range, with what is allowed.
    """
    return {name: _parse(name, content) for name, content in claims.items()}


def _parse(name: str, content: Any) -> Claim:
    if not isinstance(content, Mapping):
        raise InputError(f"claims.{name}", content, "is not a claim", "Give it a `kind` and that kind's fields.")
    kind = str(content.get("kind"))
    if kind not in CLAIMS:
        raise InputError(f"claims.{name}.kind", kind, "is no kind of claim", f"Choose one of: {', '.join(CLAIMS)}.")
    try:
        parsed: Claim = TypeAdapter(CLAIMS[kind]).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Members of a union add their types to the location; keys of the vocabulary are words.
        key = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() and part != "Literal")
        allowed = ", ".join(f.name for f in fields(CLAIMS[kind]) if f.name != "kind")
        raise InputError(
            f"claims.{name}.{key}", first.get("input"), first["msg"], f"A {kind} has the fields {allowed}."
        ) from None
    _check(name, parsed)
    return parsed


def _check(name: str, parsed: Claim) -> None:
    """What no single field can say."""
    if isinstance(parsed, QuantityWithin) and parsed.at_most is None and parsed.at_least is None:
        raise InputError(f"claims.{name}", parsed.quantity, "has no bound", "Give at_most, at_least or both.")
    if isinstance(parsed, QuantityBelow) and not (parsed.than or parsed.than_quantity):
        raise InputError(f"claims.{name}", parsed.quantity, "is compared with nothing", "Give than or than_quantity.")
    if isinstance(parsed, BestLearningRateTrend) and parsed.arms and parsed.arm:
        raise InputError(f"claims.{name}", parsed.arms, "names arm and arms", "Give one of the two.")
    for low, high in _ranges(parsed):
        if low >= high:
            raise InputError(
                f"claims.{name}", f"{low}, {high}", "is no range of learning rates", "Put the lower first."
            )


def _ranges(parsed: Claim) -> Iterable[Range]:
    given = getattr(parsed, "learning_rates", None)
    return (*getattr(parsed, "than_ranges", ()), *((given,) if given else ()))
