"""A sweep on Weights & Biases: a W&B run for each run, and one for the analysis, online or offline.

Imports no JAX, and `wandb` only when used. docs/wandb.md says what is where.
"""

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from stability.errors import InputError
from stability.tracking.console import counted
from stability.tracking.files import without_nonfinite
from stability.tracking.highlights import Highlights
from stability.tracking.names import RECORD, tracked_name
from stability.tracking.record import TERMINAL, Row, RunFolder, read_rows
from stability.tracking.tracker import CarriedOn, TrackedRun, TrackedSweep, one_line
from stability.tracking.wandb_analysis import analysis_config, content_digest, log_analysis
from stability.tracking.wandb_files import WANDB_FILES, put_aside, unsent_runs
from stability.tracking.wandb_key import QUIET, has_key
from stability.tracking.wandb_service import Losses, end_service
from stability.untrusted.secrets import redacted, without_secrets

Mode = Literal["auto", "online", "offline", "disabled"]
ResolvedMode = Literal["online", "offline", "disabled", "shared"]
OLD_MODES: dict[str, Any] = {"run": "online", "dryrun": "offline"}
"""What WANDB_MODE may still say, and means."""

TAG_CHARACTERS = 64
"""W&B refuses longer tags."""
NAME_CHARACTERS = 128
ANALYSIS_SENT = "analysis_sent"
"""A file that tells which analysis W&B has, so that a command which changes nothing sends nothing."""
INIT_TIMEOUT_S = 20.0
"""How long W&B's server may take to accept a run. Training does not wait for it; the end of a short command may."""
FINISH_TIMEOUT_S = 30.0
"""How long the end of a run, and of the process, may wait for uploads. What is late is written for `wandb sync`."""

RUN_SETTINGS: dict[str, Any] = {
    **QUIET,
    "x_disable_stats": True,
    # The command line as it was typed, keys in it included. Our own record and config have what matters of it.
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    # The packages' versions are in the record; listing them costs more than all else at a run's start.
    "x_save_requirements": False,
    "label_disable": True,
    "symlink": False,
    "init_timeout": INIT_TIMEOUT_S,
    "finish_timeout": FINISH_TIMEOUT_S,
    "finish_timeout_raises": True,
    # W&B's stop button interrupts the main thread, and with it every other run of the process.
    "stop_fn": lambda: None,
}


