"""Runs on Weights & Biases: one W&B run for each run, online or offline. Imports no JAX, and `wandb` only when used."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stability.errors import InputError
from stability.tracking.record import TERMINAL, Row
from stability.tracking.tracker import TrackedRun

Mode = Literal["auto", "online", "offline", "disabled"]
ResolvedMode = Literal["online", "offline", "disabled", "shared"]
OLD_MODES: dict[str, Any] = {"run": "online", "dryrun": "offline"}
"""What WANDB_MODE may still say, and means."""

TAG_CHARACTERS = 64
"""W&B refuses longer tags."""
NAME_CHARACTERS = 128
FINISH_TIMEOUT_S = 60.0
"""How long the end of a run, and of the process, may wait for uploads. What is late stays on disk for `wandb sync`."""

QUIET: dict[str, Any] = {"silent": True, "quiet": True, "console": "off"}
"""Nothing on our terminal, and nothing of our terminal on W&B."""

RUN_SETTINGS: dict[str, Any] = {
    **QUIET,
    "x_disable_stats": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    # The packages' versions are in the record; listing them costs more than all else at a run's start.
    "x_save_requirements": False,
    "label_disable": True,
    "symlink": False,
    "finish_timeout": FINISH_TIMEOUT_S,
    "finish_timeout_raises": True,
    # W&B's stop button interrupts the main thread, and with it every other run of the process.
    "stop_fn": lambda: None,
}


class WandbTracker:
    """Sends runs to W&B. Its calls take up to a second and may raise: wrap it in `Background`.

    W&B's files lie in `folder`/wandb, whatever the mode; `wandb sync` sends those of offline runs later. Metrics are
    drawn over the row's own `step` (or `tokens`); a run that goes on from a checkpoint keeps its id.

    Args:
        project: W&B project.
        entity: user or team; None for W&B's own default.
        mode: `auto` does as W&B is set up to do (WANDB_MODE, `wandb offline`), but is offline where neither says
            anything and no API key is configured.
        folder: where W&B may write; made when missing.
        per_head: send the values of single heads too. They are a third of all numbers, and in the record anyway.
    """

    def __init__(self, project: str, entity: str | None, mode: Mode, folder: Path, *, per_head: bool = False) -> None:
        self._project, self._entity, self._mode, self._folder = project, entity, mode, folder.absolute()
        self._per_head = per_head
        self._runs: dict[str, Any] = {}

    def start(self, run: TrackedRun) -> None:
        """Open the run on W&B.

        Raises:
            InputError: it should be online and no API key is configured.
            Exception: whatever W&B raises when it cannot be reached or used.
        """
        if self._mode == "disabled":
            return
        # W&B takes up to a second to import, and is not needed by who does not track.
        import wandb

        # W&B's service process keeps its log here, else in the home folder, which a batch node may not let it write.
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._folder / "wandb" / "cache"))
        mode = resolve_mode(self._mode)
        if mode == "disabled":
            return
        opened = wandb.init(
            project=self._project,
            entity=self._entity,
            id=run.id,
            name=run.name[:NAME_CHARACTERS],
            group=run.group[:NAME_CHARACTERS],
            job_type=run.job_type,
            tags=[tag[:TAG_CHARACTERS] for tag in run.tags if tag],
            config=dict(run.config),
            dir=self._folder,
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**RUN_SETTINGS),
        )
        self._runs[run.id] = opened
        for axis in ("step", "tokens"):
            opened.define_metric(axis)
        opened.define_metric("*", step_metric="step")

    def log(self, run_id: str, row: Row) -> None:
        """Send one row; what is not available (None) is left out. A run that was not started is passed over."""
        if run := self._runs.get(run_id):
            wanted = row if self._per_head else {key: value for key, value in row.items() if "/head_" not in key}
            run.log({key: value for key, value in wanted.items() if value is not None})

    def finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """Send the summary and end the run: tagged `diverged` if it did, failed on W&B unless it came to a result."""
        if run := self._runs.pop(run_id, None):
            run.summary.update(dict(summary))
            status = summary.get("status")
            if status == "diverged":
                run.tags = (*run.tags, "diverged")
            run.finish(exit_code=0 if status in TERMINAL else 1)

    def close(self) -> None:
        """End, as interrupted, the runs that are still open; the same run may be started again later."""
        for run_id in list(self._runs):
            self._runs.pop(run_id).finish(exit_code=1)


def resolve_mode(mode: Mode) -> ResolvedMode:
    """The mode in which W&B is to be used here: `mode`, or for `auto` what W&B was set to, offline without an API key.

    Raises:
        InputError: that is `online`, by choice or by WANDB_MODE, and no API key is configured.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup(wandb.Settings(**QUIET)).settings
    asked = settings.mode if mode == "auto" else mode
    wanted: ResolvedMode = OLD_MODES.get(asked, asked)
    # Looked up as W&B does (environment, netrc, settings), but it would ask at the terminal in the midst of training.
    if wanted != "online" or wbauth.authenticate_session(
        host=settings.base_url, source="stability", prompt=False, update_session=False
    ):
        return wanted
    if mode == "auto" and not os.environ.get("WANDB_MODE"):
        return "offline"
    key, fix = ("tracking.mode", "offline or auto") if mode == "online" else ("WANDB_MODE", "offline")
    raise InputError(key, "online", "no W&B API key is configured", f"Run `wandb login`, or set it to {fix}.")
