"""Reading token shards: any division gives the same batches, only a process's share is read, damage is named."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.data import Batches, JoinedTokens, load_shards, validation_windows
from stability.data.manifest import (
    Counts,
    Manifest,
    Shard,
    TokenizerRecord,
    corpus_hash,
    little_endian,
    write_manifest,
)
from stability.data.scan import scan
from stability.data.shards import check
from stability.errors import InputError
from tests.conftest import TINY, Command

ROOT = Path(__file__).parent.parent
VOCABULARY = 300


def tokens_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, VOCABULARY, n, dtype=np.uint16)


def divided(tokens: np.ndarray, cuts: Sequence[int]) -> JoinedTokens:
    ends = sorted({min(cut, len(tokens)) for cut in cuts})
    return JoinedTokens([part for part in np.split(tokens, ends) if len(part)], tokens.dtype)


def write_shards(folder: Path, train: Sequence[np.ndarray], validation: Sequence[np.ndarray], **changes: Any) -> Path:
    """A folder as `stability.prepare` writes it, of given tokens."""
    dtype = changes.pop("dtype", "uint16")
    record = TokenizerRecord(kind="bytes", file=None, sha256=None, vocabulary_size=256, end_of_sequence=0)
    shards: dict[str, list[Shard]] = {"train": [], "validation": []}
    for part, arrays in (("train", train), ("validation", validation)):
        (folder / part).mkdir(parents=True)
        for i, array in enumerate(arrays):
            content = array.astype(little_endian(dtype)).tobytes()
            name = f"{part}/{i:05d}.bin"
            (folder / name).write_bytes(content)
            shards[part].append(Shard(file=name, tokens=len(array), sha256=hashlib.sha256(content).hexdigest()))
    size = changes.pop("vocabulary_size", VOCABULARY)
    manifest = Manifest(
        corpus=corpus_hash(dtype, size, record, shards["train"], shards["validation"]),
        dtype=dtype,
        vocabulary_size=size,
        tokenizer=record,
        train=tuple(shards["train"]),
        validation=tuple(shards["validation"]),
        counts=Counts(tokens=sum(map(len, train)) + sum(map(len, validation))),
        plan={},
        licence="none",
        versions={},
    )
    write_manifest(folder, dataclasses.replace(manifest, **changes))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test leaves notes in the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", [tokens_of(700), tokens_of(1), tokens_of(333)], [tokens_of(200)])


# --- any division is the same sequence --------------------------------------------------------------------------------

cut_points = st.lists(st.integers(0, 400), max_size=8)


@given(length=st.integers(0, 400), cuts=cut_points, data=st.data())
def test_any_division_is_the_same_sequence(length: int, cuts: list[int], data: st.DataObject) -> None:
    tokens = tokens_of(length)
    joined = divided(tokens, cuts)
    assert len(joined) == length
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert np.array_equal(joined[start:stop], tokens[start:stop])
    assert joined[start:stop].dtype == np.uint16


@pytest.mark.parametrize("span", [slice(-1, 2), slice(3, 11), slice(5, 3)])
def test_a_span_outside_the_sequence_is_no_shorter_span(span: slice) -> None:
    with pytest.raises(IndexError, match="of 10"):
        divided(tokens_of(10), [4])[span]


sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(2, 120)).filter(lambda s: s[2] >= s[0] + 1)


@given(size=sizes, cuts=cut_points, seed=st.integers(0, 2**32 - 1), start=st.integers(0, 10**9))
def test_batches_do_not_depend_on_the_division(
    size: tuple[int, int, int], cuts: list[int], seed: int, start: int
) -> None:
    time, batch_size, length = size
    tokens = tokens_of(length)
    whole, parts = (Batches(t, time, batch_size) for t in (tokens, divided(tokens, cuts)))
    assert np.array_equal(parts.batches(seed, start, 3), whole.batches(seed, start, 3))
    chosen = validation_windows(divided(tokens, cuts), time, 5)
    assert np.array_equal(chosen, validation_windows(tokens, time, 5))


# --- a process reads its share ----------------------------------------------------------------------------------------


class Counting:
    """0, 1, 2, ... of any length, without memory; remembers how many times each position was read."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.spans: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, span: slice, /) -> np.ndarray:
        self.spans.append((span.start, span.stop))
        return np.arange(span.start, span.stop)


