"""What takes time to make and is the same for everyone: kept in the user's cache folder. Imports no JAX."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import platformdirs

from stability.tracking.files import write_whole


def cache_folder() -> Path:
    """The user's cache folder for this package (XDG_CACHE_HOME is respected). It may not exist, or not be writable."""
    return Path(platformdirs.user_cache_dir("stability", appauthor=False))


def cached(name: str, make: Callable[[], bytes]) -> bytes:
    """The content of a file of the cache folder, made once. Where nothing can be kept it is made anew each time.

    Args:
        name: of the file; it has to change whenever the content would.
        make: makes the content.
    """
    path = cache_folder() / name
    with contextlib.suppress(OSError):
        return path.read_bytes()
    content = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    return content
