"""Quantities and claims from a YAML file: a sweep file of ours, or one written for somebody's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stability.errors import InputError

_KEYS = ("quantities", "claims")


@dataclass(frozen=True)
class Definitions:
    """What to read from the runs and what to test on them, both name -> fields, not yet checked."""

    quantities: Mapping[str, Any]
    claims: Mapping[str, Any]


def read_definitions(path: str | Path) -> Definitions:
    """Read `quantities` and `claims` from a YAML file, at its top or under `sweep`, as in sweeps/sweep/*.yaml.

    Raises:
        InputError: the file cannot be read, is no YAML mapping, holds neither key, or refers to a ladder, which only a
            sweep's manifest resolves.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("claims", path, f"cannot be read ({error.strerror})", "Name a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise InputError("claims", path, f"is not YAML ({problem})", "Mend it, or name another file.") from None
    content = content.get("sweep", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not any(key in content for key in _KEYS):
        raise InputError("claims", path, "holds neither `claims` nor `quantities`", "Give it one of them, by name.")
    parts = {key: content.get(key) or {} for key in _KEYS}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise InputError(key, part, f"is no mapping of names (in {path})", "Write NAME: {...} for each.")
        if reference := _reference(part):
            problem = f"refers to the configuration of a sweep (in {path})"
            raise InputError(key, reference, problem, "Write the value itself, or analyse the sweep's results folder.")
    return Definitions(**parts)


def _reference(value: Any) -> str | None:
    """The first `${...}` in a tree of values."""
    if isinstance(value, str):
        return value if "${" in value else None
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for child in children if (found := _reference(child))), None)
