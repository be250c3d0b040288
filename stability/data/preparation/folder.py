"""A folder of shards while it is made: what is done, what is not, and whether this command may go on with it.

While work is under way the folder holds `preparing/`: plan.json, one record for each unit that is done, and a lock.
The manifest is written last; then `preparing/` goes.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stability.data.manifest import MANIFEST, PREPARING, Counts, Manifest, Shard, read_manifest
from stability.data.preparation.packing import PARTS, Packed
from stability.errors import InputError
from stability.tracking.files import SCHEMA_VERSION, read_json, write_json
from stability.tracking.record import flatten
from stability.untrusted.secrets import without_secrets

KEY = "output_dir"
PLAN, LOCK = "plan.json", "lock"


@dataclass(frozen=True)
class PreparationFolder:
    """The folder of one plan."""

    path: Path
    plan: Mapping[str, Any]

    @property
    def _preparing(self) -> Path:
        return self.path / PREPARING

    def check(self) -> Manifest | None:
        """Look whether the plan may be carried out here; the manifest, if it has been already. Writes nothing.

        Raises:
            InputError: the folder holds something else, or another plan's work; names the key that differs.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise InputError(KEY, self.path, "is not a folder", "Name a folder.")
        if (self.path / MANIFEST).exists():
            manifest = read_manifest(self.path, KEY)
            self._compare(manifest.plan)
            return manifest
        if (self._preparing / PLAN).exists():
            if self.done():
                self._compare(read_json(self._preparing / PLAN)["plan"])
        elif any(one.name != PREPARING for one in self.path.iterdir()):
            raise InputError(KEY, self.path, "is not empty and holds no shards of ours", "Name another folder.")
        return None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder for this process, its plan written down.

        Raises:
            InputError: another process holds it, or it cannot be written.
        """
        try:
            self._preparing.mkdir(parents=True, exist_ok=True)
            lock = (self._preparing / LOCK).open("w")
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InputError(KEY, self.path, problem, "Name a folder that you may write to.") from None
        with lock:
            _lock(lock, self.path)
            if self.check() is not None:  # since it was last looked at
                self.clean()
                raise InputError(KEY, self.path, "another process has just finished it", "There is nothing to do.")
            if not self.done():
                self._clear()
            write_json(self._preparing / PLAN, {"schema_version": SCHEMA_VERSION, "plan": self.plan})
            try:
                yield
            except InputError:
                if not self.done():  # nothing is worth keeping
                    self.discard()
                raise

    def done(self) -> dict[int, Packed]:
        """The units whose files are there."""
        return {int(file.stem): _read(file) for file in sorted(self._preparing.glob("[0-9]*.json"))}

    def add(self, number: int, packed: Packed) -> None:
        """Note that a unit is done: its files are in place."""
        write_json(self._preparing / f"{number:05d}.json", {"schema_version": SCHEMA_VERSION, **asdict(packed)})

    def clean(self) -> None:
        """Remove what is there only until the manifest is, and what a killed process left."""
        for part in PARTS:
            for file in (self.path / part).glob("*.partial"):
                file.unlink()
        shutil.rmtree(self._preparing, ignore_errors=True)

    def discard(self) -> None:
        """Remove all that was made."""
        self._clear()
        shutil.rmtree(self._preparing, ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _clear(self) -> None:
        """Remove shards and tokenizer."""
        for part in PARTS:
            shutil.rmtree(self.path / part, ignore_errors=True)
        for file in self.path.glob("tokenizer.*"):
            file.unlink()

    def _compare(self, other: Mapping[str, Any]) -> None:
        # What is on disk holds no secrets: another token for the same address is no other plan.
        mine, others = (flatten(json.loads(json.dumps(without_secrets(plan)))) for plan in (self.plan, other))
        for key in {**others, **mine}:
            if mine.get(key) != others.get(key):
                name = key.removeprefix("settings.").removeprefix("source.")
                problem = f"{self.path} was made with {name}={_short(others.get(key))}"
                fix = f"Name another folder with {KEY}=, or delete that one."
                raise InputError(name, _short(mine.get(key)), problem, fix)


def _read(file: Path) -> Packed:
    content = read_json(file)
    shards = {part: Shard(**shard) for part, shard in content["shards"].items()}
    return Packed(shards, Counts(**content["counts"]), content["seconds"], content["tokenizer_seconds"])


def _lock(file: Any, path: Path) -> None:
    """Hold the folder until this process ends, however it ends."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fix = "Wait for it, or name another folder."
        raise InputError(KEY, path, "another process is preparing it", fix) from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
