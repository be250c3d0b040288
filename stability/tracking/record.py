"""What a run leaves on disk: plain files, the source of truth. Imports no JAX.

A sweep's folder holds

    sweep.json                 the manifest: name, question, corpus, the ladder's scales, every run planned so far
    runs/<label>-<fingerprint>/
        config.json            the scientific config, complete, with its fingerprint
        provenance.json        one entry for each start: device, versions, command, and all else outside the fingerprint
        metrics.jsonl          one row for each observed or evaluated step
        error.txt              only when a bug ended the run: its traceback
        summary.json           status and results; replaced whole, never edited
        checkpoints/           only while the run is unfinished, or if asked for: STEP/, and its seal STEP.json
                               (`stability.tracking.standing`)
    damaged/                   what was found no longer as it was written, put aside
    locks/                     while commands are at work: which runs are whose (`stability.tracking.locks`)
    summary.json, analysis/    what `stability.analyze` makes of the runs; may be deleted and made again

A row's `step` counts the updates made before it was measured: the first row of a run has step 0, and the validation
loss at the end of training stands in a row of its own whose step is the number of steps.

Every JSON file carries `schema_version`; those of a run and the manifest also carry a checksum of themselves
(`stability.tracking.files`), and a finished run's summary that of its metrics. There is no NaN or infinity in any of
them: what is not available is null.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stability.errors import InputError
from stability.tracking.files import (
    SCHEMA_VERSION,
    DamagedError,
    append,
    measure,
    read_json,
    remove,
    without_nonfinite,
    write_json,
)

MANIFEST = "sweep.json"
RUNS = "runs"
DAMAGED = "damaged"
FIGURES = "analysis"
CHECKPOINTS = "checkpoints"

Status = Literal["finished", "diverged", "failed", "running"]
TERMINAL: frozenset[str] = frozenset({"finished", "diverged"})
"""A run with one of these statuses is a result and is never trained again."""

Row = dict[str, float | int | None]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys, in the order of the tree."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class RunFolder:
    """One run's files. Only its own run writes to it."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where Orbax keeps the unfinished run's state."""
        return self.path / CHECKPOINTS

    @property
    def summary(self) -> Path:
        """Status and results."""
        return self.path / "summary.json"

    @property
    def config(self) -> Path:
        """The scientific config."""
        return self.path / "config.json"

    @property
    def provenance(self) -> Path:
        """How, where and when it was started."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """The rows, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def begin(self, config: Mapping[str, Any], fingerprint: str, provenance: Mapping[str, Any]) -> None:
        """Write down what is about to run, or that it goes on (a further entry of provenance)."""
        self.path.mkdir(parents=True, exist_ok=True)
        starts = self.read_provenance() if self.provenance.exists() else []
        header = {"schema_version": SCHEMA_VERSION}
        write_json(self.provenance, {**header, "starts": [*starts, dict(provenance)]}, checksum=True)
        remove(self.path / "error.txt")
        write_json(self.config, {**header, "fingerprint": fingerprint, "config": config}, checksum=True)
        self.write_summary({"fingerprint": fingerprint, "status": "running"})

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows to the metrics; what a kill cuts off has no newline, and does not count."""
        append(self.metrics, "".join(json.dumps(without_nonfinite(row), allow_nan=False) + "\n" for row in rows))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace the run's summary; one that is a result also says how long the metrics are, and their checksum."""
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **summary}
        if summary["status"] in TERMINAL:
            content["metrics"] = measure(self.metrics).as_dict()
        write_json(self.summary, content, checksum=True)

    def remove_checkpoints(self, but: int | None = None) -> None:
        """A run with results needs none; that of one step may be kept."""
        for path in self.checkpoints.iterdir() if self.checkpoints.is_dir() else ():
            if path.stem != str(but):
                remove(path)
        with suppress(OSError):
            self.checkpoints.rmdir()

    def read_summary(self) -> dict[str, Any] | None:
        """The run's summary, None when the run never started."""
        return read_json(self.summary) if self.summary.exists() else None

    def read_config(self) -> dict[str, Any]:
        """The run's scientific config, nested."""
        config: dict[str, Any] = _part(self.config, "config", dict)
        return config

    def read_provenance(self) -> list[dict[str, Any]]:
        """One entry for each time the run was started."""
        starts: list[dict[str, Any]] = _part(self.provenance, "starts", list)
        return starts


