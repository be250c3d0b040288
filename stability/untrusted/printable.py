"""Text that may come from a config, a table or a server, made safe to print on a terminal."""

import sys
import unicodedata
from typing import TextIO

from stability.untrusted.secrets import redacted

_KEPT = "\n\t"
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, surrogates, other line ends: a terminal obeys them, or shows another order."""
_JOINERS = "\u200c\u200d"
"""Format characters that writing needs, and that move nothing."""


def printable(text: object, *, lines: bool = True) -> str:
    """The text with every character that could steer a terminal written as an escape, such as `\\x1b`.

    Escape sequences recolour, move the cursor, retitle the window or open links; bidirectional marks show text in
    another order than it has.

    Args:
        text: anything with a `str`.
        lines: let line ends and tabs stand.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    kept = _KEPT + _JOINERS if lines else _JOINERS
    return "".join(
        one if one in kept or unicodedata.category(one) not in _ESCAPED_CATEGORIES else _escape(one) for one in plain
    )


def shown(text: object, *, lines: bool = True) -> str:
    """What of a text of any origin may be printed: printable, and without keys and tokens, for output becomes a log."""
    return printable(redacted(str(text)), lines=lines)


def tell(text: object = "", file: TextIO | None = None, *, flush: bool = False) -> None:
    """Print what may be shown of a text, by default on stdout."""
    print(shown(text), file=sys.stdout if file is None else file, flush=flush)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
