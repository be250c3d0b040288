"""What W&B keeps of a sweep's runs on this disk. Imports no JAX and no `wandb`.

`wandb sync` joins the files of one run in the order of their starts, but stops for good at one that a kill has cut off,
and has the steps twice that were trained twice. So a run has one offline file at a time: that of its last start, which
holds the run from its first step on. Earlier ones are put aside.
"""

import glob
from pathlib import Path

WANDB_FILES = "wandb"
"""W&B's folder in a sweep's results folder: `offline-run-TIME-ID` or `run-TIME-ID` for each start of each run."""
ASIDE = "superseded"
"""Where in it the offline files of earlier starts go; they may be deleted."""


def put_aside(folder: Path, run_id: str) -> None:
    """Move a run's offline files to where neither `wandb sync` nor `wandb leet` look.

    Args:
        folder: the sweep's results folder.
        run_id: W&B's id of the run.

    Raises:
        OSError: a folder cannot be moved.
    """
    for file in sorted((folder / WANDB_FILES).glob(f"offline-run-*/run-{glob.escape(run_id)}.wandb")):
        aside = folder / WANDB_FILES / ASIDE
        aside.mkdir(exist_ok=True)
        file.parent.replace(aside / file.parent.name)


def unsent_runs(folder: Path) -> set[str]:
    """The ids of the runs in a sweep's results folder that `wandb sync` has not sent yet.

    Args:
        folder: the sweep's results folder.
    """
    files = (folder / WANDB_FILES).glob("offline-run-*/run-*.wandb")
    return {file.stem.removeprefix("run-") for file in files if not file.with_suffix(".wandb.synced").exists()}