def _part(path: Path, key: str, kind: type) -> Any:
    """What a JSON file of ours holds under a key."""
    part = read_json(path).get(key)
    if not isinstance(part, kind):
        raise DamagedError("file", path, f"is damaged at `{key}`", "Restore it, or delete its folder.")
    return part


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a metrics file, oldest first; a last line without its newline was cut off and is left out.

    Raises:
        InputError: a line is no row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_row(line, path, number) for number, line in enumerate(lines, 1)]


def _row(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not _is_step(row.get("step")) or not set(map(type, row.values())) <= _CELLS:
        raise InputError("file", path, f"holds no row of metrics on line {number}", "Restore it, or delete its folder.")
    return row


_CELLS = {int, float, type(None)}
_LAST_STEP = 2**63 - 1


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_STEP


class Metrics(AbstractContextManager["Metrics"]):
    """One run's metrics file, read where it is asked for: rows ascend in step, so a step is found by bisection.

    What it gives is what `read_rows` gives, at a cost that does not grow with the file (it may hold megabytes): only
    the bytes of the rows asked for are read, and only the values asked for are parsed. Use it in a `with` statement.

    Args:
        path: a metrics.jsonl; one that does not exist has no rows. Rows that are added later are not seen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = path.open("rb") if path.exists() else None
        self._end = self._end_of_whole_lines()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def last_step(self) -> int | None:
        """The step of the last row, None when there is no row."""
        lines = next(self._blocks_from_the_end(0, self._end), b"").split(b"\n")[:-1]
        return self._step(lines[-1]) if lines else None

    def rows(self, first_step: int = 0, last_step: int | None = None) -> list[Row]:
        """The rows with `first_step` <= step <= `last_step` (None: to the end), oldest first.

        Raises:
            InputError: a line is no row.
        """
        start, end = self._range(first_step, last_step)
        try:
            return [json.loads(line) for line in self._read(start, end).split(b"\n")[:-1]]
        except (ValueError, RecursionError):
            raise self._damaged("a line that is no JSON") from None

    def values(self, metric: str, first_step: int = 0, last_step: int | None = None) -> Iterator[float | None]:
        """The values of one metric in `rows(first_step, last_step)`, newest first; None for one that was not finite.

        A row that does not have the metric is passed over. Reading stops where the caller stops.

        Raises:
            InputError: a line is no row, or a value is no number.
        """
        start, end = self._range(first_step, last_step)
        for block in self._blocks_from_the_end(start, end):
            yield from reversed(self._values(block, metric))

    def sample(self, metrics: Sequence[str], count: int) -> list[Row]:
        """Up to `count` rows, evenly spread over the file, of those that hold any of some metrics; oldest first.

        The last such row is always among them. A row is its step and those metrics, None for what it does not have or
        what was not finite. At most a few rows are read for each one given.

        Args:
            metrics: names.
            count: at least 2.

        Raises:
            InputError: a line has no step, or a value is no number.
        """
        longest = max(map(len, islice(self._lines(0), _ROWS_A_SAMPLE)), default=0)
        if self._end <= _ROWS_A_SAMPLE * count * longest:
            rows = [row for line in self._lines(0) if (row := self._sampled(line, metrics))]
        else:
            rows = list(self._spread_rows(metrics, _ROWS_A_SAMPLE * count))
        if len(rows) <= count:
            return rows
        return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]

    def _spread_rows(self, metrics: Sequence[str], count: int) -> Iterator[Row]:
        """Samples of lines at evenly spread places of the file, each once, and of the last that has one."""
        read = known = 0
        for i in range(count):
            start, line = self._line_after(i * self._end // count)
            if read <= start < self._end:
                read = start + len(line)
                if row := self._sampled(line, metrics):
                    known = read
                    yield row
        for block in self._blocks_from_the_end(known, self._end):
            for line in reversed(block.split(b"\n")[:-1]):
                if row := self._sampled(line, metrics):
                    yield row
                    return

    def _sampled(self, line: bytes, metrics: Sequence[str]) -> Row | None:
        """A row's step and its values of some metrics; None where it holds none of them."""
        found = {metric: values[0] for metric in metrics if (values := self._values(line, metric))}
        return {"step": self._step(line), **dict.fromkeys(metrics), **found} if found else None

    def _range(self, first_step: int, last_step: int | None) -> tuple[int, int]:
        start = self._offset(first_step) if first_step > 0 else 0
        return start, self._end if last_step is None else self._offset(last_step + 1)

    def _offset(self, step: int) -> int:
        """Where the first row of this step or a later one begins; the end when there is none."""
        low, high = 0, self._end
        while high - low > _BLOCK:  # every line before `low` is of an earlier step
            middle = (low + high) // 2
            start, line = self._line_after(middle)
            if start < self._end and self._step(line) < step:
                low = start + len(line)
            else:
                high = middle
        for line in self._lines(low):
            if self._step(line) >= step:
                break
            low += len(line)
        return low

    def _line_after(self, offset: int) -> tuple[int, bytes]:
        """The first line that starts beyond an offset, and where."""
        assert self._file is not None
        self._file.seek(offset)
        self._file.readline()
        return self._file.tell(), self._file.readline()

    def _lines(self, offset: int) -> Iterator[bytes]:
        if self._file is not None:
            self._file.seek(offset)
            while offset < self._end:
                line = self._file.readline()
                offset += len(line)
                yield line

    def _read(self, start: int, end: int) -> bytes:
        if self._file is None or start >= end:
            return b""
        self._file.seek(start)
        return self._file.read(end - start)

    def _blocks_from_the_end(self, start: int, end: int) -> Iterator[bytes]:
        """Whole lines between two offsets, the last block first; each is larger than the one before."""
        size = _BLOCK
        while start < end:
            begin = start if end - size <= start else self._line_after(end - size)[0]
            if begin < end:
                yield self._read(begin, end)
                end = begin
            size *= 2

    def _end_of_whole_lines(self) -> int:
        """A last line without its newline was cut off and does not count."""
        if self._file is None:
            return 0
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            found = self._read(start, end).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _step(self, line: bytes) -> int:
        if match := _STEP.match(line):
            return int(match[1])
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            step = None
        if not _is_step(step):
            raise self._damaged("a line without a step")
        return int(step)

    def _values(self, block: bytes, metric: str) -> list[float | None]:
        key = json.dumps(metric).encode()
        values, at = [], block.find(key)
        while at >= 0:
            escaped = block[at - 1 : at] == b"\\"
            at += len(key)
            # Without a colon it is no key, and after a backslash it is the end of a longer one.
            if not escaped and (match := _VALUE.match(block, at)):
                values.append(self._number(match[1], metric))
            at = block.find(key, at)
        return values

    def _number(self, text: bytes, metric: str) -> float | None:
        if text == b"null":
            return None
        try:
            value = float(text)
        except ValueError:
            raise self._damaged(f"{text.decode(errors='replace')} for {metric}") from None
        return value if math.isfinite(value) else None

    def _damaged(self, what: str) -> InputError:
        return InputError("file", self._path, f"holds {what}", "Restore it, or delete its folder.")


_ROWS_A_SAMPLE = 3
"""Rows read for each that `Metrics.sample` gives: some of them hold none of its metrics."""
_BLOCK = 1 << 14
"""Bytes read at a time: some rows."""
_STEP = re.compile(rb'\{"step": (\d{1,18})[,}]')
_VALUE = re.compile(rb"\s*:\s*([^,}\s]+)")


def run_folders(sweep_folder: Path) -> list[RunFolder]:
    """The folders of all runs that ever started in a sweep's folder, in the order of their names."""
    runs = sweep_folder / RUNS
    if not runs.is_dir():
        return []
    return [RunFolder(path) for path in sorted(runs.iterdir()) if (path / "summary.json").exists()]
