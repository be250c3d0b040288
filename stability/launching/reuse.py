"""Results that other sweeps already hold: a run is its fingerprint, so what one sweep trained another need not."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stability.errors import InputError
from stability.launching.folder import SweepFolder
from stability.launching.plan import PlannedRun
from stability.tracking.files import PARTIAL, DamagedError, read_json, write_json
from stability.tracking.locks import Locks
from stability.tracking.record import MANIFEST, RUNS, TERMINAL, RunFolder
from stability.tracking.standing import damage_of_result


def check_lender(path: Path) -> None:
    """Refuse a `reuse_from` that holds no sweeps.

    Raises:
        InputError: it is neither a sweep's results folder nor a folder of such.
    """
    try:
        sweeps = any(_sweeps(path))
    except OSError as error:
        raise InputError("reuse_from", path, f"cannot be read ({error.strerror})", "Name another.") from None
    if not sweeps:
        raise InputError(
            "reuse_from", path, "holds no sweep's results", "Name a results folder, or the folder above several."
        )


def reuse(folder: SweepFolder, locks: Locks, runs: Sequence[PlannedRun], lender: Path) -> int:
    """Copy the whole records of runs that another sweep has finished; how many there were.

    A copy's provenance says where it is from. The lender is only read.

    Args:
        folder: the sweep that borrows.
        locks: on it; a run that another command has locked is left alone.
        runs: its runs without a result yet.
        lender: a sweep's results folder, or a folder of such.
    """
    copied = 0
    for run, source in lendable(folder, runs, lender).items():
        if locks.take(run.folder_name):
            if not folder.is_finished(run):
                _copy(source, folder.run(run).path)
                copied += 1
            locks.release(run.folder_name)
    return copied


def lendable(folder: SweepFolder, runs: Sequence[PlannedRun], lender: Path) -> dict[PlannedRun, Path]:
    """The runs that another sweep has finished, and where; arguments as for `reuse`."""
    lenders = [sweep for sweep in _sweeps(lender) if sweep.resolve() != folder.path.resolve()]
    return {run: source for run in runs if (source := _result(run, lenders)) is not None}


def _sweeps(path: Path) -> Iterator[Path]:
    """The sweeps' folders at and directly below a path."""
    if path.is_dir():
        yield from (one for one in (path, *sorted(path.iterdir())) if (one / MANIFEST).is_file())


def _result(run: PlannedRun, lenders: Sequence[Path]) -> Path | None:
    for lender in lenders:
        source = RunFolder(lender / RUNS / run.folder_name)
        if source.path.is_symlink():
            continue
        with suppress(DamagedError):
            status = (source.read_summary() or {}).get("status")
            if status in TERMINAL and damage_of_result(source, run.fingerprint) is None:
                return source.path
    return None


def _links(folder: str, names: list[str]) -> list[str]:
    """The links of a folder: what they lead to is no part of a record, and may be anything of the user's."""
    return [name for name in names if Path(folder, name).is_symlink()]


def _copy(source: Path, target: Path) -> None:
    """Copy aside, then rename: nobody sees a part of a record. What an unfinished run had left there gives way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent.parent, prefix=".reuse-", suffix=PARTIAL))
    try:
        record = Path(shutil.copytree(source, aside / source.name, ignore=_links))
        provenance = read_json(record / "provenance.json")
        copied = {**provenance, "copied_from": source.as_posix()}
        write_json(record / "provenance.json", copied, checksum=True)
        shutil.rmtree(target, ignore_errors=True)
        record.replace(target)
    finally:
        shutil.rmtree(aside)
