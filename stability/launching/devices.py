"""Which devices a command trains on, and how the lanes of its programs lie on them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from stability.config import RunConfig
from stability.errors import InputError
from stability.launching.memory import compiled_bytes, lanes_that_fit, program_bytes
from stability.launching.settings import LanesChoice, MeshSettings
from stability.training.lanes import Program, Strategy
from stability.training.mesh import lane_mesh

CPUS, CPU_QUOTA = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may keep busy: of its affinity mask, two threads of one core once, within its quota."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Whole processors that the control group (a container, a Slurm job) grants; many where it sets no limit."""
    with suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text().split()
        return int(int(quota) / int(period))
    return 1 << 30


def show_every_core() -> None:
    """Have JAX show a CPU device for each usable core, so that lanes can lie on them.

    Only before JAX first looks at its devices, and not over what the user's XLA_FLAGS say; later it changes nothing.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    settings: Any = jax.config
    with suppress(RuntimeError):
        settings.update("jax_num_cpu_devices", usable_cores())


@dataclass(frozen=True)
class Layout:
    """How lanes lie on devices.

    Attributes:
        strategy: how runs of one structure share a program.
        why: the reason, for people.
        devices: those that lanes are spread over; of no meaning for other strategies than `sharded`.
        data: devices that divide a lane's batch among them.
        fsdp: devices that divide a lane's parameters and batch among them.
    """

    strategy: Strategy
    why: str
    devices: tuple[jax.Device, ...] = ()
    data: int = 1
    fsdp: int = 1

    @property
    def on_cpu(self) -> bool:
        """All devices are cores of one processor: they share its memory, and are best kept busy by a lane each."""
        return jax.default_backend() == "cpu"

    @property
    def places(self) -> int:
        """How many lanes can be apart from each other."""
        return max(1, len(self.devices) // (self.data * self.fsdp))

    def most_lanes(self, config: RunConfig, limit: float) -> int:
        """How many runs of a structure may train together, by estimated memory; one may always be tried."""
        if self.strategy == "sequential":
            return 1
        if self.on_cpu and self.strategy == "sharded":
            return max(1, min(self.places, lanes_that_fit(config, int(limit))))
        return max(1, lanes_that_fit(config, int(limit), self.places, self.data, self.fsdp))

    def program_size(self, group: int, largest: int) -> int:
        """For how many runs at a time to compile a group's program.

        On a mesh all groups share one, and some seats stay empty; under `vmap` an empty seat takes a run's time.
        """
        return largest if self.strategy == "sharded" else group

    def seats(self, runs: int) -> int | None:
        """Lanes of the program in which up to `runs` runs train at a time; None is the solo program."""
        if self.strategy == "sequential" or (self.on_cpu and runs == self.data == self.fsdp == 1):
            return None
        apart = min(self.places, runs)
        return ceil(runs / apart) * apart

    def mesh(self, runs: int) -> Mesh | None:
        """The devices of that program; None is the default one."""
        if self.strategy != "sharded" or self.seats(runs) is None:
            return None
        return lane_mesh(self.devices[: min(self.places, runs) * self.data * self.fsdp], self.data, self.fsdp)

    def memory(self, config: RunConfig, runs: int) -> int:
        """Bytes that training `runs` runs at a time takes of what a `Budget` counts, by an estimate."""
        # Devices have a budget each; cores share the host's, and what is divided among them counts whole.
        if self.on_cpu:
            return program_bytes(config, self.seats(runs) or 1)
        return program_bytes(config, self.seats(runs) or 1, min(self.places, runs), self.data, self.fsdp)

    def compiled_memory(self, program: Program, runs: int) -> int | None:
        """The same by the compiled program's own analysis; None where there is none."""
        each = compiled_bytes(program)
        if each is None or self.strategy != "sharded" or not self.on_cpu:
            return each
        return each * min(self.places, runs) * self.data * self.fsdp


def choose_layout(lanes: LanesChoice, mesh: MeshSettings, runs: int) -> Layout:
    """The layout for the devices at hand, and why.

    Args:
        lanes: what the user asks for.
        mesh: devices inside a lane.
        runs: of the largest pack.

    Raises:
        InputError: the mesh wants more devices than there are, or goes with no other strategy than `sharded`.
    """
    devices = tuple(jax.local_devices())
    inside = mesh.data * mesh.fsdp
    if inside > 1 and lanes in ("sequential", "vmap"):
        fix = "Leave mesh.data and mesh.fsdp at 1, or lanes at auto."
        raise InputError("lanes", lanes, "trains each run on one device", fix)
    if inside > len(devices):
        raise InputError(
            "mesh",
            f"data={mesh.data}, fsdp={mesh.fsdp}",
            f"wants {inside} devices for each lane, and there are {len(devices)}",
            "Give smaller numbers whose product is no larger.",
        )
    cpu = jax.default_backend() == "cpu"
    if cpu and inside == 1:
        devices = devices[: usable_cores()]
    spread = Layout("sharded", "as asked", devices, mesh.data, mesh.fsdp)
    if lanes == "sequential":
        return Layout("sequential", "as asked")
    if lanes == "vmap":
        return Layout("vmap", "as asked")
    if lanes == "sharded":
        return spread
    if inside > 1:
        return Layout("sharded", f"each run on {inside} devices", devices, mesh.data, mesh.fsdp)
    if cpu and min(len(devices), runs) == 1:
        return Layout("sequential", "one core" if len(devices) == 1 else "one run takes all cores")
    if cpu:
        why = f"a run on each of {len(devices)} cores is faster than one after the other on all of them"
        return Layout("sharded", why, devices)
    if len(devices) > 1:
        return Layout("sharded", f"spread over {len(devices)} devices, which need not talk to each other", devices)
    return Layout("vmap", "one accelerator is best filled by many lanes at once")


def check_mesh(configs: Sequence[RunConfig], layout: Layout) -> None:
    """Refuse runs whose batch or width the devices of a lane cannot divide.

    Raises:
        InputError: names the key and a value that goes.
    """
    for config in configs:
        batch, width, inside = config.micro_batch, config.model.width, layout.data * layout.fsdp
        if batch % inside:
            whole = batch == config.training.batch_size
            key = "training.batch_size" if whole else "compute.micro_batch"
            problem = f"does not divide {key}={batch} among the devices of a lane"
            raise InputError("mesh", f"data={layout.data}, fsdp={layout.fsdp}", problem, "Give divisors of it.")
        if width % layout.fsdp:
            problem = f"does not divide model.width={width}, along which parameters are cut"
            raise InputError("mesh.fsdp", layout.fsdp, problem, "Give a divisor of it.")
