"""YAML that may be hostile: plain values only, and no more of them than a file can honestly hold."""

from typing import Any

import yaml

from stability.errors import InputError

MOST_CHARACTERS = 5_000_000
MOST_VALUES = 50_000
"""Values of a file once its aliases are written out. The largest of ours has a few hundred."""
DEEPEST = 50
"""Mappings and lists within each other."""


def read_yaml(text: str, key: str, where: object) -> Any:
    """Plain values of YAML text.

    Args:
        text: of a file.
        key: that named the file, for errors.
        where: the file, for errors.

    Raises:
        InputError: it is no YAML, names anything but plain values (`!!python/...`), or is a bomb.
    """
    check_yaml(text, key, where)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        raise not_yaml(key, where, error) from None


def check_yaml(text: str, key: str, where: object) -> None:
    """Refuse a bomb without setting it off, and text that is no YAML: for a file that somebody else's code will read.

    Only the parser's events are looked at: nothing is built, and nothing recurses.

    Raises:
        InputError: too long, too deep, or too large once its aliases are written out.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(key, where, f"has more than {MOST_CHARACTERS:,} characters", "Name a configuration file.")
    size = 0
    opened: list[tuple[str | None, int]] = []  # anchor and size before, of what is not closed yet
    sizes: dict[str, int] = {}
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor is not None:
                    sizes[anchor] = size - before
                continue
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise InputError(key, where, f"has the alias *{event.anchor} within itself", "Write it out.")
                size += sizes[event.anchor]
            elif isinstance(event, yaml.ScalarEvent):
                size += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, size))
                size += 1
            if len(opened) > DEEPEST:
                problem = f"nests more than {DEEPEST} mappings and lists within each other"
                raise InputError(key, where, problem, "Flatten it.")
            if size > MOST_VALUES:
                problem = f"has more than {MOST_VALUES:,} values once its aliases (*name) are written out"
                raise InputError(key, where, problem, "Write what it needs, without aliases of aliases.")
    except yaml.YAMLError as error:
        raise not_yaml(key, where, error) from None


def not_yaml(key: str, where: object, error: Exception) -> InputError:
    """What is said of a parser's error, on one line."""
    problem = " ".join(str(error).split())
    return InputError(key, where, f"is not YAML ({problem})", "Mend it, or name another file.")
