"""Several real processes of one program on this machine, each in a folder of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.quick import QUICKLY

ROOT = Path(__file__).parent.parent
DEADLINE_S = 240.0
"""No start takes so long, however busy the machine."""


@dataclass(frozen=True)
class Ended:
    """What one process did."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def read(self) -> int:
        """How many training sequences it read."""
        return int(json.loads((self.folder / "read.json").read_text()))


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Together:
    """Processes of one command under way; process 0 works in `FOLDER/0` and so on.

    Args:
        folder: above theirs.
        words: the command's arguments.
        processes: how many; each shows `devices` CPU devices.
        only: those that are started indeed; None is all.
        address: of this machine.
    """

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        processes: int,
        devices: int = 1,
        only: Sequence[int] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        quickly = [f"--{name}={str(value).lower()}" for name, value in QUICKLY.items()]
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("STABILITY_", "SLURM_", "OMPI_"))
        }
        environment = kept | {
            "PYTHONPATH": str(ROOT),
            "STABILITY_NO_REEXECUTION": "1",
            "XLA_FLAGS": " ".join([*quickly, f"--xla_force_host_platform_device_count={devices}"]),
        }
        there = [f"distributed.coordinator={address}:{free_port()}", f"distributed.processes={processes}"]
        self.folders = [folder / str(process) for process in (range(processes) if only is None else only)]
        self.started = []
        for place in self.folders:
            place.mkdir(parents=True, exist_ok=True)
            arguments = [
                sys.executable,
                "-m",
                "tests.counted_reads",
                *words,
                *there,
                f"distributed.process={place.name}",
            ]
            with (place / "out.txt").open("w") as out, (place / "err.txt").open("w") as err:
                self.started.append(
                    subprocess.Popen(
                        arguments, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
                    )
                )

    def wait_for(self, text: str) -> None:
        """Until process 0 has said something."""
        end = time.monotonic() + DEADLINE_S
        while text not in (self.folders[0] / "out.txt").read_text():
            assert time.monotonic() < end, "too slow"
            assert all(one.poll() is None for one in self.started), self.end()
            time.sleep(0.05)

    def send(self, number: signal.Signals, process: int) -> None:
        """Send a signal to one of them."""
        self.started[process].send_signal(number)

    def end(self) -> list[Ended]:
        """Wait until all have ended."""
        end, ended = time.monotonic() + DEADLINE_S, []
        try:
            for one, folder in zip(self.started, self.folders, strict=True):
                code = one.wait(max(0.0, end - time.monotonic()))
                ended.append(Ended(code, (folder / "out.txt").read_text(), (folder / "err.txt").read_text(), folder))
        finally:
            for one in self.started:
                if one.poll() is None:
                    one.kill()
                    one.wait()
        return ended