@given(size=sizes, seed=st.integers(0, 2**32 - 1), processes=st.sampled_from([1, 2, 8]), strided=st.booleans())
def test_processes_read_each_window_of_an_epoch_once_and_only_their_own(
    size: tuple[int, int, int], seed: int, processes: int, strided: bool
) -> None:
    time, batch_size, length = size
    whole = Batches(Counting(length), time, batch_size)
    steps = -(-whole.windows // batch_size)
    expected = whole.batches(seed, 0, steps)
    joined = np.empty_like(expected)
    spans: list[tuple[int, int]] = []
    for p in range(processes):
        block = slice(p * batch_size // processes, (p + 1) * batch_size // processes)
        rows = slice(p, None, processes) if strided else block
        tokens = Counting(length)
        share = Batches(tokens, time, batch_size).batches(seed, 0, steps, rows)
        joined[:, rows] = share
        assert tokens.spans == [(row[0], row[-1] + 1) for row in share.reshape(-1, time + 1).tolist()]
        spans += tokens.spans
    assert np.array_equal(joined, expected)
    # Together: every window of the epoch once, and nothing twice before the next epoch begins.
    starts = np.sort(expected.reshape(-1, time + 1)[: whole.windows, 0])
    assert starts.tolist() == [i * time for i in range(whole.windows)]
    assert sorted(spans) == sorted((row[0], row[-1] + 1) for row in expected.reshape(-1, time + 1).tolist())


PROCESS = """
import sys
from stability.data import Batches, load_shards
folder, p, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
made = Batches(load_shards(folder).parts.train, 7, 16)
sys.stdout.buffer.write(made.batches(3, 5, 20, slice(p, None, processes)).tobytes())
"""


def test_two_and_eight_processes_read_what_one_reads(folder: Path) -> None:
    whole = Batches(load_shards(str(folder)).parts.train, 7, 16).batches(3, 5, 20)
    for processes in (2, 8):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(folder), str(p), str(processes)], stdout=subprocess.PIPE, cwd=ROOT
            )
            for p in range(processes)
        ]
        joined = np.empty_like(whole)
        for p, process in enumerate(running):
            content, _ = process.communicate()
            assert process.returncode == 0
            joined[:, p::processes] = np.frombuffer(content, np.int32).reshape(joined[:, p::processes].shape)
        assert np.array_equal(joined, whole)


def test_positions_beyond_two_to_the_31_are_positions() -> None:
    length, time = 5 * 2**31 + 3, 512
    tokens = Counting(length)
    made = Batches(tokens, time, 64)
    assert made.windows == (length - 1) // time
    made.batches(1, 10**7, 4)
    starts = np.array([start for start, _ in tokens.spans])
    assert np.all(starts % time == 0)
    assert starts.max() > 2**32
    assert len(set(starts.tolist())) == 256
    validation_windows(tokens, time, 3)
    assert tokens.spans[-1][0] > 2**32


def test_a_file_of_more_than_two_to_the_31_tokens_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    """A sparse file: 4.3 GB that take no disk."""
    far = 2**31 + 5
    file = tmp_path / "sparse.bin"
    with file.open("wb") as opened:
        opened.seek(2 * far)
        opened.write(np.array([7, 8, 9], "<u2").tobytes())
    joined = JoinedTokens([tokens_of(10), np.memmap(file, "<u2", "r")], np.dtype("<u2"))
    assert joined[10 + far - 1 : 10 + far + 3].tolist() == [0, 7, 8, 9]


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_folder_gives_back_its_tokens(tmp_path: Path, dtype: str) -> None:
    train, validation = [tokens_of(50), tokens_of(7)], [tokens_of(9)]
    folder = write_shards(tmp_path / "s", train, validation, dtype=dtype)
    corpus = load_shards(str(folder))
    assert corpus.vocabulary_size == VOCABULARY
    assert np.array_equal(corpus.parts.train[0:57], np.concatenate(train))
    assert np.array_equal(corpus.parts.validation[0:9], validation[0])
    with pytest.raises(ValueError, match="read-only"):
        corpus.parts.train[0:5][0] = 1


