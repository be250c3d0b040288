"""What W&B keeps of a sweep's runs on this disk. Imports no JAX and no `wandb`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

WANDB_FILES = "wandb"
"""W&B's folder in a sweep's results folder: `offline-run-TIME-ID` or `run-TIME-ID` for each start of each run."""
NOTHING_HELD = -1
READ_TIMEOUT_S = 60.0


def files_of_run(folder: Path, run_id: str) -> list[Path]:
    """W&B's own files of all starts of a run so far.

    Args:
        folder: the sweep's results folder.
        run_id: W&B's id of the run.
    """
    return sorted((folder / WANDB_FILES).glob(f"*run-[0-9]*-{run_id}/run-{run_id}.wandb"))


def last_step_held(files: Iterable[Path]) -> int:
    """The last step that W&B's own files hold of a run, `NOTHING_HELD` where there is none.

    Read back with W&B's own tool rather than noted when a row is sent: a process that is killed loses up to 32 KiB of
    what it had sent. Takes a second for each file.
    """
    return max((_last_step(file) for file in files), default=NOTHING_HELD)


def _last_step(file: Path) -> int:
    # W&B's reader in a process of its own; offline, so that it has nothing to tell W&B.
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=READ_TIMEOUT_S, check=False
    )
    # A file that a kill has cut off is read up to its last whole row, with a complaint and perhaps an exit code.
    for line in reversed(done.stdout.splitlines()):
        if b'"type":"history"' in line:
            return int(json.loads(line)["history"]["item"]["_step"])
    return NOTHING_HELD


def unsent_runs(folder: Path) -> set[str]:
    """The ids of the runs in a sweep's results folder that `wandb sync` has not sent yet.

    Args:
        folder: the sweep's results folder.
    """
    files = (folder / WANDB_FILES).glob("offline-run-*/run-*.wandb")
    return {file.stem.removeprefix("run-") for file in files if not file.with_suffix(".wandb.synced").exists()}
