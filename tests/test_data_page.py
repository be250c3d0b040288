"""docs/data.md, followed: its commands run as they are written, on a small world of the files that they name."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from stability.data.manifest import read_manifest
from stability.prepare import EPILOG
from stability.prepare import main as prepare
from tests.conftest import TINY, Command
from tests.prepared import some_documents, write_card, write_hub_folder

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The lines that run a module of ours, as a shell splits them."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m ")]
    return [shlex.split(line)[2:] for line in lines]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Books, a data set in C4's layout, and a SentencePiece model that has T5's special tokens."""
    import sentencepiece

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = some_documents(1500)
    for i in range(3):
        (tmp_path / "books" / str(i)).mkdir(parents=True)
        (tmp_path / "books" / str(i) / "a.txt").write_text("\n\n".join(texts[i::3]))
    write_hub_folder(Path("allenai/c4/en"), texts, files=2)
    for i in range(2):  # numbered as if there were 1,024 of them
        Path(f"allenai/c4/en/c4-train.{i:05d}-of-00002.json.gz").rename(
            f"allenai/c4/en/c4-train.{i:05d}-of-01024.json.gz"
        )
    write_card(Path("allenai/c4"), ["en"])
    with Path("t5.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            vocab_size=200,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return tmp_path


def on_a_small_scale(words: list[str]) -> list[str]:
    """A command with what cannot be had here replaced: the network's model, and vocabularies too large for the text."""
    small = {
        "tokenizer=https://huggingface.co/google-t5/t5-base/resolve/main/spiece.model": "tokenizer=t5.model",
        "tokenizer=bpe:4096": "tokenizer=bpe:300",
        "validation_fraction=0.001": "validation_fraction=0.1",
    }
    return [small.get(word, word) for word in words]


def test_the_page_can_be_followed(world: Path, command: Command) -> None:
    ran: list[str] = []
    for module, *words in commands(PAGE):
        arguments = on_a_small_scale(words)
        assert module in ("stability.prepare", "stability.run")
        if module == "stability.prepare":
            assert prepare([*arguments, "workers=1"] if "check=data/c4" not in arguments else arguments) == 0
            if "dry_run=true" in arguments:  # and then as the page says, without it
                assert not Path("data/c4").exists()
                assert prepare([*[one for one in arguments if one != "dry_run=true"], "workers=1"]) == 0
        else:
            one_scale = ["scale=w256_d3"] if "ladder=paper" in arguments else []
            outcome = command(*arguments, *one_scale, *([] if "dry_run=true" in arguments else TINY))
            assert outcome.code == 0, outcome.err
        ran.append(module)
    assert ran == ["stability.prepare", "stability.run", "stability.run"] + ["stability.prepare"] * 2 + [
        "stability.run"
    ]
    c4 = read_manifest(Path("data/c4"), "folder")
    assert (c4.vocabulary_size, c4.dtype, c4.licence) == (32101, "uint16", "odc-by")
    assert c4.tokenizer.end_of_sequence == 1
    # The runs are recorded as runs on that text.
    books = read_manifest(Path("data/books"), "folder")
    (config,) = [json.loads(file.read_text())["config"] for file in Path("results").rglob("config.json")]
    assert config["data"] == {
        "name": "shards",
        "corpus": books.corpus,
        "vocabulary_size": 300,
        "seed": 0,
    }


def test_the_page_names_what_there_is(world: Path) -> None:
    arguments = on_a_small_scale(next(words for _, *words in commands(PAGE) if "output_dir=data/c4" in words))
    assert prepare([*[one for one in arguments if one != "dry_run=true"], "workers=1"]) == 0
    content = json.loads(Path("data/c4/manifest.json").read_text())
    for key in content.keys() - {"schema_version"}:
        assert f"`{key}`" in PAGE
    for file in Path("data/c4").rglob("*.*"):
        if file.name.startswith(("00000", "manifest", "tokenizer")):
            assert str(file) in PAGE


def test_the_help_names_every_key_and_its_examples_are_commands() -> None:
    from dataclasses import fields

    from stability.data.preparation.settings import PreparationSettings

    for field in fields(PreparationSettings):
        assert f"{field.name}=" in EPILOG
    assert [module for module, *_ in commands(EPILOG)] == ["stability.prepare"] * 2 + ["stability.run"]
    assert "stability.prepare" in sys.modules
