"""A real Slurm on this machine, with configuration, state and ports of its own: munged, slurmctld and slurmd.

Root starts them by hand; no control groups, no accounting, everything on the loopback. `cluster` ends the processes
that it started and no others.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 60.0
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
# A job that is queued again waits until the credentials of its last start have expired; less than 5 s counts as 120.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
# As many processors as the tests want, whatever the machine has.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if os.geteuid() != 0:
        return "only root starts a Slurm here"
    missing = [name for name in PROGRAMS if _find(name) is None]
    return f"not installed: {', '.join(missing)} (Debian has them in slurm-wlm and munge)" if missing else None


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/usr/bin")


@dataclass(frozen=True)
class Cluster:
    """A Slurm that is up; `SLURM_CONF` in the environment leads its commands to it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to submit to it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """Run one of Slurm's commands; what it prints."""
        return subprocess.run(
            words, env=os.environ | self.environment, check=True, capture_output=True, text=True, timeout=DEADLINE_S
        ).stdout

    def queue(self) -> dict[str, str]:
        """Task -> state, of all that Slurm has not done with."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Within it jobs are queued, and none starts."""
        self.ask("scontrol", "update", "PartitionName=main", "State=DOWN")
        yield
        self.ask("scontrol", "update", "PartitionName=main", "State=UP")

    def wait(self, seconds: float = 4 * DEADLINE_S) -> None:
        """Until nothing is queued or running."""
        deadline = time.monotonic() + seconds
        while queue := self.queue():
            assert time.monotonic() < deadline, queue
            time.sleep(0.2)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start one, and end it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has to be short
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        controller, node = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        config = CONFIG.format(host=host, folder=folder, controller=controller, node=node)
        (folder / "slurm.conf").write_text(config)
        own = {"key-file": "key", "socket": "socket", "seed-file": "seed", "pid-file": "pid", "log-file": "log"}
        munge = [f"--{option}={folder}/munge.{name}" for option, name in own.items()]
        found = Cluster(folder)
        stack.enter_context(_process(["munged", "--foreground", "--force", *munge], folder))
        _until(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(_process(["slurmctld", "-D", "-f", str(folder / "slurm.conf")], folder))
        stack.enter_context(_process(["slurmd", "-D", "-f", str(folder / "slurm.conf")], folder))
        stack.callback(_end_jobs, found)
        _until(lambda: "idle" in _quietly(found, "sinfo", "--noheader", "--format=%T"), folder)
        yield found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _process(words: Sequence[str], folder: Path) -> Iterator[None]:
    program = _find(words[0])
    assert program is not None
    with (folder / f"{words[0]}.out").open("w") as output:
        process = subprocess.Popen(
            [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_jobs(found: Cluster) -> None:
    """Each job has a process of Slurm's own above it, which ends with the job and not with slurmd."""
    if found.queue():
        found.ask("scancel", "--full", "--signal=KILL", "--state=RUNNING", f"--user={os.geteuid()}")
        found.ask("scancel", f"--user={os.geteuid()}")
        found.wait()


def _quietly(found: Cluster, *words: str) -> str:
    with contextlib.suppress(subprocess.SubprocessError):
        return found.ask(*words)
    return ""


def _until(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        said = "\n".join(path.read_text() for path in folder.glob("*.out"))
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
