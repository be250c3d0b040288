"""Quantities, claims and forecasts from a YAML file: a sweep file of ours, or one written for somebody's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.errors import InputError
from stability.untrusted.yaml_text import read_yaml

_KEYS = ("quantities", "claims", "forecasts")


@dataclass(frozen=True)
class Definitions:
    """What to read from the runs, to test on them and to forecast, each name -> fields, not yet checked."""

    quantities: Mapping[str, Any]
    claims: Mapping[str, Any]
    forecasts: Mapping[str, Any]


def read_definitions(path: str | Path, key: str = "claims") -> Definitions:
    """Read `quantities`, `claims` and `forecasts` of a YAML file, at its top or under `sweep`: sweeps/sweep/*.yaml.

    Args:
        path: of the file.
        key: that named it, for errors.

    Raises:
        InputError: the file cannot be read, is no YAML mapping, holds neither key, or refers to a ladder, which only a
            sweep's manifest resolves.
    """
    path = Path(path)
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), key, path)
    except OSError as error:
        raise InputError(key, path, f"cannot be read ({error.strerror})", "Name a YAML file.") from None
    except UnicodeDecodeError as error:
        raise InputError(key, path, f"is not YAML ({error})", "Mend it, or name another file.") from None
    content = content.get("sweep", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not any(key in content for key in _KEYS):
        problem = "holds neither `claims` nor `quantities` nor `forecasts`"
        raise InputError(key, path, problem, "Give it one of them, by name.")
    parts = {name: content.get(name) or {} for name in _KEYS}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise InputError(name, part, f"is no mapping of names (in {path})", "Write NAME: {...} for each.")
        try:
            reference = _reference(part)
        except RecursionError:
            raise InputError(
                key, path, f"has {name} that hold themselves", "Write them out, without * and &."
            ) from None
        if reference:
            problem = f"refers to the configuration of a sweep (in {path})"
            raise InputError(name, reference, problem, "Write the value itself, or analyse the sweep's results folder.")
    return Definitions(**parts)


def _reference(value: Any) -> str | None:
    """The first `${...}` in a tree of values."""
    if isinstance(value, str):
        return value if "${" in value else None
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for child in children if (found := _reference(child))), None)
