"""Files that are whole or not there, and that tell when they have changed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.tracking import files
from stability.tracking.files import (
    DamagedError,
    append,
    cut,
    measure,
    read_json,
    remove_partial,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(content=st.dictionaries(st.text().filter(lambda key: key not in ("sha256", "schema_version")), JSON))
def test_what_is_written_with_a_checksum_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = {"schema_version": 1, **content}
    try:
        write_json(path, content, checksum=True)
    except UnicodeEncodeError:  # a lone surrogate is no text, and was never written
        assert not path.exists()
        return
    assert read_json(path) == files.without_nonfinite(content)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_file_with_a_checksum_can_flip_unseen(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "summary.json"
    content = {"schema_version": 1, "status": "finished", "loss_validation": 1.9372810125, "rows": [1, 2, None]}
    write_json(path, content, checksum=True)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read_json(path)
    except files.InputError:
        return
    assert found == content or "sha256" not in found  # white space only, or the checksum's own key
    assert {key: found[key] for key in content} == content


def test_a_file_that_was_cut_off_or_emptied_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"schema_version": 1, "status": "finished"}, checksum=True)
    whole = path.read_bytes()
    for end in range(len(whole) - 2):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedError):
            read_json(path)


def test_a_file_edited_on_purpose_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"schema_version": 1, "question": "old"}, checksum=True)
    edited = {**json.loads(path.read_text()), "question": "new"}
    path.write_text(json.dumps(edited))
    with pytest.raises(DamagedError, match="take its line 'sha256' out"):
        read_json(path)
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert read_json(path)["question"] == "new"


@given(content=st.binary(max_size=200), end=st.none() | st.integers(0, 250))
def test_a_measure_is_of_the_beginning(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, end: int | None
) -> None:
    folder = tmp_path_factory.mktemp("measure")
    (folder / "whole").write_bytes(content)
    (folder / "part").write_bytes(content[:end])
    assert measure(folder / "whole", end) == measure(folder / "part")
    assert measure(folder / "whole", end).bytes == len(content[:end])


def test_nothing_is_left_of_an_addition_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, "first\n")

    def full_disk(file: Any, content: bytes) -> None:
        file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", full_disk)
        with pytest.raises(OSError, match="No space"):
            append(path, "second\n")
    assert path.read_text() == "first\n"
    append(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_cutting_leaves_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, "first\nsecond\n")
    cut(path, 6)
    assert path.read_text() == "first\n"
    cut(tmp_path / "new", 0)
    assert (tmp_path / "new").read_bytes() == b""


KILLED_AT_THE_END = """
import os, sys
from pathlib import Path
from stability.tracking import files
files.os.replace = lambda *_: os.kill(os.getpid(), 9)
files.write_json(Path(sys.argv[1]), {"schema_version": 1, "never": "whole"})
"""


def test_what_is_half_written_can_be_told_and_removed(tmp_path: Path) -> None:
    write_json(tmp_path / "kept.json", {"schema_version": 1})
    command = [sys.executable, "-c", KILLED_AT_THE_END, str(tmp_path / "kept.json")]
    root = Path(__file__).parent.parent
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["kept.json"]
    assert read_json(tmp_path / "kept.json") == {"schema_version": 1}
    remove_partial(tmp_path / "absent")