class WandbTracker:
    """Sends a sweep to W&B. Its calls take up to some seconds and may raise: wrap it in `Background`.

    W&B's files lie in `folder`/wandb, whatever the mode; `wandb sync` sends those of offline runs later. A W&B step is
    a step of the run: the rows of an evaluated and an observed step of one number are one row there. A run that goes
    on from a checkpoint keeps its id and has every row once: online it gets those that W&B's server does not hold yet,
    offline all of them in a file that takes the place of the earlier ones (docs/wandb.md).

    Where W&B fails, it is tried offline: the runs under way are written anew from their records, and those that follow
    go there too (docs/reliability.md). Where it fails again, the call raises.

    Args:
        project: W&B project.
        entity: user or team; None for W&B's own default.
        mode: `auto` does as W&B is set up to do (WANDB_MODE, `wandb offline`), but is offline where neither says
            anything and no API key is configured.
        folder: the sweep's results folder; made when missing.
        per_head: send the values of single heads too. They are a third of all numbers, and in the record anyway.
    """

    def __init__(self, project: str, entity: str | None, mode: Mode, folder: Path, *, per_head: bool = False) -> None:
        self._project, self._entity, self._mode, self._folder = project, entity, mode, folder.absolute()
        self._per_head = per_head
        self._runs: dict[str, _OpenRun] = {}
        self._group_url: str | None = None
        self._is_fallback = False
        self._losses = Losses()

    def start(self, run: TrackedRun) -> None:
        """Open the run on W&B.

        Raises:
            CarriedOn: as all calls: W&B failed, and from here on the sweep is tracked offline.
            Exception: whatever W&B raises when it cannot be used offline either.
        """
        self._carry_out(lambda: self._start(run, run.rows))

    def log(self, run_id: str, row: Row) -> None:
        """Send one row, unless W&B holds it already. A run that was not started is passed over."""
        if run_id in self._runs:
            self._carry_out(lambda: self._runs[run_id].log(row, per_head=self._per_head))

    def finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        """Send summary and highlights and end the run: tagged `diverged` if it did, failed unless it has a result."""
        if run_id in self._runs:
            self._carry_out(lambda: self._finish(run_id, summary))

    def analysed(self, sweep: TrackedSweep) -> None:
        """Add the sweep's run of job type `analysis`, unless W&B has it already."""
        self._carry_out(lambda: self._analysed(sweep))

    def close(self) -> None:
        """End, as interrupted, the runs that are still open; the same run may be started again later."""
        self._carry_out(self._interrupt)

    def _carry_out(self, call: Callable[[], None]) -> None:
        """Do it; where W&B fails, offline, and so all that comes after.

        Raises:
            CarriedOn: it was done, offline.
            Exception: it failed, and W&B had failed before.
        """
        try:
            self._refuse_losses()
            call()
        except (Exception, SystemExit) as error:  # W&B has many kinds, and none is worth a run
            if self._is_fallback:
                raise
            self._fall_back()
            call()
            raise CarriedOn(
                f"W&B failed ({one_line(error)}). Training goes on, and is tracked offline from here on: "
                "the end says how to send it."
            ) from error

    def _refuse_losses(self) -> None:
        """Take uploads that W&B has given up for a failure; what it says of them after the fall-back is no news."""
        if not self._is_fallback:
            self._losses.refuse()

    def _fall_back(self) -> None:
        """Go on offline: the runs that are open are written anew, from their records, and whole."""
        self._is_fallback, self._mode = True, "offline"
        interrupted, self._runs = self._runs, {}
        end_service()
        for run in interrupted.values():
            # A row is recorded before it is tracked, so the record has all that W&B was given.
            rows = read_rows(RunFolder(run.tracked.folder).metrics) or run.tracked.rows
            self._start(run.tracked, rows[: run.given])

    def _start(self, run: TrackedRun, rows: Sequence[Row]) -> None:
        config = {**run.config, RECORD: json.dumps(without_nonfinite(run.record))}
        opened = self._open(run.id, run.name, run.group, run.job_type, run.tags, config)
        if opened is None:
            return
        for axis in ("step", "tokens"):
            opened.define_metric(axis, hidden=True)
        opened.define_metric("*", step_metric="step")
        open_run = _OpenRun(run, opened, held=opened.step - 1)
        for row in rows:
            open_run.log(row, per_head=self._per_head)
        self._runs[run.id] = open_run

    def _finish(self, run_id: str, summary: Mapping[str, Any]) -> None:
        self._runs[run_id].finish(summary)
        self._refuse_losses()
        del self._runs[run_id]

    def _interrupt(self) -> None:
        for run_id in list(self._runs):
            self._runs[run_id].run.finish(exit_code=1)
            self._refuse_losses()
            del self._runs[run_id]

    def _analysed(self, sweep: TrackedSweep) -> None:
        sent = self._folder / WANDB_FILES / ANALYSIS_SENT
        digest = content_digest(sweep, self._project, self._entity)
        if self._mode == "disabled" or (sent.exists() and sent.read_text(encoding="utf-8") == digest):
            return
        opened = self._open(f"analysis-{sweep.id}", sweep.name, sweep.name, "analysis", (), analysis_config(sweep))
        if opened is None:
            return
        log_analysis(opened, sweep)
        opened.finish()
        self._refuse_losses()
        sent.write_text(digest, encoding="utf-8")

    def closing_words(self) -> Sequence[str]:
        """Where the sweep is on W&B, and the commands that send or show the runs that are on this disk only."""
        words = [f"On W&B: {self._group_url}"] if self._group_url else []
        if count := len(unsent_runs(self._folder)):
            path = shlex.quote(os.path.relpath(self._folder / WANDB_FILES))
            words += [
                f"W&B: {counted(count, 'run')} on this disk only. To send, and to look at here:",
                f"  wandb sync {path}",
                f"  wandb leet {path}",
            ]
        return words

    def _open(
        self, id_: str, name: str, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any]
    ) -> Any:
        """A W&B run, opened or gone on with; None where W&B is disabled."""
        if self._mode == "disabled":
            return None
        # W&B takes up to a second to import, and is not needed by who does not track.
        import wandb

        # W&B's service process keeps its log here, else in the home folder, which a batch node may not let it write.
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._folder / WANDB_FILES / "cache"))
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / WANDB_FILES / "data"))
        # It would send reports of its own failures to W&B, and print on our terminal where it cannot.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        mode = resolve_mode(self._mode)
        if mode == "disabled":
            return None
        put_aside(self._folder, id_)
        self._losses.listen()
        opened = wandb.init(
            project=self._project,
            entity=self._entity,
            id=id_,
            name=redacted(name)[:NAME_CHARACTERS],
            group=group[:NAME_CHARACTERS],
            job_type=job_type,
            tags=[redacted(tag)[:TAG_CHARACTERS] for tag in tags if tag],
            config=without_secrets(config),
            dir=self._folder,
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**RUN_SETTINGS),
        )
        if not opened.offline:
            self._group_url = f"{opened.project_url}/groups/{quote(group[:NAME_CHARACTERS])}/workspace"
        return opened


