"""A sweep's folder: opened for a command, refused when it holds something else, extended when it is the same sweep."""

import itertools
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stability.arms import NOT_ARM_KEYS, Scales, as_given
from stability.config import scientific
from stability.errors import InputError
from stability.launching.plan import PlannedRun
from stability.launching.settings import Ladder, Sweep
from stability.tracking.files import SCHEMA_VERSION, DamagedError, read_json, remove_partial, write_json
from stability.tracking.locks import LOCKS, SWEEP, Locks
from stability.tracking.record import (
    CHECKPOINTS,
    DAMAGED,
    FIGURES,
    MANIFEST,
    RUNS,
    TERMINAL,
    Row,
    RunFolder,
    flatten,
    run_folders,
)
from stability.tracking.standing import damage_of_result, settle, standing
from stability.tracking.wandb_files import WANDB_FILES
from stability.typed import from_mapping
from stability.untrusted.names import refuse_links_out


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's records are, and the id that tells this folder's runs from the same runs elsewhere."""

    path: Path
    sweep_id: str

    def run(self, planned: PlannedRun) -> RunFolder:
        """The folder of one run, whether or not it has started."""
        return RunFolder(self.path / RUNS / planned.folder_name)

    def is_finished(self, planned: PlannedRun) -> bool:
        """Whether a run has a result whose record is as it was written.

        Raises:
            InputError: another version of this program wrote the record.
        """
        run = self.run(planned)
        with suppress(DamagedError, FileNotFoundError):  # another command may be putting it aside
            status = (run.read_summary() or {}).get("status")
            return status in TERMINAL and damage_of_result(run, planned.fingerprint) is None
        return False

    def step_of(self, planned: PlannedRun) -> int:
        """The step from which an unfinished run goes on."""
        return standing(self.run(planned), planned.fingerprint).step

    def take_up(self, planned: PlannedRun, say: Callable[[str], None]) -> tuple[int, list[Row]]:
        """Bring an unfinished run's folder to where the run stands; its step and rows. Only for who holds its lock.

        Args:
            planned: the run.
            say: told what was found damaged, and what follows.
        """
        run, found = self.run(planned), standing(self.run(planned), planned.fingerprint)
        aside = self._aside(run.path.name)
        for one in found.damage:
            say(f"Damaged: {one.why}.")
        if found.damage:
            goes_on = f"goes on from step {found.step}" if found.step else "starts again from its beginning"
            say(f"{planned.title} {goes_on}; what is damaged was put into {aside}")
        return found.step, settle(run, found, aside)

    def _aside(self, name: str) -> Path:
        """A folder for what is damaged of a run, not there yet."""
        numbers = itertools.count(1)
        return next(path for i in numbers if not (path := self.path / DAMAGED / f"{name}-{i}").exists())


def check_folder(path: Path, sweep: str, runs: Sequence[PlannedRun], scales: Scales) -> Mapping[str, Any] | None:
    """Look whether these runs may be recorded here, and return the manifest found. Writes nothing.

    A sweep may be extended along learning rate, scale, seed, and any setting that it varies. A setting that none of the
    new runs share with the old ones makes it another sweep.

    Raises:
        InputError: the folder holds another sweep or other files, or a link that leads out of it, its corpus has
            changed, or it cannot be written.
    """
    _check_writable(path)
    refuse_links_out(path, path / WANDB_FILES, *(path / RUNS / run.folder_name / CHECKPOINTS for run in runs))
    manifest_path = path / MANIFEST
    if not manifest_path.exists():
        if path.is_dir() and any(entry.name != LOCKS for entry in path.iterdir()):
            raise InputError("output_dir", path, "is not empty and holds no sweep of ours", "Name another folder.")
        return None
    manifest = _read_manifest(manifest_path)
    if manifest["sweep"] != sweep:
        problem = f"holds the sweep {manifest['sweep']!r}, and this one is {sweep!r}"
        raise InputError("output_dir", path, problem, "Name another folder with output_dir=.")
    new = _settings(runs, scales)
    for key, old_values in manifest["settings"].items():
        new_values = new.get(key, [])
        if key == "data.corpus" and new_values != old_values:
            raise InputError(
                "data.corpus",
                _short(new_values),
                f"the text has changed since the sweep in {path} began (its hash was {_short(old_values)})",
                "Restore the text, or start afresh with another output_dir=.",
            )
        if not any(value in old_values for value in new_values):
            raise InputError(
                key,
                _short(new_values),
                f"{path} holds this sweep with {key}={_short(old_values)}: that is another sweep",
                f"Name another folder with output_dir=, or give both values ({key}=A,B) to compare them as arms.",
            )
    return manifest


@dataclass(frozen=True)
class _Manifest:
    """What extending a sweep relies on."""

    sweep: str
    sweep_id: str
    settings: dict[str, list[Any]]
    scales: dict[str, dict[str, Any]]
    runs: list[str]
    commands: list[dict[str, Any]]


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, if what it holds is of the types that it should be."""
    try:
        manifest = read_json(path)
        from_mapping(_Manifest, manifest)
    except OSError as error:
        raise InputError("file", path, f"cannot be read ({error.strerror})", "Check its permissions.") from None
    except InputError as error:
        if error.key == "file":
            raise
        problem = f"is damaged at `{error.key}` ({error.problem})"
        raise InputError("file", path, problem, "Restore it, or name another output_dir=.") from None
    return manifest


