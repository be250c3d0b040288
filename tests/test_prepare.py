"""`python -m stability.prepare`: every source and tokenizer, the split, resuming, and what is wrong named by place."""

import bz2
import functools
import gzip
import http.server
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.data import load_shards
from stability.data.manifest import Counts, read_manifest
from stability.data.preparation.documents import Reader
from stability.data.preparation.hub import REVISION
from stability.data.preparation.packing import Packed, is_validation
from stability.data.preparation.progress import Progress
from stability.data.preparation.settings import PreparationSettings
from stability.data.preparation.sources import Source, describe, find_source
from stability.errors import InputError
from stability.prepare import main
from tests.conftest import Outcome
from tests.prepared import (
    expected_parts,
    from_bytes,
    json_lines,
    read_back,
    some_documents,
    tokens_of,
    tree,
    write_card,
    write_hub_folder,
    write_parquet,
    zstd,
)

ROOT = Path(__file__).parent.parent
DOCUMENTS = some_documents(60)
FRACTION = 0.2
Prepare = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("STABILITY_TRACEBACK", raising=False)
        yield


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Run `python -m stability.prepare ARGUMENTS` in this process; by default bytes, one worker, into `out`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        given = {word.split("=", 1)[0] for word in arguments}
        defaults = {
            "tokenizer": "bytes",
            "workers": "1",
            "output_dir": "out",
            "validation_fraction": str(FRACTION),
        }
        more = [] if "check" in given else [f"{k}={v}" for k, v in defaults.items() if k not in given]
        capsys.readouterr()
        code = main([*arguments, *more])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


# --- every source gives the same documents ----------------------------------------------------------------------------


