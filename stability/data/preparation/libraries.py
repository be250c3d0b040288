"""The libraries of the extra `data`: imported where they are used, and asked for in words where they are missing."""

import importlib
from typing import Any

from stability.errors import InputError

INSTALL = "Run `pip install 'stability[data]'`."


def library(name: str) -> Any:
    """A module of a library that only preparing data needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"is needed to prepare data, and cannot be imported ({error})"
        raise InputError("package", name.partition(".")[0], problem, INSTALL) from error
