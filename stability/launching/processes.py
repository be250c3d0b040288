"""Several processes as one program: who started them, which of them this is, and how they come together.

Slurm, Open MPI, TPU pods and Kubernetes are found by the variables that they set for each process of a program. A shell
inside an allocation, a task of a job array and a command that stands alone have none of them, or say that there is one
process: they wait for nobody.
"""

import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from stability.errors import EXIT_BAD_INPUT, InputError
from stability.launching.settings import Distributed
from stability.untrusted.printable import shown

ALONE = "Set distributed.processes=1 if this command stands alone."
BEYOND_WAIT_S = 600
"""JAX would end the process without a word of ours when its own time is up, so it gets more than we wait."""


@dataclass(frozen=True)
class Place:
    """A process's place among several; None is what JAX finds out by itself."""

    coordinator: str | None
    processes: int | None
    process: int | None
    found_by: str = "the command"


def join(asked: Distributed) -> int:
    """Come together with the other processes of this program, if there are any; how many there are in all.

    Before JAX looks at its devices.

    Raises:
        InputError: what is asked for is incomplete or contradicts itself, or they cannot come together.
    """
    place = None if jax.distributed.is_initialized() else find_place(asked, os.environ)
    if place is None:
        return _count()
    settings: Any = jax.config
    settings.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours to heed
    with _time_limit(asked.wait_s, place):
        try:
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.process,
                # What is said outright needs nothing of a cluster, not even which devices are this process's own.
                cluster_detection_method="deactivate" if place.found_by == "the command" else None,
                initialization_timeout=int(asked.wait_s) + BEYOND_WAIT_S,
            )
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"the processes cannot come together ({' '.join(str(error).split())})"
            raise InputError("distributed", place.found_by, problem, f"Mend it. {ALONE}") from None
    if len(jax.devices()) != jax.process_count() * jax.local_device_count():
        problem = f"has {jax.local_device_count()} devices and other processes have more or fewer"
        raise InputError("distributed", f"process {jax.process_index()}", problem, "Give each process as many.")
    return _count()


def _count() -> int:
    processes: int = jax.process_count() if jax.distributed.is_initialized() else 1
    return processes


def refuse_several() -> None:
    """Refuse what one process does by itself to several that a cluster has started as one program.

    Raises:
        InputError: there are several.
    """
    place = find_place(Distributed(), os.environ)
    if place is not None and place.processes is not None:
        fix = "Start one; of `python -m stability.run` several are one program."
        raise InputError("distributed", f"{place.processes} processes", "each would do the whole of this", fix)


def leave() -> None:
    """Part from the other processes; waits until all do."""
    shutdown: Any = jax.distributed.shutdown
    shutdown()


def find_place(asked: Distributed, environment: Mapping[str, str]) -> Place | None:
    """This process's place by what is asked for and, where that leaves something out, by what a cluster says.

    Args:
        asked: the command's keys.
        environment: the process's variables.

    Returns:
        None where it stands alone.

    Raises:
        InputError: names the key that is missing, or of which two say different things.
    """
    given = {"coordinator": asked.coordinator, "processes": asked.processes, "process": asked.process}
    _refuse_contradiction(asked)
    if asked.processes == 1:
        return None
    missing = [name for name, value in given.items() if value is None]
    cluster = _cluster(environment) if missing else None
    if len(missing) == len(given):
        return cluster
    if missing and cluster is None:
        said = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        fix = f"Give {' and '.join(f'distributed.{name}' for name in missing)} too."
        raise InputError("distributed", said, "does not say all, and no cluster is found that would", fix)
    if cluster is None:
        return Place(asked.coordinator, asked.processes, asked.process)
    return Place(
        asked.coordinator or cluster.coordinator,
        asked.processes or cluster.processes,
        cluster.process if asked.process is None else asked.process,
        cluster.found_by,
    )


def _refuse_contradiction(asked: Distributed) -> None:
    if asked.coordinator is not None:
        match = re.fullmatch(r".+:(\d{1,5})", asked.coordinator)
        if match is None or not 0 < int(match[1]) < 1 << 16:
            fix = "Name process 0's host, as all reach it, and a port that is free there."
            raise InputError("distributed.coordinator", asked.coordinator, "is not HOST:PORT", fix)
    if asked.process is not None and asked.processes is not None and asked.process >= asked.processes:
        problem = f"is none of {asked.processes}, which are counted from 0"
        raise InputError("distributed.process", asked.process, problem, "Give a smaller number.")


def _cluster(environment: Mapping[str, str]) -> Place | None:
    """What a cluster's variables say; None where they name no other process. In the order in which JAX looks."""
    for place in (_open_mpi(environment), _slurm(environment), _tpu(environment), _kubernetes(environment)):
        if place is not None and place.processes != 1:
            return place
    return None


def _open_mpi(environment: Mapping[str, str]) -> Place | None:
    processes, process = _numbers(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if processes is None or process is None:
        return None
    if processes > 1 and "OMPI_MCA_orte_hnp_uri" not in environment and "JAX_COORDINATOR_ADDRESS" not in environment:
        fix = f"Set JAX_COORDINATOR_ADDRESS=HOST:PORT in all of them. {ALONE}"
        raise InputError("distributed", "Open MPI", "this version of it does not say where process 0 is", fix)
    return Place(None, processes, process, "Open MPI")


def _slurm(environment: Mapping[str, str]) -> Place | None:
    """A step of several tasks. SLURM_NTASKS is the allocation's in a shell inside it, which is one process."""
    processes, process = _numbers(environment, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    return None if processes is None or process is None else Place(None, processes, process, "Slurm")


def _tpu(environment: Mapping[str, str]) -> Place | None:
    """JAX marks a host that has TPU chips as it is imported; how many hosts there are, it asks the host's metadata."""
    here = "TPU_ML_PLATFORM" in environment and "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    return Place(None, None, None, "TPU pod") if here else None


def _kubernetes(environment: Mapping[str, str]) -> Place | None:
    """A pod of an indexed job, whose size JAX asks the cluster for by the package kubernetes, where it is installed."""
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    if not indexed or importlib.util.find_spec("kubernetes") is None:
        return None
    return Place(None, None, None, "Kubernetes")


def _numbers(environment: Mapping[str, str], *names: str) -> Iterator[int | None]:
    for name in names:
        text = environment.get(name, "")
        yield int(text) if text.isascii() and text.isdigit() else None


@contextmanager
def _time_limit(wait_s: float, place: Place) -> Iterator[None]:
    """End the process with a message when the others do not come: JAX would abort, with a page of C++."""

    def give_up() -> None:
        from jax._src.distributed import global_state  # of what JAX found, only it tells the address

        where = global_state.coordinator_address or place.coordinator or "process 0"
        who = "process 0 does not answer" if place.process else "the other processes do not come"
        say = f"distributed.wait_s={wait_s:g}: {who} at {where} (so {place.found_by} says) in so many seconds"
        fix = f"Start all of them, see that they reach that address, or wait longer. {ALONE}"
        print(shown(f"error: {say}. {fix}", lines=False), file=sys.stderr, flush=True)
        os._exit(EXIT_BAD_INPUT)

    limit = threading.Timer(wait_s, give_up)
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()
