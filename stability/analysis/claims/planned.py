"""Whether claims are about what a sweep plans: an arm, a scale or a quantity that it lacks is a slip, found in time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields

import polars as pl

from stability.analysis.claims.results import LOSS, SENSITIVITY, Unanswerable, find_arm
from stability.analysis.claims.vocabulary import BestLearningRateTrend, Claim, Curve, ExceedsOnlyIn
from stability.analysis.source import COLUMNS
from stability.errors import InputError

KNOWN_QUANTITIES = (LOSS, SENSITIVITY, *(name for name, dtype in COLUMNS.items() if dtype != pl.String))
"""What claims may be about in every sweep."""


def check_claims(claims: Mapping[str, Claim], arms: Mapping[str, Collection[str]], quantities: Collection[str]) -> None:
    """Refuse claims that no result of a sweep could decide.

    Args:
        claims: by their names.
        arms: label of each arm planned -> the scales that it has runs at.
        quantities: names of those that the sweep declares.

    Raises:
        InputError: a claim names an arm, a scale or a quantity that there will not be, or leaves open which arm.
    """
    scales = list(dict.fromkeys(scale for each in arms.values() for scale in each))
    for name, claim in claims.items():
        for side, key in _sides(claim, f"claims.{name}"):
            for field, arm in _arms(side):
                _check_arm(f"{key}.{field}", arm, list(arms))
            for field in ("quantity", "than_quantity"):
                _check_quantity(f"{key}.{field}", getattr(side, field, ""), quantities)
            _check_scales(f"{key}.scales", getattr(side, "scales", ()), scales)


def _sides(claim: Claim, key: str) -> Iterator[tuple[Claim | Curve, str]]:
    """The claim, and the curves that it compares."""
    yield claim, key
    for one in fields(claim):
        if isinstance(value := getattr(claim, one.name), Curve):
            yield value, f"{key}.{one.name}"


def _arms(side: Claim | Curve) -> Iterator[tuple[str, str]]:
    """The fields that name arms; one that is empty means the only arm there is, unless it means all or none."""
    several: Sequence[str] = getattr(side, "arms", ())
    for arm in several:
        yield "arms", arm
    only = getattr(side, "arm", None)
    stands_for_none = isinstance(side, ExceedsOnlyIn) or (isinstance(side, BestLearningRateTrend) and several)
    if isinstance(only, str) and (only or not stands_for_none):
        yield "arm", only
    than = getattr(side, "than", None)
    if isinstance(than, str) and than:
        yield "than", than


def _check_arm(key: str, named: str, known: Sequence[str]) -> None:
    try:
        find_arm(named, known)
    except Unanswerable:
        fitting = "names no arm of this sweep" if named else "leaves open which arm is meant"
        fix = f"Name one so that no other fits: {', '.join(known)}."
        raise InputError(key, named, fitting, fix) from None


def _check_quantity(key: str, named: str, declared: Collection[str]) -> None:
    known = [*declared, *KNOWN_QUANTITIES]
    if named and named not in known:
        fix = f"Declare it under quantities, or name one of {', '.join(known)}."
        raise InputError(key, named, "is no quantity of this sweep", fix)


def _check_scales(key: str, named: str | Sequence[str], known: Sequence[str]) -> None:
    for scale in () if isinstance(named, str) else named:
        if scale not in known:
            raise InputError(key, scale, "is no scale of this sweep", f"Its scales are {', '.join(known)}.")
