"""Devices that are not here, to compile for: XLA's compilers need a description of a chip, not the chip.

    with absent("tpu", "v5e:2x2") as devices:
        program = compile_program(config, None, validation_shape)              # for one of them
        program = compile_program(config, 4, validation_shape, lane_mesh(devices))

What is compiled is what a real device would execute, so a kernel that its compiler refuses is refused here, memory is
what the program needs there, and the optimised program can be read (`program.advance.as_text()`). It cannot be called.
TPUs need the package libtpu (`pip install 'stability[tpu]'`), GPUs JAX's CUDA plug-in; neither needs a driver. Where
there is none, JAX_PLATFORMS=cpu keeps the CUDA plug-in from looking for it and giving up.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import jax
from jax.experimental import topologies

GIB = 1024**3
TPU_MEMORY = {"v5e": 15.75 * GIB, "v6e": 31.24 * GIB}
"""HBM that a program may fill on one chip of a kind: the limit which XLA names where it refuses one that needs more."""
TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time: the library locks /tmp/libtpu_lockfile
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # this and the next are said so that nobody is asked over the network
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What the library is told where the environment says nothing. It reads this once, when it is first loaded."""


@dataclass(frozen=True)
class Client:
    """Of a stand-in: what it says of its driver."""

    platform_version: str


@dataclass(frozen=True)
class StandIn:
    """What our code asks of a device at hand, and a description alone cannot answer.

    platform             `tpu` or `gpu`
    device_kind          as the real one calls itself
    memory               bytes that programs may fill
    compute_capability   of NVIDIA GPUs
    """

    platform: str
    device_kind: str
    memory: int
    compute_capability: str = ""
    client: Client = field(default=Client("absent"))
    process_index: int = 0

    def memory_stats(self) -> dict[str, int]:
        """The limit, as a real device states it."""
        return {"bytes_limit": self.memory}


@contextmanager
def absent(platform: Literal["tpu", "cuda"], described: str, count: int = 1) -> Iterator[list[jax.Device]]:
    """Within it these are the devices at hand, for JAX as for what asks JAX, and programs are compiled for the first.

    Args:
        platform: whose compiler.
        described: of a TPU slice its kind and shape (`v5e:2x4`, `v6e:1x1`); of a GPU XLA's target configuration as
            text (a `GpuTargetConfigProto`).
        count: GPUs of that kind; a slice says it by its shape.

    Raises:
        RuntimeError: there is no such compiler here, or it knows no such chip.
    """
    with mock.patch.dict(os.environ, {name: os.environ.get(name, said) for name, said in TPU_ENVIRONMENT.items()}):
        devices, one = tpu_slice(described) if platform == "tpu" else gpus(described, count)
    at_hand = {
        "default_backend": lambda: one.platform,
        "device_count": lambda backend=None: len(devices),
        "devices": _unless_asked(jax.devices, devices),
        "local_device_count": lambda backend=None: len(devices),
        "local_devices": _unless_asked(jax.local_devices, [one] * len(devices)),
    }
    with mock.patch.multiple(jax, **at_hand), jax.default_device(devices[0]):
        yield devices


def _unless_asked(really: Callable[..., Any], devices: list[Any]) -> Callable[..., Any]:
    """`jax.devices`, say, which finds these unless someone names another platform (JAX and Flax want the CPU)."""

    def found(*arguments: Any, **named: Any) -> Any:
        return really(*arguments, **named) if any((*arguments, *named.values())) else list(devices)

    return found


def tpu_slice(described: str) -> tuple[list[jax.Device], StandIn]:
    """The chips of a slice, and one of them as our code sees it."""
    kind, _, shape = described.partition(":")
    sides = tuple(int(side) for side in shape.split("x"))
    # All chips on one machine, as one process sees them: the default is a machine for every four.
    here = {"chips_per_host_bounds": (*sides, 1)}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=described, **here)
    devices = list(topology.devices)
    return devices, StandIn("tpu", devices[0].device_kind, round(TPU_MEMORY[kind]))


def gpus(described: str, count: int) -> tuple[list[jax.Device], StandIn]:
    """GPUs of one process, and one of them as our code sees it."""
    jax.local_devices()  # only once JAX has looked for devices does it know its plug-ins
    topology = topologies.get_topology_desc("", platform="cuda", topology=f"1x1x{count}", target_config=described)
    devices = list(topology.devices)

    def stated(name: str, text: str = described) -> int:
        found = re.search(rf"\b{name}: *(\d+)", text)
        return int(found.group(1)) if found else 0

    capability = described.partition("cuda_compute_capability")[2].partition("}")[0]
    version = f"{stated('major', capability)}.{stated('minor', capability)}"
    memory = stated("device_memory_size")
    return devices, StandIn("gpu", devices[0].device_kind, memory, version, Client("cuda, absent"))
