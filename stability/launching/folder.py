"""A sweep's folder: opened for a command, refused when it holds something else, extended when it is the same sweep."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stability.arms import NOT_ARM_KEYS, Scales, as_given
from stability.config import scientific
from stability.errors import InputError
from stability.launching.plan import PlannedRun
from stability.launching.settings import Ladder, Sweep
from stability.tracking.record import MANIFEST, RUNS, SCHEMA_VERSION, RunFolder, flatten, read_json, write_json
from stability.typed import from_mapping


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's records are, and the id that tells this folder's runs from the same runs elsewhere."""

    path: Path
    sweep_id: str

    def run(self, planned: PlannedRun) -> RunFolder:
        """The folder of one run, whether or not it has started."""
        return RunFolder(self.path / RUNS / planned.folder_name)


def check_folder(path: Path, sweep: str, runs: Sequence[PlannedRun], scales: Scales) -> Mapping[str, Any] | None:
    """Look whether these runs may be recorded here, and return the manifest found. Writes nothing.

    A sweep may be extended along learning rate, scale, seed, and any setting that it varies. A setting that none of the
    new runs share with the old ones makes it another sweep.

    Raises:
        InputError: the folder holds another sweep or other files, its corpus has changed, or it cannot be written.
    """
    _check_writable(path)
    manifest_path = path / MANIFEST
    if not manifest_path.exists():
        if path.is_dir() and any(path.iterdir()):
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
    manifest: Mapping[str, Any] | None,
    sweep: str,
    definition: Sweep,
    runs: Sequence[PlannedRun],
    ladder: Ladder,
    command: str,
) -> SweepFolder:
    """Write the manifest, new or extended (see `check_folder`), and return the folder ready for records."""
    path.mkdir(parents=True, exist_ok=True)
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
    write_json(path / MANIFEST, content)
    return SweepFolder(path, old["sweep_id"])


@dataclass(frozen=True)
class SearchState:
    """How far a search has come: which round, and whether it is at its end."""

    round: int
    finished: bool


def plan_round(folder: SweepFolder, runs: Sequence[PlannedRun], state: SearchState) -> None:
    """Add a round's runs to those planned in the manifest, and say how far the search is."""
    manifest = read_json(folder.path / MANIFEST)
    planned = list(dict.fromkeys([*manifest["runs"], *(run.fingerprint for run in runs)]))
    write_json(folder.path / MANIFEST, {**manifest, "runs": planned, "search": asdict(state)})


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
