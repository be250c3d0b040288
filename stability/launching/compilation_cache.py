"""Compiled programs are kept in the user's cache folder: the same sweep started again does not compile again."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import jax

from stability.cache import cache_folder

CPUINFO = Path("/proc/cpuinfo")


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles, unless the user has chosen a folder (JAX_COMPILATION_CACHE_DIR) or none.

    JAX names an entry by program, compiler options and versions, but on CPU not by what the processor can do: code made
    for another one may be slow, or stop the process. So each kind of processor has a folder of its own.
    JAX_ENABLE_COMPILATION_CACHE=false opts out.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_folder() / "compiled" / processor()))
        # All three programs of a structure, also the quick ones: together they are what a start waits for.
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def processor() -> str:
    """A short name for all that compiled code may depend on in this machine's processor: its model and its features."""
    found = [platform.machine(), platform.processor()]
    if CPUINFO.exists():
        wanted = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU part")
        first = CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines()
        found += [line for line in first if line.startswith(wanted)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
