"""Bad commands of `stability.prepare` and `stability.replicate`."""

from pathlib import Path

from tests.bad_input.case import Case, Files, cases, files_cases
from tests.prepared import some_documents, write_hub_folder, write_parquet
from tests.test_prepare import BAD_DATA, write_bad

DOCUMENTS = some_documents(60)

PREPARE = [
    # arguments beside tokenizer=bytes and output_dir=out, and what the message must name: key, value, fix
    ("source=a.txt tokenizer=", ["tokenizer=", "bpe:8192"]),
    ("source=a.txt output_dir=", ["output_dir=", "data/NAME"]),
    ("source=", ["source="]),
    ("a.txt", ["argument=a.txt", "source=a.txt"]),
    ("source=a.txt tokeniser=bytes", ["tokeniser=bytes", "tokenizer"]),
    ("source=a.txt foo=1", ["foo=1", "there is no such key", "validation_fraction"]),
    ("source=nowhere.txt", ["source=nowhere.txt", "no such file"]),
    ("source=*.rst", ["source=*.rst", "no file matches"]),
    ("source=books", ["source=books", "is a folder", "books/**/*.txt"]),
    ("source=a.xyz", ["source=", "a.xyz", "format="]),
    ("source=a.txt,nowhere.txt", ["source=nowhere.txt"]),
    ("source=a.txt,a.txt", ["source=a.txt,a.txt", "twice"]),
    ("source=nosuch://a.txt", ["source=nosuch://a.txt", "nosuch"]),
    ("source=a.txt format=csv", ["format=csv", "'text', 'jsonl' or 'parquet'"]),
    ("source=a.txt documents=page", ["documents=page", "paragraph"]),
    ("source=a.txt split=validation", ["split=validation", "hf:NAME"]),
    ("source=a.txt revision=main", ["revision=main", "hf:NAME"]),
    ("source=hf:c4 format=jsonl", ["format=jsonl", "Leave it out"]),
    ("source=hf:", ["source=hf:", "names no data set"]),
    ("source=hf:c4 split=nope", ["source=hf:", "c4: ", "nope", "split="]),
    ("source=hf:c4 config=nope", ["source=hf:", "c4: ", "nope", "config="]),
    ("source=hf:c4 text_field=body", ["text_field=body", "url, text"]),
    ("source=hf:c4 data_files=nope/*.gz", ["source=hf:", "data files", "data_files="]),
    ("source=hf:nobody/nothing", ["source=hf:nobody/nothing", "network"]),
    ("", ["source=hf:allenai/c4", "network"]),
    ("source=a.parquet text_field=body", ["text_field=body", "url, text"]),
    ("source=a.parquet text_field=", ["text_field="]),
    ("source=a.txt tokenizer=gpt2", ["tokenizer=gpt2", "bpe:SIZE"]),
    ("source=a.txt tokenizer=bpe:12", ["tokenizer=bpe:12", "257"]),
    ("source=a.txt tokenizer=bpe:many", ["tokenizer=bpe:many", "257"]),
    ("source=a.txt tokenizer=bpe:", ["tokenizer=bpe:", "257"]),
    ("source=a.txt tokenizer=no.json", ["tokenizer=no.json", "cannot be read"]),
    ("source=a.txt tokenizer=bad.json", ["tokenizer=bad.json", "no tokenizer's JSON"]),
    ("source=a.txt tokenizer=bad.model", ["tokenizer=bad.model", "no SentencePiece model"]),
    ("source=a.txt tokenizer=empty.model", ["tokenizer=empty.model", "no SentencePiece model"]),
    ("source=a.txt tokenizer=empty.json", ["tokenizer=empty.json", "no tokenizer's JSON"]),
    ("source=a.txt end_of_sequence=</s>", ["end_of_sequence=</s>", "no such token"]),
    ("source=a.txt end_of_sequence=256", ["end_of_sequence=256", "below 256"]),
    ("source=a.txt end_of_sequence=-1", ["end_of_sequence=-1"]),
    ("source=a.txt vocabulary_size=255", ["vocabulary_size=255", "256"]),
    ("source=a.txt vocabulary_size=3e9", ["vocabulary_size=3000000000", "31 bits"]),
    ("source=a.txt validation_fraction=nan", ["validation_fraction=nan"]),
    ("source=a.txt workers=0", ["workers=0", "greater than or equal to 1"]),
    ("source=a.txt output_dir=a.txt", ["output_dir=a.txt", "is not a folder"]),
    ("source=a.txt output_dir=a.txt/x", ["output_dir=a.txt/x"]),
    ("source=a.txt output_dir=/proc/x", ["output_dir=/proc/x", "cannot be written"]),
    ("source=a.txt output_dir=books", ["output_dir=books", "not empty"]),
    ("source=empty.txt", ["source=empty.txt", "holds no text"]),
    ("source=empty.jsonl", ["source=empty.jsonl", "holds no text"]),
    ("source=a.parquet,a.xyz", ["source=", "a.xyz", "format="]),
    ("source=no.parquet", ["source=", "no.parquet", "cannot be read"]),
    ("source=no.gz", ["source=", "no.gz"]),
    ("--workers=2", ["argument=--workers=2", "--help"]),
]
CHECK = [
    ("check=nowhere", ["check=nowhere", "is not a folder"]),
    ("check=books", ["check=books", "holds no manifest.json"]),
    ("check=a.txt", ["check=a.txt", "is not a folder"]),
    ("check=", ["check="]),
    ("check=books workers=2", ["workers=2", "alone"]),
    ("", ["tokenizer=", "is missing"]),
]


