"""All about a start of a run that is no part of its identity: device, versions, command, settings of the host."""

import importlib.metadata
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import jax

import stability
from stability.launching.settings import Execution

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "wandb")


def device_description() -> str:
    """The devices as a person names them: `2 CPU cores`, `1 x NVIDIA H200`, `2 processes of 4 x NVIDIA H200`."""
    devices, processes = jax.local_devices(), jax.process_count()
    each = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        each = f"{usable} CPU cores"
    return each if processes == 1 else f"{processes} processes of {each}"


def provenance(execution: Execution, strategy: str, command: str) -> dict[str, Any]:
    """One entry for `provenance.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "platform": platform.platform(),
        "device": device_description(),
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "lanes": strategy,
        "execution": asdict(execution),
        "versions": {
            "stability": stability.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