def open_folder(
    path: Path,
    locks: Locks,
    sweep: str,
    definition: Sweep,
    runs: Sequence[PlannedRun],
    ladder: Ladder,
    command: str,
) -> SweepFolder:
    """Write the manifest, new or extended (see `check_folder`), and return the folder ready for records.

    Raises:
        InputError: as `check_folder`, which is asked again: another command may have come first.
    """
    with locks.hold(SWEEP):
        folder = _write_manifest(path, sweep, definition, runs, ladder, command)
        _tidy(folder, locks)
    return folder


def _tidy(folder: SweepFolder, locks: Locks) -> None:
    """Remove what killed commands left: files half-written, locks, and checkpoints of runs that had just finished."""
    for place in (folder.path, folder.path / FIGURES, folder.path / RUNS, folder.path / LOCKS):
        remove_partial(place)
    for name in locks.left_behind():
        locks.release(name)
    for run in run_folders(folder.path):
        if run.checkpoints.is_dir() and locks.take(run.path.name):
            with suppress(DamagedError, KeyError, IndexError):
                summary, steps = run.read_summary() or {}, run.read_config()["training"]["steps"]
                kept = run.read_provenance()[-1]["settings"]["training"]["keep_checkpoint"]
                if summary.get("status") in TERMINAL:
                    run.remove_checkpoints(steps if kept and summary["steps"] == steps else None)
            locks.release(run.path.name)


def _write_manifest(
    path: Path, sweep: str, definition: Sweep, runs: Sequence[PlannedRun], ladder: Ladder, command: str
) -> SweepFolder:
    manifest = check_folder(path, sweep, runs, ladder.scales)
    old = manifest or {"sweep_id": secrets.token_hex(4), "settings": {}, "scales": {}, "runs": [], "commands": []}
    settings = _settings(runs, ladder.scales)
    for key, values in old["settings"].items():
        settings[key] = [*values, *(value for value in settings.get(key, []) if value not in values)]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "schema_version": SCHEMA_VERSION,
        "sweep": sweep,
        "sweep_id": old["sweep_id"],
        "question": definition.question,
        "source": definition.source,
        "ladder": ladder.name,
        "scales": {**old["scales"], **ladder.scales},
        "quantities": definition.quantities,
        "claims": definition.claims,
        "forecasts": definition.forecasts,
        "runs": list(dict.fromkeys([*old["runs"], *(run.fingerprint for run in runs)])),
        "settings": settings,
        "commands": [*old["commands"], {"time": now, "command": command}],
        **{key: value for key, value in old.items() if key == "search"},
    }
    write_json(path / MANIFEST, content, checksum=True)
    return SweepFolder(path, old["sweep_id"])


@dataclass(frozen=True)
class SearchState:
    """How far a search has come: which round, and whether it is at its end."""

    round: int
    finished: bool


def plan_round(folder: SweepFolder, locks: Locks, runs: Sequence[PlannedRun], state: SearchState) -> None:
    """Add a round's runs to those planned in the manifest, and say how far the search is."""
    with locks.hold(SWEEP):
        manifest = read_json(folder.path / MANIFEST)
        planned = list(dict.fromkeys([*manifest["runs"], *(run.fingerprint for run in runs)]))
        content = {**manifest, "runs": planned, "search": asdict(state)}
        write_json(folder.path / MANIFEST, content, checksum=True)


def is_complete(folder: SweepFolder, runs: Sequence[PlannedRun]) -> bool:
    """Whether these runs have results, and the sweep's search, if there is one, has come to its end."""
    search = read_json(folder.path / MANIFEST).get("search", {"finished": True})
    return bool(search["finished"]) and all(folder.is_finished(run) for run in runs)


def _settings(runs: Sequence[PlannedRun], scales: Scales) -> dict[str, list[Any]]:
    """Every value that each setting takes over the runs, but for learning rate, scale and seed."""
    free = NOT_ARM_KEYS.union(*(keys.keys() for keys in scales.values()))
    settings: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in as_given(flatten(scientific(run.config))).items():
            if key not in free and value not in settings.setdefault(key, []):
                settings[key].append(value)
    return settings


def _check_writable(path: Path) -> None:
    existing = path
    if "\0" in str(path):
        raise InputError("output_dir", repr(str(path)), "holds a NUL, which no name of a folder does", "Name another.")
    try:
        while not existing.exists():
            existing = existing.parent
    except OSError as error:
        raise InputError(
            "output_dir", path, f"is no name for a folder here ({error.strerror})", "Name another."
        ) from None
    if not existing.is_dir():
        raise InputError("output_dir", path, f"{existing} is not a folder", "Name a folder.")
    if not os.access(existing, os.W_OK | os.X_OK) or _read_only(existing):
        raise InputError("output_dir", path, f"{existing} cannot be written", "Name a folder that you may write to.")


def _read_only(folder: Path) -> bool:
    """Whether the file system refuses writing even to those whom permissions allow it (root, say)."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY) or str(folder.resolve()).startswith(("/proc", "/sys"))


def _short(values: Sequence[Any]) -> str:
    return ",".join(str(value)[:16] for value in values)