@dataclass
class _OpenRun:
    """A run that is open on W&B.

    Attributes:
        tracked: what it was started with.
        run: W&B's.
        held: the last step that W&B's server holds from before this start; -1 for none, and offline.
        waiting: the row of an evaluated step, which the training row of the same step may join. Of a run that is
            interrupted it is not sent: the step is evaluated again.
        given: rows that it got, those that it was started with included.
    """

    tracked: TrackedRun
    run: Any
    held: int
    highlights: Highlights = field(default_factory=Highlights)
    waiting: Row | None = None
    given: int = 0

    def log(self, row: Row, *, per_head: bool) -> None:
        self._log(row, per_head=per_head)
        self.given += 1

    def _log(self, row: Row, *, per_head: bool) -> None:
        self.highlights.add(row)
        step = row["step"]
        if step is None or step <= self.held:
            return
        wanted = row if per_head else {name: value for name, value in row.items() if "/head_" not in name}
        if self.waiting is not None and self.waiting["step"] == step:
            wanted = self.waiting | wanted
        else:
            self._send_waiting()
        self.waiting = wanted
        if "loss/train" in row:
            self._send_waiting()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._send_waiting()
        self.run.summary.update({**self.highlights.values, **summary})
        status = summary.get("status")
        if status == "diverged":
            self.run.tags = (*self.run.tags, "diverged")
        self.run.finish(exit_code=0 if status in TERMINAL else 1)

    def _send_waiting(self) -> None:
        if self.waiting is not None:
            # What was not finite is null where a row was read back from the record. Sent as NaN, it can be told from
            # what was not measured.
            row = {name: math.nan if value is None else value for name, value in self.waiting.items()}
            self.run.log({tracked_name(name): value for name, value in row.items()}, step=row["step"], commit=True)
            self.waiting = None


def resolve_mode(mode: Mode) -> ResolvedMode:
    """The mode in which W&B is to be used here: `mode`, or for `auto` what W&B was set to, offline without an API key.

    Raises:
        InputError: that is `online`, by choice or by WANDB_MODE, and no API key is configured.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(**QUIET)).settings
    asked = settings.mode if mode == "auto" else mode
    wanted: ResolvedMode = OLD_MODES.get(asked, asked)
    if wanted != "online" or has_key():
        return wanted
    if mode == "auto" and not os.environ.get("WANDB_MODE"):
        return "offline"
    key, fix = ("tracking.mode", "offline or auto") if mode == "online" else ("WANDB_MODE", "offline")
    raise InputError(key, "online", "no W&B API key is configured", f"Run `wandb login`, or set it to {fix}.")
