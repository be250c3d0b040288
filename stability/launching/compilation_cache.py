"""Compiled programs are kept in the user's cache folder: the same sweep started again does not compile again."""

import hashlib
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from stability.cache import cache_folder
from stability.config import RunConfig
from stability.training.lanes import Program, Programs

CPUINFO = Path("/proc/cpuinfo")


def keep_compiled_programs(folder: Path | None = None) -> None:
    """Have JAX keep what it compiles, unless the user has chosen a folder (JAX_COMPILATION_CACHE_DIR) or none.

    The first call decides.

    JAX names an entry by program, compiler options and versions, but on CPU not by what the processor can do: code made
    for another one may be slow, or stop the process. So each kind of processor has a folder of its own.
    JAX_ENABLE_COMPILATION_CACHE=false opts out.

    Args:
        folder: where; None is the user's cache folder.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str((folder or cache_folder() / "compiled") / processor()))
        # All three programs of a structure, also the quick ones: together they are what a start waits for.
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class KeptPrograms(Programs):
    """Programs by way of the cache folder; a damaged entry there is removed, so that the next start mends it."""

    def get(
        self, config: RunConfig, lanes: int | None, validation_shape: tuple[int, ...], mesh: Mesh | None = None
    ) -> Program:
        """See `Programs.get`."""
        with _without_damaged_entries():
            return super().get(config, lanes, validation_shape, mesh)


_DAMAGED = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '([\w.-]+)'")


@contextmanager
def _without_damaged_entries() -> Iterator[None]:
    """Remove the entries that JAX warns of: cut off by a kill or a full disk.

    JAX compiles anew then, but leaves such an entry as it is: every later start would warn and compile again.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if match := _DAMAGED.match(str(warning.message)):
            _remove_entries(match[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _remove_entries(module: str) -> None:
    """Remove all entries of programs of this name, of which JAX does not tell the whole; it is only a cache."""
    settings: Any = jax.config
    for path in Path(settings.jax_compilation_cache_dir or "nowhere").glob(f"{module}-*"):
        path.unlink(missing_ok=True)


def processor() -> str:
    """A short name for all that compiled code may depend on in this machine's processor: its model and its features."""
    found = [platform.machine(), platform.processor()]
    if CPUINFO.exists():
        wanted = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU part")
        first = CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines()
        found += [line for line in first if line.startswith(wanted)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
