"""The formats in which figures are written. Imports nothing, since every entry point names them."""

from typing import Literal, get_args

Format = Literal["svg", "pdf", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
