"""Every key of every command, wrong in type and in range: derived from the dataclasses, so that a new key is covered.

A key's annotation says what is wrong for it: a word for a number, a number beyond each of its bounds, a choice that
there is not, null where something is needed.
"""

import types
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from stability.alarms import AlarmSettings
from stability.analyze import AnalysisSettings
from stability.config import RunConfig
from stability.data.preparation.settings import PreparationSettings
from stability.launching.settings import Execution, Selection
from stability.replicate import ReplicationSettings
from stability.typed import dotted_fields
from stability.workspace import WorkspaceSettings
from tests.bad_input.case import Case


@dataclass(frozen=True)
class Kind:
    """What an annotation comes to: its type, whether null is one of its values, and what bounds it."""

    of: Any
    optional: bool
    bounds: tuple[Any, ...]


def kind_of(annotation: Any) -> Kind:
    """An annotation without its wrappings."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner = kind_of(get_args(annotation)[0])
        return Kind(inner.of, inner.optional, (*inner.bounds, *_bounds(annotation.__metadata__)))
    if origin in (Union, types.UnionType):
        members = [one for one in get_args(annotation) if one is not type(None)]
        first = kind_of(members[0])
        return Kind(first.of, first.optional or len(members) < len(get_args(annotation)), first.bounds)
    return Kind(annotation, False, ())


def _bounds(metadata: Sequence[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from _bounds(one.metadata) if isinstance(one, FieldInfo) else [one]


def wrong_values(annotation: Any) -> Iterator[tuple[str, str]]:
    """Texts that are no value of a key, each with what a message has to say of it."""
    kind = kind_of(annotation)
    origin = get_origin(kind.of)
    if kind.of in (int, float):
        yield "wrong", ""
        yield from _beyond(kind)
    elif kind.of is bool:
        yield "perhaps", "boolean"
    elif origin is Literal:
        yield "sideways", str(get_args(kind.of)[-1])
    elif kind.of is str:
        if any(isinstance(one, MinLen) for one in kind.bounds):
            yield "", "="
    elif origin is tuple:
        for text, said in wrong_values(get_args(kind.of)[0]):
            yield f"[{text}]", said
    elif origin in (dict, list):
        yield "7", ""


def _beyond(kind: Kind) -> Iterator[tuple[str, str]]:
    """A number just beyond each bound."""
    for bound in kind.bounds:
        match bound:
            case Ge(ge=low) if kind.of is int or low == 0:
                yield str(low - 1), "greater than"
            case Gt(gt=low):
                yield str(kind.of(low)), "greater than"
            case Le(le=high) if kind.of is int:
                yield str(high + 1), "less than"
            case Lt(lt=high):
                yield str(kind.of(high)), "less than"


# --- stability.run, whose values Hydra reads ------------------------------------------------------------------------

GROUPS = ("model", "optimizer", "schedule", "loss", "training", "data", "mesh", "tracking", "ladder")


def run_cases() -> list[Case]:
    """Every key of a run, of how to execute it, and of what it is made of."""
    found = []
    fields = [*dotted_fields(RunConfig), *dotted_fields(Execution), *dotted_fields(Selection)]
    for key, field in fields:
        plus = "+" if key.startswith("sweep.") else ""  # no sweep is chosen, so there is nothing to replace
        found += [_run_case(f"{plus}{key}", value, said) for value, said in _wrong_in_yaml(field)]
    found += [_run_case(key, "7", "dictionary") for key in GROUPS if key not in ("data", "tracking", "ladder")]
    return found


def _wrong_in_yaml(field: Field[Any]) -> Iterator[tuple[str, str]]:
    yield from wrong_values(field.type)
    kind = kind_of(field.type)
    if not kind.optional:
        yield "null", ""
    if kind.of is str:
        yield "[1,2]", "string"
    elif get_origin(kind.of) is tuple:
        yield "7", "tuple"
    elif kind.of is float:
        yield "true", "boolean"


_AS_READ = {"null": "None", "true": "True", "[1,2]": "[1, 2]"}


def _run_case(key: str, value: str, said: str) -> Case:
    inner = value.strip("[]") if value not in _AS_READ else _AS_READ[value]
    return Case("run", (f"{key}={value}", "dry_run=true"), (key.lstrip("+"), f"={inner}", said))


def misspelt_cases() -> list[Case]:
    """Every key with two letters of its last part changed places, which has to be asked back."""
    fields = [*dotted_fields(RunConfig), *dotted_fields(Execution)]
    found = []
    for key, _ in fields:
        group, dot, name = key.rpartition(".")
        misspelt = f"{group}{dot}{name[0]}{name[2]}{name[1]}{name[3:]}"
        if misspelt != key and len(name) > 3:  # of three letters too little stays
            found.append(Case("run", (f"{misspelt}=1", "dry_run=true"), (f"{misspelt}=1", "Did you mean", key)))
    return found


# --- the other commands, whose values are words ---------------------------------------------------------------------

TEXT_COMMANDS: tuple[tuple[str, type[Any], tuple[str, ...]], ...] = (
    ("analyze", AnalysisSettings, ("source=runs.csv",)),
    ("alarms", AlarmSettings, ("source=runs",)),
    ("prepare", PreparationSettings, ("source=a.txt", "tokenizer=bytes", "output_dir=out")),
    ("replicate", ReplicationSettings, ("dry_run=true",)),
    ("workspace", WorkspaceSettings, ("project=me/mine", "sweep=one")),
)
"""Command, the class of its keys, and words that a right command has."""


def text_cases() -> list[Case]:
    """Every key of the commands that read words: empty, of a wrong type and out of range; and misspelt."""
    found = []
    for program, settings, usual in TEXT_COMMANDS:
        for key, field in dotted_fields(settings):
            others = tuple(word for word in usual if not word.startswith(f"{key}="))
            for value, said in wrong_values(field.type):
                text = value.strip("[]")
                found.append(Case(program, (*others, f"{key}={text}"), (key, text, said)))
            misspelt = f"{key[0]}{key[2]}{key[1]}{key[3:]}"
            if misspelt != key:
                found.append(Case(program, (*others, f"{misspelt}=1"), (f"{misspelt}=1", key)))
    return found
