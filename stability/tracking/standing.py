"""Where an unfinished run stands: its newest checkpoint that is whole, and the rows that belong to it. No JAX.

When a checkpoint is on the disk it gets a *seal*, `checkpoints/STEP.json`: length and SHA-256 of each of its files and
of the metrics at that moment. A checkpoint without a seal was being written when its process was killed. A seal that no
longer matches shows damage: the run goes on from the one before, and what is damaged is put aside, never deleted.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.errors import InputError
from stability.tracking.files import (
    SCHEMA_VERSION,
    DamagedError,
    Measure,
    cut,
    measure,
    read_json,
    remove,
    remove_partial,
    to_disk,
    write_json,
)
from stability.tracking.record import TERMINAL, Row, RunFolder, read_rows


@dataclass(frozen=True)
class Damage:
    """What is no longer as it was written, and why it is known."""

    path: Path
    why: str


@dataclass(frozen=True)
class Standing:
    """From where a run goes on.

    Attributes:
        step: of its newest sound checkpoint; 0 is the beginning.
        metrics_bytes: how much of its metrics belongs to the steps before.
        damage: newer checkpoints that are not sound.
    """

    step: int
    metrics_bytes: int
    damage: tuple[Damage, ...] = ()


def seal(run: RunFolder, fingerprint: str, step: int) -> None:
    """Seal the checkpoint of a step, which is on the disk, with the metrics as they stand.

    Raises:
        OSError: something cannot be read or written.
    """
    to_disk(run.metrics)
    files = {
        path.relative_to(run.checkpoints).as_posix(): measure(path).as_dict()
        for path in sorted((run.checkpoints / str(step)).rglob("*"))
        if path.is_file()
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "step": step,
        "metrics": measure(run.metrics).as_dict(),
        "files": files,
    }
    write_json(_seal_of(run, step), content, checksum=True)
    for old in _sealed_steps(run):
        if not (run.checkpoints / str(old)).is_dir():  # only the newest are kept
            _seal_of(run, old).unlink()


def standing(run: RunFolder, fingerprint: str) -> Standing:
    """Where a run stands that is not finished, or whose result is damaged. Changes nothing.

    Raises:
        InputError: another version of this program wrote the record.
        OSError: something is there and cannot be read.
    """
    damage = list(_damaged_files(run, fingerprint))
    for step in sorted(_sealed_steps(run), reverse=True):
        try:
            metrics = _check(run, fingerprint, step, read_json(_seal_of(run, step)))
        except DamagedError as error:
            damage.append(Damage(run.checkpoints / str(step), _words(error)))
            continue
        return Standing(step, metrics.bytes, tuple(damage))
    return Standing(0, 0, tuple(damage))


def settle(run: RunFolder, found: Standing, aside: Path) -> list[Row]:
    """Bring a run's folder to where it stands: rows and checkpoints beyond are gone, what is damaged is put aside.

    Where nothing sound is left to go on from, all of the folder is put aside. Only for who holds the run's lock.

    Args:
        run: its folder.
        found: from `standing`.
        aside: a folder that is not there yet, for what is damaged.

    Returns:
        the rows that stay.
    """
    if found.damage and found.step == 0:
        put_aside(run.path, aside.parent, aside.name)
    elif found.damage:
        _put_parts_aside(run, found.damage, aside)
    run.path.mkdir(parents=True, exist_ok=True)
    remove_partial(run.path)
    sealed = {str(step) for step in _sealed_steps(run)}
    for path in run.checkpoints.iterdir() if run.checkpoints.is_dir() else ():
        if path.stem not in sealed:
            remove(path)
    cut(run.metrics, found.metrics_bytes)
    return read_rows(run.metrics)


def _put_parts_aside(run: RunFolder, damage: Sequence[Damage], aside: Path) -> None:
    aside.mkdir(parents=True)
    if run.metrics.exists():  # the rows beyond the sound checkpoint are evidence too
        shutil.copyfile(run.metrics, aside / run.metrics.name)
    for path in (one.path for one in damage):
        folder = aside / path.parent.relative_to(run.path)
        put_aside(path, folder, path.name)
        if path.parent == run.checkpoints:
            put_aside(_seal_of(run, int(path.name)), folder, f"{path.name}.json")


def put_aside(path: Path, folder: Path, name: str) -> None:
    """Move a file or folder, if it is there, into another folder of the same file system."""
    if path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.replace(folder / name)


def damage_of_result(run: RunFolder, fingerprint: str) -> str | None:
    """What of a finished run's record is not as it was written, in words; None where all is. Changes nothing.

    Raises:
        InputError: another version of this program wrote the record.
        OSError: a file is there and cannot be read.
    """
    try:
        summary = run.read_summary() or {}
        run.read_config()
        run.read_provenance()
    except DamagedError as error:
        return _words(error)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    if summary.get("fingerprint") != fingerprint:
        return f"{run.path / 'summary.json'} is of the run {summary.get('fingerprint')}"
    expected = Measure.read(summary.get("metrics"))
    if expected is not None and (why := _difference(run.metrics, expected)):
        return why
    return None if run.metrics.exists() else f"{run.metrics} is missing"


def _damaged_files(run: RunFolder, fingerprint: str) -> Iterator[Damage]:
    """The JSON files of a record that cannot be read; or all of a result that is not as it was written."""
    status = None
    for path in (run.summary, run.config, run.provenance):
        try:
            content = read_json(path) if path.exists() else {}
        except DamagedError as error:
            yield Damage(path, _words(error))
            continue
        if path == run.summary:
            status = content.get("status")
    if status in TERMINAL and (why := damage_of_result(run, fingerprint)):
        yield Damage(run.summary, why)


def _check(run: RunFolder, fingerprint: str, step: int, content: Mapping[str, Any]) -> Measure:
    """The measure of the metrics that a seal tells, once all that it tells is so; raises DamagedError where not."""
    place = run.checkpoints / str(step)
    metrics, files = Measure.read(content.get("metrics")), content.get("files")
    if metrics is None or not isinstance(files, Mapping) or content.get("step") != step:
        raise _damaged(_seal_of(run, step), "is no seal of this checkpoint")
    if content.get("fingerprint") != fingerprint:
        raise _damaged(_seal_of(run, step), f"is of the run {content.get('fingerprint')}")
    found = {path.relative_to(run.checkpoints).as_posix() for path in place.rglob("*") if path.is_file()}
    for name in sorted(found ^ files.keys()):
        raise _damaged(run.checkpoints / name, "is missing" if name in files else "does not belong there")
    for name, told in files.items():
        expected = Measure.read(told)
        if expected is None:
            raise _damaged(_seal_of(run, step), "is no seal of this checkpoint")
        if why := _difference(run.checkpoints / name, expected):
            raise _damaged(why)
    if measure(run.metrics, metrics.bytes) != metrics:
        raise _damaged(run.metrics, f"does not begin with the {metrics.bytes} bytes that belong to step {step}")
    return metrics


def _difference(path: Path, expected: Measure) -> str | None:
    """How a file differs from what was written, in words."""
    if not path.exists():
        return f"{path} is missing"
    if (size := path.stat().st_size) != expected.bytes:
        return f"{path} has {size} bytes instead of {expected.bytes}"
    return None if measure(path) == expected else f"{path} is not what was written: its checksum differs"


def _words(error: InputError) -> str:
    return f"{error.value} {error.problem}".rstrip()


def _damaged(what: object, why: str = "") -> DamagedError:
    return DamagedError("file", what, why, "Restore it, or let the run go on from an earlier checkpoint.")


def _seal_of(run: RunFolder, step: int) -> Path:
    return run.checkpoints / f"{step}.json"


def _sealed_steps(run: RunFolder) -> Iterator[int]:
    if run.checkpoints.is_dir():
        for path in run.checkpoints.glob("*.json"):
            if path.stem.isascii() and path.stem.isdigit():
                yield int(path.stem)