def test_the_hash_tells_tokens_vocabularies_and_tokenizers_apart(tmp_path: Path) -> None:
    folders = {
        "same": write_shards(tmp_path / "a", [tokens_of(50)], [tokens_of(9)]),
        "again": write_shards(tmp_path / "b", [tokens_of(50)], [tokens_of(9)]),
        "tokens": write_shards(tmp_path / "c", [tokens_of(51)], [tokens_of(9)]),
        "parts": write_shards(tmp_path / "d", [tokens_of(9)], [tokens_of(50)]),
        "vocabulary": write_shards(tmp_path / "e", [tokens_of(50)], [tokens_of(9)], vocabulary_size=301),
        "dtype": write_shards(tmp_path / "f", [tokens_of(50)], [tokens_of(9)], dtype="uint32"),
    }
    hashes = {name: load_shards(str(folder)).hash for name, folder in folders.items()}
    assert hashes.pop("again") == hashes["same"]
    assert len(set(hashes.values())) == 5


def change(file: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(edit((folder / file).read_bytes())) and None


def manifest_with(**values: Any) -> Callable[[Path], None]:
    def edit(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), **values}).encode()

    return change("manifest.json", edit)


DAMAGE = [
    # what is done to a good folder, and what the error must name
    (change("train/00002.bin", lambda c: c[:-100]), r"train/00002\.bin: ends at byte 566 \(token 283\); .* 333 tokens"),
    (change("train/00000.bin", lambda c: c + b"ab"), r"train/00000\.bin: goes on beyond byte 1,400, .* 700 tokens end"),
    (change("train/00000.bin", lambda c: c + c), r"train/00000\.bin: holds 700 tokens of 4 bytes, .* says uint16"),
    (change("validation/00000.bin", lambda c: c[::-1]), r"validation/00000\.bin: "),
    (
        change("train/00002.bin", lambda c: c[:20] + b"\x2c\x01" + c[22:]),
        r"train/00002\.bin: holds 300 as token 10 \(byte 20\), outside the vocabulary of 300",
    ),
    (
        change("train/00002.bin", lambda c: c[:20] + b"\x00\x00\x00\x00" + c[24:]),
        r"train/00002\.bin: has changed: its SHA-256 is \w+, the manifest says \w+",
    ),
    (lambda f: (f / "train" / "00001.bin").unlink(), r"train/00001\.bin: is listed .* \(No such file"),
    (lambda f: (f / "manifest.json").unlink(), "holds no manifest.json"),
    (lambda f: ((f / "manifest.json").unlink(), (f / "preparing").mkdir()), "is not finished"),
    (change("manifest.json", lambda c: c[:50]), "manifest.json: is not valid JSON"),
    (change("manifest.json", lambda c: b"[]"), "holds no JSON object"),
    (manifest_with(schema_version=9), "schema_version 9"),
    (manifest_with(dtype="int8"), "manifest.json: dtype=int8 should be 'uint16' or 'uint32'"),
    (manifest_with(dtype="uint32"), "manifest.json: has been changed"),
    (manifest_with(vocabulary_size=301), "manifest.json: has been changed"),
    (manifest_with(train=[]), "manifest.json: has been changed"),
    (manifest_with(corpus=5), "manifest.json: corpus=5"),
    (manifest_with(surprise=1), "manifest.json: surprise=1 there is no such key"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_found_before_training_and_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    load_shards(str(folder))
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_shards(str(folder))
    with pytest.raises(InputError, match=message):
        check(folder, "check")


def test_a_manifest_may_not_contradict_its_vocabulary(tmp_path: Path) -> None:
    small = write_shards(tmp_path / "small", [tokens_of(9) % 200], [tokens_of(9) % 200], vocabulary_size=200)
    with pytest.raises(InputError, match="vocabulary_size=200, which the tokenizer's 256 or uint16 contradicts"):
        load_shards(str(small))
    large = write_shards(tmp_path / "large", [tokens_of(9)], [tokens_of(9)], vocabulary_size=70_000)
    with pytest.raises(InputError, match="vocabulary_size=70000"):
        load_shards(str(large))


@pytest.mark.parametrize(("path", "message"), [(None, "needs to know its folder"), ("/nowhere", "is not a folder")])
def test_a_folder_has_to_be_one(path: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_shards(path)


def test_a_folder_is_scanned_once_until_a_file_changes(folder: Path, cache: Path) -> None:
    load_shards(str(folder))
    (stamp,) = cache.rglob("*.json")
    file = folder / "train" / "00002.bin"
    before, content = file.stat(), file.read_bytes()
    # What a scan would find, hidden from size and time: the second start did not read it.
    file.write_bytes(b"\xff" * len(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    load_shards(str(folder))
    with pytest.raises(InputError, match="holds 65535 as token 0"):
        check(folder, "check")  # which always reads
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InputError, match="holds 65535 as token 0"):
        load_shards(str(folder))
    file.write_bytes(content)
    stamp.write_text("{}")
    load_shards(str(folder))
    assert json.loads(stamp.read_text())["corpus"] == load_shards(str(folder)).hash


def test_no_place_for_a_note_is_no_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_shards(str(folder))


@settings(max_examples=25)
@given(position=st.integers(0, 1033), value=st.integers(VOCABULARY, 2**16 - 1), data=st.data())
def test_the_scan_finds_any_token_outside_the_vocabulary(
    position: int, value: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = [tokens_of(700), tokens_of(1), tokens_of(333)]
    place = int(np.searchsorted([700, 701, 1034], position, side="right"))
    inside = position - [0, 700, 701][place]
    arrays[place][inside] = value
    folder = write_shards(tmp_path_factory.mktemp("s") / "s", arrays, [tokens_of(9)])
    with pytest.raises(InputError, match=rf"{place:05d}\.bin: holds {value} as token {inside} "):
        check(folder, "check")


def test_more_shards_than_a_process_may_have_open(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "many", [tokens_of(5)] * 80, [tokens_of(9)])
    program = (
        "import resource, sys; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard)); "
        "from stability.data import load_shards; print(len(load_shards(sys.argv[1]).parts.train))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "400\n"


# --- training on it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "damage", "message"),
    [
        ("data=shards", None, "data.path=None: data.name=shards needs to know its folder"),
        ("data=shards data.path=nowhere", None, "data.path=nowhere: is not a folder"),
        ("data=shards data.path=shards", DAMAGE[0][0], "ends at byte 566 (token 283)"),
        ("data=shards data.path=shards", DAMAGE[4][0], "holds 300 as token 10 (byte 20)"),
        ("data=shards data.path=shards training.sequence_length=200", None, "(200 tokens). Set it to 199 or less"),
    ],
)
def test_bad_shards_are_refused_on_the_command_line(
    command: Command, folder: Path, arguments: str, damage: Callable[[Path], None] | None, message: str
) -> None:
    if damage is not None:
        damage(folder)
    outcome = command(*TINY, *arguments.split())
    assert outcome.code == 2
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not Path("results").exists()


def test_a_scan_reads_blocks_that_end_within_a_token_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block size is a multiple of both widths, so that no token is cut; smaller blocks find the same."""
    from stability.data import scan as module

    assert module.BLOCK_BYTES % 4 == 0
    monkeypatch.setattr(module, "BLOCK_BYTES", 12)
    scan(folder, check(folder, "check"), "check")
    DAMAGE[4][0](folder)
    with pytest.raises(InputError, match=r"holds 300 as token 10 \(byte 20\)"):
        check(folder, "check")
