"""Results that other sweeps already hold: a run is its fingerprint, so what one sweep trained another need not."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stability.errors import InputError
from stability.launching.folder import SweepFolder
from stability.launching.plan import PlannedRun
from stability.tracking.record import MANIFEST, RUNS, TERMINAL, RunFolder, read_json, write_json


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


def reuse(folder: SweepFolder, runs: Sequence[PlannedRun], lender: Path) -> int:
    """Copy the whole records of runs that another sweep has finished; how many there were.

    A copy's provenance says where it is from. The lender is only read.

    Args:
        folder: the sweep that borrows.
        runs: its runs without a result yet.
        lender: a sweep's results folder, or a folder of such.
    """
    found = lendable(folder, runs, lender)
    for run, source in found.items():
        _copy(source, folder.run(run).path)
    return len(found)


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
        if (source.read_summary() or {}).get("status") in TERMINAL:
            return source.path
    return None


def _copy(source: Path, target: Path) -> None:
    """Copy aside, then rename: nobody sees a part of a record. What an unfinished run had left there gives way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent.parent, prefix=".reuse-"))
    try:
        record = Path(shutil.copytree(source, aside / source.name))
        provenance = read_json(record / "provenance.json")
        write_json(record / "provenance.json", {**provenance, "copied_from": source.as_posix()})
        shutil.rmtree(target, ignore_errors=True)
        record.replace(target)
    finally:
        shutil.rmtree(aside)