def hub(path: Path) -> None:
    """A data set in the hub's layout."""
    write_hub_folder(path / "en", DOCUMENTS, files=1, ending="parquet")


AROUND: Files = {
    **dict.fromkeys(("a.txt", "a.xyz", "bad.json", "bad.model", "no.parquet", "no.gz", "books/thesis.tex"), "precious"),
    **dict.fromkeys(("empty.txt", "empty.jsonl", "empty.model", "empty.json"), ""),
    "a.parquet": lambda path: write_parquet(path, DOCUMENTS),
    "c4": hub,
}
USUAL = {"tokenizer": "bytes", "output_dir": "out", "workers": "1", "validation_fraction": "0.2"}


def completed(case: Case) -> Case:
    """With the words that a right command has."""
    given = {word.split("=", 1)[0] for word in case.words}
    more = tuple(f"{key}={value}" for key, value in USUAL.items() if key not in given)
    return Case(case.program, (*case.words, *more), case.named, case.files, case.about, case.locked, case.in_suite)


def data_cases() -> list[Case]:
    """The bad documents of `tests.test_prepare`, which has them in the suite."""
    found = []
    for about, (name, content, message) in BAD_DATA.items():
        words = (f"source={name}", *(("documents=line",) if name == "lines.txt" else ()))
        files: Files = {name: lambda path, content=content: write_bad(str(path), content)}  # type: ignore[misc]
        named = (f"{name}{message}", "bad_documents=skip")
        found.append(completed(Case("prepare", words, named, files, about, in_suite=False)))
    return found


REPLICATE = [
    ("ladder=none_such", ["ladder=none_such", "micro"]),
    ("ladder=", ["ladder="]),
    ("ladder=../micro", ["ladder=../micro", "micro"]),
    ("sweep=qk_layernorm", ["sweep=qk_layernorm", "sweeps"]),
    ("sweeps=qk_layernorm,ours", ["sweeps=ours", "qk_layernorm"]),
    ("sweeps=quickstart", ["sweeps=quickstart", "qk_layernorm"]),
    ("seed=", ["seed="]),
    ("seed=0,-1", ["seed.1=-1", "greater than or equal to 0"]),
    ("seed=0,one", ["seed.1=one", "integer"]),
    ("seed=0,4294967296", ["seed.1=4294967296", "4294967295"]),
    ("output=card.html", ["output=card.html", ".md"]),
    ("output=", ["output=", ".md"]),
    ("output=a_file/card.md", ["output=a_file", "not a folder"]),
    ("output=strange.md", ["strange.json", "schema_version"]),
    ("results=a_file", ["results=a_file", "not a folder"]),
    ("results=a_file/x", ["results=a_file/x", "not a folder"]),
    ("results=", ["results="]),
    ("tracking=mlflow", ["tracking=mlflow", "files, wandb"]),
    ("progress=loud", ["progress=loud", "'quiet'"]),
    ("train=perhaps", ["train=perhaps", "boolean"]),
    ("micro", ["argument=micro", "ladder=micro"]),
    ("--dry-run", ["argument=--dry-run", "--help"]),
]
BESIDE: Files = {"a_file": "", "strange.json": '{"sweep": "x"}'}


def preparation_cases() -> list[Case]:
    """All of them."""
    named = ["own.yaml", "YAML"]
    files: Files = {"sweeps/sweep/own.yaml": "sweep: ["}
    return [
        *(completed(case) for case in cases("prepare", PREPARE, AROUND)),
        *cases("prepare", CHECK, AROUND),
        *data_cases(),
        *cases("replicate", REPLICATE, BESIDE),
        *files_cases("replicate", "dry_run=true", {"a sweep of one's own is no YAML": (files, named)}),
        completed(Case("prepare", ("source=a.txt",), ("source=", "a.txt", "cannot be read"), {"a.txt": "precious"},
                       "unreadable", {"a.txt": 0o000})),
        completed(Case("prepare", ("source=a.txt", "output_dir=locked/x"), ("output_dir=locked/x", "cannot be written"),
                       {"a.txt": "precious", "locked": None}, "into a locked folder", {"locked": 0o555})),
    ]  # fmt: skip
