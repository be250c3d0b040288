"""One run's story on the host's side: its record on disk, the console's line, the tracker's run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stability.config import BESIDE_IDENTITY, scientific, to_mapping
from stability.launching.folder import SweepFolder
from stability.launching.orders import Orders
from stability.launching.plan import PlannedRun
from stability.model.transformer import as_computed
from stability.tracking.console import Console
from stability.tracking.locks import Locks
from stability.tracking.record import Row, RunFolder
from stability.tracking.standing import seal
from stability.tracking.summary import Results
from stability.tracking.tracker import Background, TrackedRun
from stability.untrusted.secrets import redacted


@dataclass(frozen=True)
class Desk:
    """What every run of a sweep shares on the host's side."""

    sweep: str
    folder: SweepFolder
    console: Console
    tracker: Background
    provenance: dict[str, Any]
    locks: Locks
    orders: Orders

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether a run has a result, by its record as it is now."""
        return self.folder.is_finished(run)


@dataclass
class RunJournal:
    """Writes one run's story to its record, and tells console and tracker.

    Args:
        desk: what it shares with other runs.
        run: which.
        step: where it goes on from; 0 is its beginning.
        rows: what it had measured before.
        results: what its rows come to so far; the rows themselves are in its record.
    """

    desk: Desk
    run: PlannedRun
    step: int
    rows: Sequence[Row]
    is_over: bool = False
    began: float = field(default_factory=time.perf_counter)
    results: Results = field(init=False)

    def __post_init__(self) -> None:
        self.results = Results(self.run.config.training.steps, self.rows)

    @property
    def folder(self) -> RunFolder:
        """The run's record."""
        return self.desk.folder.run(self.run)

    @property
    def tracked_id(self) -> str:
        """The run's id for trackers: the same after a resume, another in another folder."""
        return f"{self.run.fingerprint}-{self.desk.folder.sweep_id}"

    def start(self) -> None:
        """Open the record and the tracker's run."""
        config = scientific(self.run.config)
        settings = to_mapping(as_computed(self.run.config), BESIDE_IDENTITY)
        start = {**self.desk.provenance, "resumed_from_step": self.step, "settings": settings}
        self.folder.begin(config, self.run.fingerprint, start)
        arm = tuple(self.run.arm.split(", "))
        host = {key: self.desk.provenance[key] for key in ("device", "backend", "lanes", "versions")}
        self.desk.tracker.start(
            TrackedRun(
                id=self.tracked_id,
                name=self.run.title,
                group=self.desk.sweep,
                job_type="train",
                tags=(self.run.scale, *arm),
                config={
                    **config,
                    "arm": self.run.arm,
                    "scale": self.run.scale,
                    "n_params": self.run.config.model.n_params,
                    "learning_rate": self.run.config.optimizer.learning_rate,
                    "sweep_id": self.desk.folder.sweep_id,
                    "host": host,
                },
                folder=self.folder.path,
                record={"fingerprint": self.run.fingerprint, "config": config, "host": host},
                rows=tuple(self.rows),
            )
        )

    def row(self, row: Row) -> None:
        """Record an observed or evaluated step."""
        self.results.add(row)
        self.folder.append([row])
        self.desk.tracker.log(self.tracked_id, row)
        self.desk.console.row(self.run.fingerprint, row)

    def progress(self, step: int) -> None:
        """Tell the console."""
        self.desk.console.progress(self.run.fingerprint, self.run.title, step, self.run.config.training.steps)

    def saved(self, step: int) -> None:
        """Seal the checkpoint: from now on the run goes on from it."""
        seal(self.folder, self.run.fingerprint, step)

    def ended(self, *, diverged_at: int | None, first_bad_observation: str | None = None) -> None:
        """Write the results, then remove the checkpoints, but for the state after the last step if it is asked for."""
        training = self.run.config.training
        self._finish(self.results.summary(diverged_at, first_bad_observation))
        self.folder.remove_checkpoints(training.steps if training.keep_checkpoint and diverged_at is None else None)

    def failed(self, error: str) -> None:
        """A bug, not a result: keep the traceback and go on with the other runs."""
        error = redacted(error)
        (self.folder.path / "error.txt").write_text(error, encoding="utf-8")
        self._finish({"status": "failed", "steps": None, "error": error.strip().rsplit("\n", 1)[-1]})

    def _finish(self, results: dict[str, Any]) -> None:
        self.is_over = True
        config, seconds = self.run.config, time.perf_counter() - self.began
        identity = {
            "fingerprint": self.run.fingerprint,
            "n_params": config.model.n_params,
            "learning_rate": config.optimizer.learning_rate,
            "seed": config.seed,
            "data_seed": config.data.seed,
        }
        summary = {**identity, **results, "tokens": config.tokens, "seconds": round(seconds, 3)}
        self.folder.write_summary(summary)
        self.desk.tracker.finish(self.tracked_id, summary)
        self.desk.console.ended(self.run.fingerprint, self.run.title, summary, seconds)
