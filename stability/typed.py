"""Plain nested values to typed frozen dataclasses, and errors that name the key, the value and the fix. No JAX."""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BeforeValidator, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError

from stability.errors import InputError


def _whole(value: Any) -> Any:
    """Let 1e3 stand for 1000, as people write steps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_sign_of_zero(value: float) -> float:
    """-0.0 and 0.0 are one setting, with one fingerprint."""
    return value + 0.0


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is a boolean where a number is wanted")
    return value


FLOAT32_TINY, FLOAT32_MAX, INT32_MAX = 1.1754944e-38, 3.4028235e38, 2**31 - 1
"""What the program's numbers can hold: below the first, float32 is 0 on most devices."""
Number = Annotated[
    float, BeforeValidator(_no_bool), AfterValidator(_no_sign_of_zero), FieldInfo(allow_inf_nan=False), Le(FLOAT32_MAX)
]
Positive = Annotated[Number, Gt(0), Ge(FLOAT32_TINY)]
NonNegative = Annotated[Number, Ge(0)]
Fraction = Annotated[Number, Ge(0), Lt(1)]
Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Count = Annotated[Whole, Ge(1), Le(INT32_MAX)]
Steps = Annotated[Whole, Ge(0), Le(INT32_MAX)]
Seed = Annotated[Whole, Ge(0), Le(2**32 - 1)]

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _bytes(value: Any) -> Any:
    """Let 8GB stand for 8000000000."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", value) if isinstance(value, str) else None
    if isinstance(value, str) and (match is None or (match[2] or "B") not in BYTES):
        raise ValueError(f"is no amount of memory; write it as 8GB or 500MB (units: {', '.join(BYTES)})")
    return round(float(match[1]) * BYTES[match[2] or "B"]) if match else value


Bytes = Annotated[Whole, BeforeValidator(_bytes), Ge(1)]
"""A number of bytes, or text such as 8GB."""
Text = Annotated[str, MinLen(1)]
"""Of a name or a path: an empty one is a slip, and as a path would be the working folder."""


def _one_line(value: str) -> str:
    """Of an option in a script: a line end would begin a command of its own."""
    if not value.isprintable():
        raise ValueError("holds a line end or another character that cannot be printed")
    return value


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _gpus(value: str) -> str:
    if not re.fullmatch(r"([\w.-]+:)?[1-9][0-9]*", value, re.ASCII):
        raise ValueError("is no number of GPUs; write 8, or a kind and a number, a100:8")
    return value


Word = Annotated[Text, BeforeValidator(_number_as_text), AfterValidator(_one_line)]
"""Text in one line; a number stands for its digits."""
Gpus = Annotated[Word, AfterValidator(_gpus)]


T = TypeVar("T")


def _built(cls: type[Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(cls)
    except SchemaError as error:
        if KeyboardInterrupt.__name__ in str(error):  # what pydantic makes of Ctrl-C there
            raise KeyboardInterrupt from error
        raise


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(_built)
"""One for each class: building it takes as long as validating a hundred configs."""


def from_mapping(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Read a typed config from plain nested values, refusing unknown keys and values of a wrong type or range.

    Raises:
        InputError: names the dotted key, its value, and what is allowed there.
    """
    try:
        typed: T = _adapter(cls).validate_python(mapping)
        return typed
    except ValidationError as error:
        raise _input_error(cls, error) from None


def _input_error(cls: type[Any], error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    known = {f.name for f in fields(cls)}
    path = [str(part) for part in first["loc"]]
    # A member of a union adds its own type to the location; only names of fields are keys.
    key = ".".join(
        part for i, part in enumerate(path) if i == 0 or part not in ("float", "int", "none") or part in known
    )
    value = first["input"]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_key(cls, key, value)
    problem = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return InputError(key, value, problem, f"Give {key} a value that it allows{_default(cls, key)}.")


def _default(cls: type[Any], key: str) -> str:
    """What a key is where nobody says anything, as a hint; empty where there is no such thing."""
    found = next((f for name, f in dotted_fields(cls) if name == key), None)
    if found is None or found.default in (dataclasses.MISSING, ""):
        return ""
    text = json.dumps(found.default, separators=(",", ":")).replace('"', "")
    return f"; the default is {text}"


def refuse_unknown(cls: type[Any], given: Mapping[str, Any]) -> None:
    """Raise the error of the first key that a class of keys without groups does not have; before one that it lacks."""
    known = {f.name for f in fields(cls)}
    for key, value in given.items():
        if key not in known:
            raise unknown_key(cls, key, value)


def unknown_key(cls: type[Any], key: str, value: object, also: Sequence[str] = ()) -> InputError:
    """The error for a key that nothing reads, with the nearest keys that exist in the config class and in `also`."""
    known = [name for name, _ in dotted_fields(cls)] + list(also)
    parent, _, last = key.rpartition(".")
    lasts = {name.rsplit(".", 1)[-1]: name for name in known}
    near = [name for name in known if name.rsplit(".", 1)[-1] == last]
    siblings = [name for name in known if parent and name.startswith(f"{parent}.")]
    lasts |= {name.rsplit(".", 1)[-1]: name for name in siblings}  # of two of one name, the one that stands there
    near += [lasts[one] for one in difflib.get_close_matches(last, lasts, n=3, cutoff=0.7) if lasts[one] not in near]
    if near:
        fix = f"Did you mean {' or '.join(near[:3])}?"
    elif siblings:
        fix = f"The keys there are {', '.join(siblings)}."
    elif any("." in name for name in known):
        fix = "`python -m stability.run --cfg job` shows every key."
    else:
        fix = f"The keys are {', '.join(known)}."
    return InputError(key, value, "there is no such key", fix)


def dotted_fields(cls: type[Any], prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Every field of a config class that holds a value, with its dotted key."""
    found: list[tuple[str, dataclasses.Field[Any]]] = []
    for f in fields(cls):
        nested: Any = f.default_factory
        if is_dataclass(nested):
            found += dotted_fields(nested, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            found.append((prefix + f.name, f))
    return found