def write(path: str, content: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def text_files() -> None:
    for i, text in enumerate(DOCUMENTS):
        write(f"books/{i // 10}/{i % 10}.txt", text.encode())


def several() -> None:
    write("a.jsonl", json_lines(DOCUMENTS[:20]))
    write_parquet(Path("b.parquet"), DOCUMENTS[20:45])
    write("c.txt.gz", gzip.compress("\n".join(DOCUMENTS[45:]).encode()))


lines = "\n".join(DOCUMENTS).encode()
paragraphs = "\n\n".join(DOCUMENTS)
SOURCES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "text files": (text_files, ["source=books/**/*.txt"]),
    "lines": (lambda: write("a.txt", lines), ["source=a.txt", "documents=line"]),
    "lines, small units": (lambda: write("a.txt", lines), ["source=a.txt", "documents=line", "unit_bytes=500"]),
    "lines of another system": (
        lambda: write("a.md", lines.replace(b"\n", b"\r\n")),
        ["source=a.md", "documents=line"],
    ),
    "paragraphs": (
        lambda: write("a.txt", ("\n \n" + paragraphs + "\n\n\n").encode()),
        ["source=a.txt", "documents=paragraph"],
    ),
    "another ending": (lambda: write("a.dat", lines), ["source=a.dat", "documents=line", "format=text"]),
    "jsonl": (lambda: write("a.jsonl", json_lines(DOCUMENTS)), ["source=a.jsonl"]),
    "jsonl, small units": (lambda: write("a.jsonl", json_lines(DOCUMENTS)), ["source=a.jsonl", "unit_bytes=1000"]),
    "jsonl without a last line end": (lambda: write("a.jsonl", json_lines(DOCUMENTS)[:-1]), ["source=a.jsonl"]),
    "json.gz": (lambda: write("a.json.gz", gzip.compress(json_lines(DOCUMENTS))), ["source=a.json.gz"]),
    "bz2": (lambda: write("a.jsonl.bz2", bz2.compress(json_lines(DOCUMENTS))), ["source=a.jsonl.bz2"]),
    "zst of two frames": (
        lambda: write("a.jsonl.zst", zstd(json_lines(DOCUMENTS[:30])) + zstd(json_lines(DOCUMENTS[30:]))),
        ["source=a.jsonl.zst"],
    ),
    "gz of two members": (
        lambda: write("a.jsonl.gz", b"".join(gzip.compress(json_lines(p)) for p in (DOCUMENTS[:9], DOCUMENTS[9:]))),
        ["source=a.jsonl.gz"],
    ),
    "parquet": (lambda: write_parquet(Path("a.parquet"), DOCUMENTS), ["source=a.parquet"]),
    "parquet, small units": (lambda: write_parquet(Path("a.parquet"), DOCUMENTS), ["source=a.parquet", "unit_bytes=1"]),
    "another field": (
        lambda: write_parquet(Path("a.parquet"), DOCUMENTS, field="body"),
        ["source=a.parquet", "text_field=body"],
    ),
    "several": (several, ["source=a.jsonl,b.parquet,c.txt.gz", "documents=line"]),
    "hub, Parquet": (lambda: write_hub_folder(Path("c4/en"), DOCUMENTS, ending="parquet"), ["source=hf:c4"]),
    "hub, as C4": (lambda: write_hub_folder(Path("c4/en"), DOCUMENTS), ["source=hf:c4"]),
    "hub, a configuration": (
        lambda: (
            write_hub_folder(Path("c4/en"), DOCUMENTS),
            write_hub_folder(Path("c4/de"), DOCUMENTS[::-1]),
            write_card(Path("c4"), ["de", "en"]),
        ),
        ["source=hf:c4", "config=en"],
    ),
    "hub, files named": (
        lambda: (write_hub_folder(Path("c4/en"), DOCUMENTS), write_hub_folder(Path("c4/de"), DOCUMENTS[::-1])),
        ["source=hf:c4", "data_files=en/*.json.gz"],
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_its_documents_in_order(prepare: Prepare, name: str) -> None:
    make, arguments = SOURCES[name]
    make()
    outcome = prepare(*arguments)
    assert outcome.code == 0, outcome.err
    assert read_back(Path("out"), from_bytes) == expected_parts(DOCUMENTS, FRACTION)
    counts = load_shards("out").manifest.counts
    assert (counts.documents, counts.documents_empty, counts.documents_bad) == (60, 0, 0)
    assert counts.documents_validation == len(expected_parts(DOCUMENTS, FRACTION)["validation"])
    assert counts.text_bytes == sum(len(text.encode()) for text in DOCUMENTS) == counts.tokens - 60
    assert f"{counts.tokens - counts.tokens_validation:,} tokens to train on" in outcome.out


@pytest.mark.parametrize("name", ["lines, small units", "jsonl, small units", "parquet, small units", "hub, as C4"])
def test_the_source_is_cut_in_units(prepare: Prepare, name: str) -> None:
    make, arguments = SOURCES[name]
    make()
    units = {
        "lines, small units": -(-len(lines) // 500),
        "jsonl, small units": -(-len(json_lines(DOCUMENTS)) // 1000),
        "parquet, small units": -(-len(DOCUMENTS) // 7),
        "hub, as C4": 3,
    }[name]
    outcome = prepare(*arguments, "dry_run=true")
    assert outcome.code == 0
    assert f"{units} units of work, 0 done" in outcome.out
    assert "nothing was written" in outcome.out
    assert not Path("out").exists()


@settings(max_examples=60)
@given(
    texts=st.lists(st.text("ab\n é", max_size=12), min_size=1, max_size=12),
    unit_bytes=st.integers(1, 60),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_a_file_cut_anywhere_has_the_same_lines(
    texts: list[str], unit_bytes: int, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(ending.join(texts).encode())

    def documents(size: int) -> list[tuple[str, str]]:
        told = PreparationSettings(
            output_dir="x", tokenizer="bytes", source=str(file), documents="line", unit_bytes=size
        )
        return [(d.text, d.where) for unit in find_source(told).units for d in Reader(told).documents(unit)]

    whole = documents(10**6)
    assert documents(unit_bytes) == whole
    content = file.read_bytes()
    for text, where in whole:  # and each stands where it is said to
        assert content[int(where.rsplit(" ", 1)[1]) :].startswith(text.encode())


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_files_are_read_from_afar(prepare: Prepare, server: str, ending: str) -> None:
    """In a process of its own: fsspec leaves its connections to the end of the process."""
    content = json_lines(DOCUMENTS)
    write(f"a.{ending}", gzip.compress(content) if ending.endswith("gz") else content)
    words = [f"source={server}/a.{ending}", "tokenizer=bytes", "output_dir=out", f"validation_fraction={FRACTION}"]
    done = command_line(*words, "unit_bytes=1000", "workers=1")
    assert done.returncode == 0, done.stderr
    assert read_back(Path("out"), from_bytes) == expected_parts(DOCUMENTS, FRACTION)
    name, size, _ = read_manifest(Path("out"), "out").plan["source"]["inputs"][0]
    assert (name, size) == (f"{server}/a.{ending}", Path(f"a.{ending}").stat().st_size)


def test_other_file_systems_are_read(prepare: Prepare) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/texts/b.jsonl", json_lines(DOCUMENTS[30:]))
    memory.pipe("/texts/a.jsonl", json_lines(DOCUMENTS[:30]))
    assert prepare("source=memory://texts/*.jsonl").code == 0
    assert read_back(Path("out"), from_bytes) == expected_parts(DOCUMENTS, FRACTION)
    memory.rm("/texts", recursive=True)


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stability.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


# --- every tokenizer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the special tokens of T5's: padding 0, end of sequence 1, unknown 2, no beginning."""
    path = tmp_path_factory.mktemp("spm") / "spiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(some_documents(300, seed=1)),
            model_writer=file,
            vocab_size=150,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=False,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return path


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer with a template that would put tokens around every text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "<s>": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]", "</s>", "<s>"], show_progress=False)
    made.train_from_iterator(DOCUMENTS, trainer)
    template = {"single": "<s> $A </s>", "special_tokens": [("<s>", 2), ("</s>", 1)]}
    made.post_processor = tokenizers.processors.TemplateProcessing(**template)
    made.enable_truncation(3)
    path = tmp_path_factory.mktemp("json") / "words.json"
    made.save(str(path))
    return path


def test_a_sentencepiece_model_tokenizes(prepare: Prepare, sentencepiece_model: Path) -> None:
    write("a.txt", lines)
    outcome = prepare("source=a.txt", "documents=line", f"tokenizer={sentencepiece_model}")
    assert outcome.code == 0, outcome.err
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    assert read_back(Path("out"), model.decode) == expected_parts(DOCUMENTS, FRACTION)
    record = load_shards("out").manifest.tokenizer
    assert (record.kind, record.end_of_sequence, record.vocabulary_size) == ("sentencepiece", 1, model.vocab_size())
    assert Path("out/tokenizer.model").read_bytes() == sentencepiece_model.read_bytes()


@pytest.mark.parametrize(("size", "dtype"), [(32101, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")])
def test_the_vocabulary_may_be_declared_larger(
    prepare: Prepare, sentencepiece_model: Path, size: int, dtype: str
) -> None:
    write("a.txt", lines)
    words = ("source=a.txt", "documents=line", f"tokenizer={sentencepiece_model}")
    assert prepare(*words, f"vocabulary_size={size}").code == 0
    corpus = load_shards("out")
    assert corpus.vocabulary_size == size
    assert corpus.manifest.dtype == dtype
    assert prepare(*words, "output_dir=other").code == 0
    assert load_shards("other").hash != corpus.hash
    for part in ("train", "validation"):
        large, small = (tokens_of(Path(f), part, load_shards(f).manifest) for f in ("out", "other"))
        assert np.array_equal(large, small)


def test_a_tokenizers_json_tokenizes_and_adds_nothing(prepare: Prepare, tokenizer_json: Path) -> None:
    write("a.txt", lines)
    assert prepare("source=a.txt", "documents=line", f"tokenizer={tokenizer_json}").code == 0
    words = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    decoded = read_back(Path("out"), lambda ids: " ".join(filter(None, map(words.id_to_token, ids[:-1]))))
    assert decoded == expected_parts(DOCUMENTS, FRACTION)


def test_a_bpe_is_trained_on_the_source(prepare: Prepare) -> None:
    write("a.txt", lines)
    words = ("source=a.txt", "documents=line", "tokenizer=bpe:300")
    outcome = prepare(*words)
    assert outcome.code == 0, outcome.err
    made = tokenizers.Tokenizer.from_file("out/tokenizer.json")
    assert read_back(Path("out"), made.decode) == expected_parts(DOCUMENTS, FRACTION)
    manifest = load_shards("out").manifest
    assert manifest.vocabulary_size == made.get_vocab_size() == 300
    assert manifest.tokenizer.end_of_sequence == made.token_to_id("<|endoftext|>")
    assert manifest.counts.tokens < manifest.counts.text_bytes / 1.2
    # The same command elsewhere: the same tokenizer, the same corpus.
    assert prepare(*words, "output_dir=again").code == 0
    assert tree(Path("again")) == tree(Path("out"))


def test_a_bpe_never_sees_what_is_held_out(prepare: Prepare) -> None:
    held, kept = expected_parts(DOCUMENTS, FRACTION)["validation"], expected_parts(DOCUMENTS, FRACTION)["train"]
    write("a.txt", "\n".join([*kept, *held]).encode())
    secret = next(f"q{i}" * 9 for i in range(100) if is_validation((f"q{i}" * 9).encode(), FRACTION))
    write("b.txt", "\n".join([*kept, *held, *[secret] * 50]).encode())
    for name in "ab":
        assert prepare(f"source={name}.txt", "documents=line", "tokenizer=bpe:400", f"output_dir={name}").code == 0
    assert Path("a/tokenizer.json").read_bytes() == Path("b/tokenizer.json").read_bytes()


def test_names_of_special_tokens_in_a_text_are_text(prepare: Prepare, sentencepiece_model: Path) -> None:
    texts = [*DOCUMENTS, "the </s> earth <|endoftext|> was void <pad>"]
    write("a.txt", "\n".join(texts).encode())
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for name, tokenizer in (("bpe", "bpe:400"), ("spm", str(sentencepiece_model))):
        words = ("source=a.txt", "documents=line", f"tokenizer={tokenizer}", f"output_dir={name}")
        assert prepare(*words).code == 0
    made = tokenizers.Tokenizer.from_file("bpe/tokenizer.json")
    assert read_back(Path("bpe"), made.decode) == expected_parts(texts, FRACTION)
    assert sum(map(len, read_back(Path("spm"), model.decode).values())) == len(texts)


# --- the split --------------------------------------------------------------------------------------------------------


def test_duplicates_fall_on_the_same_side_wherever_they_stand(prepare: Prepare) -> None:
    write("a.txt", "\n".join([*DOCUMENTS, *DOCUMENTS[::-1], *DOCUMENTS[:7]]).encode())
    assert prepare("source=a.txt", "documents=line", "unit_bytes=700").code == 0
    parts = read_back(Path("out"), from_bytes)
    assert not set(parts["train"]) & set(parts["validation"])
    assert set(parts["train"]) == set(expected_parts(DOCUMENTS, FRACTION)["train"])


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3])
def test_the_share_held_out_is_the_one_asked_for_and_grows_with_it(fraction: float) -> None:
    contents = [f"document {i}".encode() for i in range(20_000)]
    held = {content for content in contents if is_validation(content, fraction)}
    deviation = np.sqrt(len(contents) * fraction * (1 - fraction))
    assert abs(len(held) - len(contents) * fraction) < 5 * deviation
    assert held <= {content for content in contents if is_validation(content, 1.5 * fraction)}


# --- the same result, however it came about ---------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_number_of_workers(prepare: Prepare) -> None:
    write("a.txt", lines)
    words = ("source=a.txt", "documents=line", "unit_bytes=900", "tokenizer=bpe:300")
    assert prepare(*words, "output_dir=one").code == 0
    outcome = prepare(*words, "output_dir=two", "workers=2")
    assert outcome.code == 0
    assert "2 workers" in outcome.out
    assert tree(Path("two")) == tree(Path("one"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell runs in the background ignores Ctrl-C, and so does what that starts; not what is started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_the_result_does_not_depend_on_being_killed(prepare: Prepare, how: signal.Signals, workers: int) -> None:
    texts = some_documents(900)
    write("a.txt", "\n".join(texts).encode())
    words = ["source=a.txt", "documents=line", "unit_bytes=600", "tokenizer=bpe:300", f"validation_fraction={FRACTION}"]
    assert prepare(*words, "output_dir=undisturbed").code == 0
    command = [sys.executable, "-m", "stability.prepare", *words, "output_dir=killed", f"workers={workers}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = Path("killed/preparing")
    wait_until(lambda: len(list(done.glob("[0-9]*.json"))) >= 5 or running.poll() is not None)
    family = children(running.pid)
    running.send_signal(how)
    _, errors = running.communicate()
    assert running.returncode == (-9 if how == signal.SIGKILL else 130), errors
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))  # no orphans
    before = len(list(done.glob("[0-9]*.json")))
    assert 5 <= before < len(list(Path("undisturbed/train").iterdir()))
    with pytest.raises(InputError, match="is not finished"):
        load_shards("killed")
    # Another command may not go on with it ...
    other = prepare(*words, "output_dir=killed", "text_field=body")
    assert other.code == 2
    assert "text_field=body: killed was made with text_field=text" in other.err
    # ... the same may, with other workers, and does not do again what is done.
    outcome = prepare(*words, "output_dir=killed", f"workers={3 - workers}")
    assert outcome.code == 0, outcome.err
    assert f" units of work, {before} done; " in outcome.out
    assert tree(Path("killed")) == tree(Path("undisturbed"))
    if how == signal.SIGINT:
        assert "the same command again" in errors
        assert "Traceback" not in errors


def test_the_commit_decides_not_how_it_was_asked_for() -> None:
    told = {"output_dir": "x", "tokenizer": "bytes"}
    commit = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
    assert PreparationSettings(**told).identity() == PreparationSettings(**told, revision=commit).identity()
    found = REVISION.search(f"hf://datasets/allenai/c4@{commit}/en/c4-train.00000-of-01024.json.gz")
    assert found is not None
    assert found[1] == commit
    assert describe(Source((), (), commit, None))["revision"] == commit


def test_a_finished_folder_is_left_alone(prepare: Prepare) -> None:
    write("a.txt", lines)
    words = ["source=a.txt", "documents=line"]
    assert prepare(*words).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    outcome = prepare(*words, "workers=2")
    assert outcome.code == 0
    assert "nothing to do" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    for word, named in (
        ("validation_fraction=0.3", "validation_fraction=0.3: out was made with validation_fraction=0.2"),
        ("tokenizer=bpe:300", "tokenizer.kind=tokenizers: out was made with tokenizer.kind=bytes"),
        ("documents=paragraph", "documents=paragraph: out was made with documents=line"),
    ):
        refused = prepare(*[one for one in words if one.split("=")[0] != word.split("=")[0]], word)
        assert refused.code == 2
        assert named in refused.err
    write("a.txt", lines + b" more")
    refused = prepare(*words)
    assert refused.code == 2
    assert "inputs=[[" in refused.err
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_a_folder_that_another_process_prepares_is_refused(prepare: Prepare) -> None:
    import fcntl

    write("a.txt", lines)
    Path("out/preparing").mkdir(parents=True)
    with Path("out/preparing/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = prepare("source=a.txt", "documents=line")
        assert outcome.code == 2
        assert "another process is preparing it" in outcome.err
    assert prepare("source=a.txt", "documents=line").code == 0


# --- what is wrong ----------------------------------------------------------------------------------------------------

cut = json_lines(DOCUMENTS)
BAD_DATA: dict[str, tuple[str, bytes, str]] = {
    # file, its content, and what the message must name after the file
    "UTF-8 in a file": ("a.txt", b"one two \xff three", ", byte 8: is not valid UTF-8 (0xff as byte 8"),
    "UTF-8 in a line": ("lines.txt", b"one\ntwo\nth\xe9ree\n", ", byte 10: is not valid UTF-8 (0xe9 as byte 2"),
    "UTF-8 in JSON": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ", byte 24: is not valid UTF-8 (0xff)"),
    "UTF-8 in Parquet": ("utf8.parquet", b"", ", row 1: is not valid UTF-8 (0xff as byte 2 of its text)"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "a\\ud800"}\n', ", byte 0: is no Unicode text"),
    "a NUL byte": ("a.txt", b"one\0two", ", byte 0: holds the end-of-sequence token (0) inside"),
    "broken JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', ", byte 14: is no JSON ("),
    "JSON that is no object": ("a.jsonl", b'{"text": "a"}\n[1]\n', ", byte 14: is no JSON object"),
    "a number for a text": ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', ", byte 14: its field text is no text"),
}


def write_bad(name: str, content: bytes) -> str:
    if Path(name).name != "utf8.parquet":
        write(name, content)
    else:
        values = pyarrow.array([b"fine", b"\xc3\xbc\xff", b"fine"], pyarrow.binary())
        column = pyarrow.Array.from_buffers(pyarrow.string(), 3, values.buffers())
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), name)
    return name


@pytest.mark.parametrize("case", BAD_DATA)
def test_a_bad_document_is_named_by_file_and_place(prepare: Prepare, case: str) -> None:
    name, content, message = BAD_DATA[case]
    write_bad(name, content)
    words = [f"source={name}", *(["documents=line"] if name == "lines.txt" else [])]
    outcome = prepare(*words)
    assert outcome.code == 2
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert f"{name}{message}" in error
    assert "bad_documents=skip" in error
    assert not Path("out").exists()


@pytest.mark.parametrize("case", BAD_DATA)
def test_a_bad_document_may_be_left_out_and_counted(prepare: Prepare, case: str) -> None:
    name, content, _ = BAD_DATA[case]
    write("good.jsonl", json_lines([*DOCUMENTS, "", " \n"]) + b'{"text": null}\n\n')
    write_bad(name, content)
    words = [f"source=good.jsonl,{name}", *(["documents=line"] if name == "lines.txt" else [])]
    outcome = prepare(*words, "bad_documents=skip")
    assert outcome.code == 0, outcome.err
    counts = load_shards("out").manifest.counts
    assert counts.documents_bad == 1
    assert counts.documents_empty == 3
    assert "3 empty and 1 bad ones left out" in outcome.out
    parts = read_back(Path("out"), from_bytes)
    assert set(DOCUMENTS) <= set(parts["train"]) | set(parts["validation"])
    assert sum(map(len, parts.values())) == counts.documents


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(cut)[:-20]),
        ("a.jsonl.zst", zstd(cut)[:-20]),
        ("a.jsonl.gz", cut),
        ("a.parquet", b"PAR1 and then nothing"),
        ("cut.parquet", b""),
    ],
)
def test_a_file_cut_off_or_of_another_kind_is_named(prepare: Prepare, name: str, content: bytes) -> None:
    if content:
        write(name, content)
    else:
        write_parquet(Path(name), DOCUMENTS)
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[:4] + b"\xff" * 600 + whole[604:])
    outcome = prepare(f"source={name}", "bad_documents=skip")
    assert outcome.code == 2
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert name in error
    assert "cannot be read" in error
    assert not Path("out").exists()


def test_a_damaged_file_of_a_data_set_is_named(prepare: Prepare) -> None:
    write_hub_folder(Path("c4/en"), DOCUMENTS, ending="parquet")
    file = Path("c4/en/c4-train.00001-of-00003.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + b"\xff" * 600 + whole[604:])
    outcome = prepare("source=hf:c4")
    assert outcome.code == 2
    assert file.name in outcome.err
    assert "cannot be read" in outcome.err


def test_a_record_without_the_field_names_those_it_has(prepare: Prepare) -> None:
    write("a.jsonl", b'{"text": "a"}\n{"body": "a", "url": "x"}\n')
    outcome = prepare("source=a.jsonl", "bad_documents=skip")
    assert outcome.code == 2
    for part in ("text_field=text", "a.jsonl, byte 14", "body, url"):
        assert part in outcome.err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"one document", [], "validation_fraction=0.2: none of 1 document falls to the"),
        (b"", [], "holds no text: 1 documents are empty"),
        (b"\n\n \n", ["documents=line"], "holds no text: 3 documents are empty"),
    ],
)
def test_what_cannot_be_trained_on_leaves_nothing(
    prepare: Prepare, content: bytes, arguments: list[str], message: str
) -> None:
    write("a.txt", content)
    outcome = prepare("source=a.txt", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("out").exists()


def test_a_table_without_rows_is_no_source(prepare: Prepare) -> None:
    write_parquet(Path("a.parquet"), [])
    for tokenizer in ("bytes", "bpe:300"):
        outcome = prepare("source=a.parquet", f"tokenizer={tokenizer}")
        assert outcome.code == 2
        assert "holds no" in outcome.err
        assert not Path("out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_loses_nothing_that_is_done(prepare: Prepare, workers: int) -> None:
    write("a.txt", lines)
    words = ["source=a.txt", "documents=line", "unit_bytes=2000", f"workers={workers}"]
    Path("out/preparing").mkdir(parents=True)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from stability.prepare import main; sys.exit(main(sys.argv[1:]))"
    )
    more = ["tokenizer=bytes", "output_dir=out", f"validation_fraction={FRACTION}"]
    command = [sys.executable, "-c", limited, *words, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert prepare(*words).code == 0
    assert read_back(Path("out"), from_bytes) == expected_parts(DOCUMENTS, FRACTION)


def test_a_worker_says_what_is_wrong_as_the_first_process_would(prepare: Prepare) -> None:
    write("a.txt", lines + b"\n\xff\n" + lines)
    outcome = prepare("source=a.txt", "documents=line", "unit_bytes=2000", "workers=2")
    assert outcome.code == 2
    assert f"a.txt, byte {len(lines) + 1}: is not valid UTF-8" in outcome.err


def test_an_error_of_input_goes_from_process_to_process() -> None:
    error = InputError("key", Path("value"), "is bad", "Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.key, again.value, again.fix) == (str(error), "key", Path("value"), "Mend it.")


@pytest.mark.parametrize("name", ["pyarrow", "fsspec", "datasets", "tokenizers"])
def test_a_missing_library_is_asked_for(prepare: Prepare, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt", lines)
    monkeypatch.setitem(sys.modules, name, None)
    source = "source=hf:c4" if name == "datasets" else "source=a.txt"
    outcome = prepare(source, "tokenizer=bpe:300")
    assert outcome.code == 2
    assert f"package={name}: " in outcome.err
    assert "pip install 'stability[data]'" in outcome.err
    assert not Path("out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("out", "pieces"), [(io.StringIO(), 2), (Terminal(), 4)])
def test_progress_is_plain_lines_in_a_log_and_one_line_on_a_terminal(
    out: io.StringIO, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("stability.data.preparation.progress.time.perf_counter", lambda: now[0])
    progress = Progress(units=5, done=1, work=8.0, out=out, _began=100.0)
    packed = Packed({}, Counts(tokens=1_000_000, text_bytes=4_000_000), 1.0, 0.5)
    for _ in range(4):
        now[0] += 10.0
        progress.add(packed, 2.0)
    text = out.getvalue()
    assert text.count("M tokens") == pieces
    assert "[2/5] 1.0 M tokens, 0.4 MB of text a second, 30 s left" in text
    assert "[5/5] 4.0 M tokens, 0.4 MB of text a second" in text
    assert ("\r" in text) == out.isatty()
    assert text.endswith("\n")


def test_check_reads_a_finished_folder(prepare: Prepare) -> None:
    write("a.txt", lines)
    assert prepare("source=a.txt", "documents=line").code == 0
    outcome = prepare("check=out")
    assert outcome.code == 0
    assert load_shards("out").hash[:16] in outcome.out
    file = Path("out/train/00000.bin")
    file.write_bytes(file.read_bytes()[:-1])
    outcome = prepare("check=out")
    assert outcome.code == 2
    assert "train/00000.bin: ends at byte" in outcome.err


def test_the_licence_of_a_data_set_is_that_of_its_page(prepare: Prepare) -> None:
    write_hub_folder(Path("c4/en"), DOCUMENTS)
    write_card(Path("c4"), ["en"])
    outcome = prepare("source=hf:c4", "config=en")
    assert outcome.code == 0, outcome.err
    manifest = read_manifest(Path("out"), "out")
    assert manifest.licence == "odc-by"
    sizes = [file.stat().st_size for file in sorted(Path("c4/en").iterdir())]
    assert [size for _, size, _ in manifest.plan["source"]["inputs"]] == sizes


def test_the_manifest_says_where_it_all_came_from(prepare: Prepare) -> None:
    write("a.txt", lines)
    assert prepare("source=a.txt", "documents=line", "licence=mine").code == 0
    manifest = read_manifest(Path("out"), "out")
    assert manifest.licence == "mine"
    assert manifest.plan["settings"]["source"] == "a.txt"
    assert manifest.plan["source"]["inputs"][0][:2] == [str(Path("a.txt").absolute()), len(lines)]
    assert manifest.versions["tokenizers"] == tokenizers.__version__
