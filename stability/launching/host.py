"""The kind of machine that a command is for: JAX is told before it looks at its devices, and what it finds is checked.

A host is a file in conf/host. It chooses how things are computed (`lanes`, `mesh`, `compute`) and what JAX is told at
its start. Nothing of that is part of what a run is, so a sweep may be begun on one kind of host and ended on another.
"""

import os
import re
from pathlib import Path
from typing import Any

import jax

from stability.errors import InputError
from stability.launching.compilation_cache import keep_compiled_programs
from stability.launching.settings import Host

XLA_FLAGS = "XLA_FLAGS"
FLAG = re.compile(r"--xla_(?:cpu|gpu|tpu)_[a-z0-9_]+=(?:true|false|-?[0-9.]+|[A-Z0-9_,+-]+)")
"""What a config may tell XLA: switches, numbers and its own words, no folder or file that it would write or read."""


def prepare_host(host: Host) -> None:
    """Tell JAX what the host file says; to be called before anything asks JAX for its devices.

    Flags that the environment's XLA_FLAGS set already stay as they are there.

    Raises:
        InputError: a flag is none, or one that names files.
    """
    settings: Any = jax.config
    given = os.environ.get(XLA_FLAGS, "").split()
    names = {flag.partition("=")[0] for flag in given}
    for flag in host.xla_flags:
        if not FLAG.fullmatch(flag):
            fix = f"Write --xla_gpu_NAME=true, or set what names files in the environment's {XLA_FLAGS}."
            raise InputError("host.xla_flags", flag, "is no switch or number of XLA's for a device", fix)
    added = [flag for flag in host.xla_flags if flag.partition("=")[0] not in names]
    if added:
        os.environ[XLA_FLAGS] = " ".join([*given, *added])
    if host.platform == "cpu":
        settings.update("jax_platforms", "cpu")
    if host.compilation_cache is not None:
        keep_compiled_programs(Path(host.compilation_cache).expanduser().absolute())


def check_host(host: Host) -> None:
    """Refuse to train on another kind of machine than the host file is for.

    Raises:
        InputError: names what JAX found.
    """
    found, count = jax.default_backend(), jax.device_count()
    if host.platform is not None and host.platform != found:
        installed = {"gpu": 'pip install "jax[cuda13]"', "tpu": 'pip install "jax[tpu]"'}.get(host.platform, "jax")
        fix = f"Choose host=auto, or mend that: does `python -c 'import jax; jax.devices()'` see it ({installed})?"
        raise InputError("host", host.name, f"is for a {host.platform}, and JAX found a {found}", fix)
    if host.devices is not None and host.devices != count:
        fix = "Choose a host for that many, or set host.devices=null."
        raise InputError("host.devices", host.devices, f"are not what is here: JAX found {count}", fix)
