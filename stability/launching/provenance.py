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
    """The devices as a person names them: `2 CPU cores`, `1 x NVIDIA H200`."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{usable} CPU cores"
    return f"{len(devices)} x {devices[0].device_kind}"


def provenance(execution: Execution, strategy: str, command: str) -> dict[str, Any]:
    """One entry for `provenance.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "platform": platform.platform(),
        "device": device_description(),
        "backend": jax.default_backend(),
        "lanes": strategy,
        "execution": asdict(execution),
        "versions": {
            "stability": stability.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
