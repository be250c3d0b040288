"""Files, names and texts from strangers: nothing in them is executed, obeyed, or leads out of where results belong."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import TINY, Command
from hypothesis import given
from hypothesis import strategies as st

import stability
from stability.analysis import analyze, read
from stability.analysis.definitions import read_definitions
from stability.analyze import main as analyze_main
from stability.config_guard import refuse_code
from stability.errors import InputError
from stability.prepare import main as prepare_main
from stability.replication.page import page
from stability.status import main as status_main
from stability.tracking.files import read_json
from stability.tracking.record import RunFolder, run_folders
from stability.untrusted.names import folder_name, refuse_links_out, refuse_way_out
from stability.untrusted.printable import printable
from stability.untrusted.secrets import HIDDEN, is_secret_name, redacted, without_secrets
from stability.untrusted.yaml_text import read_yaml

PACKAGE = Path(stability.__file__).parent
ROOT = PACKAGE.parent
MARKER = "executed"
"""A file in the working directory that hostile input would make."""


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARKER).exists()


def told(
    main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """An entry point's exit code and what it said."""
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


# --- nothing loads objects ------------------------------------------------------------------------------------------

LOADERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
SERVERS = {"socket", "socketserver", "http.server", "xmlrpc.server", "wsgiref", "asyncio"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load"} | {
    f"yaml.{name}" for name in ("unsafe_load", "load_all", "full_load_all", "unsafe_load_all")
}
HYDRA_CALLS = re.compile(r"\b(?:instantiate|get_class|get_method|get_object)\(")
IMPORTS_BY_NAME = {"tracking/trackers.py", "data/preparation/libraries.py"}
"""A tracker that the command line names, and libraries that the code names."""


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression; what is no name is left out."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_loads_objects_runs_text_or_serves(path: Path) -> None:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
    assert not HYDRA_CALLS.search(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = {node.module or ""} if isinstance(node, ast.ImportFrom) else {one.name for one in node.names}
            assert not imported & (LOADERS | SERVERS), imported
        if isinstance(node, ast.Call):
            called, given = dotted(node.func), {one.arg for one in node.keywords}
            assert called not in CALLS, called
            assert "allow_pickle" not in given
            assert not (called.startswith("subprocess.") and "shell" in given)
            assert not (called.endswith("import_module") and name not in IMPORTS_BY_NAME), called
            assert called not in ("np.load", "numpy.load"), "a token file is bytes here"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_a_server_of_ours_listens_on_the_loopback_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and dotted(node.func).endswith(("HTTPServer", "TCPServer", ".bind")):
            (host, *_) = node.args[0].elts if isinstance(node.args[0], ast.Tuple) else (node.args[0],)
            assert isinstance(host, ast.Constant)
            assert host.value in ("127.0.0.1", "localhost")


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (MARKER,)


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload()))
    (tmp_path / MARKER).rmdir()


def pickled(kind: str) -> Path:
    """A file of a kind that holds a pickled object."""
    path = Path(f"evil.{kind}")
    objects = np.array([Payload(), 1], dtype=object)
    if kind == "npy":
        np.save(path, objects, allow_pickle=True)
    elif kind == "npz":
        np.savez(path, n_params=objects, learning_rate=objects, loss=objects)
    elif kind == "parquet":
        columns = {name: [pickle.dumps(Payload())] for name in ("n_params", "learning_rate", "loss")}
        pl.DataFrame(columns).write_parquet(path)
    else:
        path.write_bytes(pickle.dumps(Payload()))
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "csv", "pkl"])
def test_pickled_objects_are_no_table_and_no_text(
    kind: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pickled(kind)
    code, _, err = told(analyze_main, [f"source={path}"], capsys)
    assert (code, err.startswith("error: ")) == (2, True), err
    assert not Path("analysis").exists()
    outcome = command(*TINY, "data=text", f"data.path={path}")
    assert outcome.code == 2, outcome.err
    Path("shards").mkdir()
    Path("shards/manifest.json").write_bytes(path.read_bytes())
    outcome = command(*TINY, "data=shards", "data.path=shards")
    assert outcome.code == 2, outcome.err


def test_pickled_objects_in_records_and_checkpoints_are_not_loaded(command: Command) -> None:
    words = [*TINY, "training.checkpoint_every=10", "output_dir=out"]
    assert command(*words).code == 0
    (run,) = run_folders(Path("out"))
    (run.path / "summary.json").unlink()  # it never ended ...
    step = run.checkpoints / "10"  # ... and left a checkpoint that somebody has made
    for name in ("_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt", "default/checkpoint"):
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(pickle.dumps(Payload()))
    outcome = command(*words)
    assert outcome.code in (0, 1, 2)
    assert "Traceback" not in outcome.err
    (run.path / "summary.json").write_bytes(pickle.dumps(Payload()))
    outcome = command(*words)
    assert outcome.code == 0, "put aside unread, and made again"
    assert "Damaged" in outcome.out


# --- configs are values ---------------------------------------------------------------------------------------------

MAKES = f"_target_: os.mkdir\n      path: {MARKER}"
LAUGHS = "\n".join(
    ["  a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
)
HOSTILE_SWEEPS = {
    "a target": (f"# @package _global_\nloss:\n  z_loss:\n      {MAKES}\n", "loss.z_loss._target_=os.mkdir"),
    "a target in free fields": (
        f"# @package _global_\nsweep:\n  claims:\n    a:\n      {MAKES}\n",
        "names code to call, and configs are values here",
    ),
    "a callback": (
        f"# @package _global_\nhydra:\n  callbacks:\n    evil:\n      {MAKES}\n",
        "hydra.callbacks.evil._target_=os.mkdir",
    ),
    "a callback of a package": (f"# @package hydra.callbacks\nevil:\n      {MAKES}\n", "_target_=os.mkdir"),
    "a callback by interpolation": (
        f"# @package _global_\nsweep:\n  claims:\n    a:\n      {MAKES}\n"
        "hydra:\n  callbacks:\n    b: ${sweep.claims.a}\n",
        "_target_=os.mkdir",
    ),
    "a sweeper": (f"# @package _global_\nhydra:\n  sweeper:\n      {MAKES}\n", "hydra.sweeper._target_=os.mkdir"),
    "a launcher": (
        "# @package _global_\nhydra:\n  launcher:\n    _target_: os.getcwd\n",
        "hydra.launcher._target_=os.getcwd",
    ),
    "a log handler": (
        "# @package _global_\nhydra:\n  job_logging:\n    root: {level: INFO, handlers: [a]}\n    handlers:\n"
        f"      a: {{'()': os.mkdir, path: {MARKER}}}\n",
        "names code to call",
    ),
    "a log file": (
        "# @package _global_\nhydra:\n  job_logging:\n    root: {level: INFO, handlers: [a]}\n    handlers:\n"
        f"      a: {{class: logging.FileHandler, filename: {MARKER}}}\n",
        "hydra.job_logging",
    ),
    "an object of Python": (f"!!python/object/apply:os.mkdir [{MARKER}]\n", "could not determine a constructor"),
    "an inner object of Python": (
        f"# @package _global_\nsweep:\n  question: !!python/object/apply:os.mkdir [{MARKER}]\n",
        "could not determine a constructor",
    ),
    "the environment": (
        "# @package _global_\nsweep:\n  question: ${oc.env:HF_TOKEN}\n",
        "reads the environment, whose values would be written into records",
    ),
    "the environment, decoded": (
        "# @package _global_\nseed: ${oc.decode:${oc.env:HF_TOKEN}}\n",
        "reads the environment",
    ),
    "a resolver that is none": ("# @package _global_\nseed: ${evil:1}\n", "Unsupported interpolation type evil"),
    "an expression": (
        "# @package _global_\nseed: ${oc.decode:\"__import__('os').mkdir('" + MARKER + "')\"}\n",
        "GrammarParseError",
    ),
    "somebody's tracker": (
        "# @package _global_\ntracking:\n  name: evil:Tracker\n",
        "tracking.name=evil:Tracker: is a class to import, and a config file asks for it",
    ),
    "somebody's machines": (
        "# @package _global_\nlauncher: slurm\n",
        "launcher=slurm: would submit jobs, and a config file asks for it",
    ),
    "a billion laughs": (f"# @package _global_\nsweep:\n{LAUGHS}\n", "once its aliases (*name) are written out"),
    "an alias of itself": ("# @package _global_\nsweep: &a\n  claims: *a\n", "within itself"),
    "an abyss": ("# @package _global_\nsweep: " + "[" * 5000 + "]" * 5000 + "\n", "nests more than 50"),
    "a million million runs": (
        "# @package _global_\nsweep:\n  grids:\n    main:\n"
        + "".join(
            f"      {key}: [{', '.join(str((i + 1) / 100) for i in range(90))}]\n"
            for key in ("optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay", "loss.z_loss", "optimizer.eps")
        ),
        "makes 5,904,900,000 runs",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_SWEEPS)
def test_a_sweep_file_is_values_and_nothing_else(name: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = HOSTILE_SWEEPS[name]
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuv")
    Path("sweeps/sweep").mkdir(parents=True)
    Path("sweeps/sweep/evil.yaml").write_text(text)
    Path("evil.py").write_text(f"import os\nos.mkdir({MARKER!r})\n")
    monkeypatch.syspath_prepend(".")
    before = sorted(Path.cwd().rglob("*"))
    outcome = command(*TINY[:-3], "+sweep=evil", "report=false", "figures=[]")
    assert outcome.code == 2, outcome.out
    assert said in outcome.err
    assert "hf_abc" not in outcome.err + outcome.out
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize(
    ("where", "defaults"),
    [
        ("sweeps/hydra/callbacks/evil.yaml", "  - override /hydra/callbacks: evil"),
        ("sweeps/intervention/evil.yaml", "  - /intervention/evil@hydra.callbacks.evil"),
    ],
)
def test_a_file_that_another_one_puts_in_place_is_checked_too(where: str, defaults: str, command: Command) -> None:
    Path("sweeps/sweep").mkdir(parents=True)
    Path(where).parent.mkdir(parents=True)
    Path(where).write_text(f"evil:\n  _target_: os.mkdir\n  path: {MARKER}\n_target_: os.mkdir\npath: {MARKER}\n")
    Path("sweeps/sweep/evil.yaml").write_text(f"# @package _global_\ndefaults:\n{defaults}\n  - _self_\n")
    outcome = command(*TINY, "+sweep=evil", "dry_run=true")
    assert outcome.code == 2
    told_of = ("_target_=os.mkdir", "is not for a config to choose", "begin with # @package _global_")
    assert any(words in outcome.err for words in told_of)


def test_hydra_makes_no_folder_that_a_sweep_file_names(command: Command) -> None:
    Path("sweeps/sweep").mkdir(parents=True)
    text = f"# @package _global_\nhydra:\n  mode: RUN\n  run:\n    dir: {MARKER}\n"
    Path("sweeps/sweep/evil.yaml").write_text(text)
    command(*TINY, "+sweep=evil", "dry_run=true")
    assert not Path(MARKER).exists()
    assert [path.name for path in Path.cwd().iterdir()] == ["sweeps"]


def test_the_command_line_may_not_call_either(command: Command) -> None:
    for words in (
        ["+hydra.callbacks.a._target_=os.mkdir", f"+hydra.callbacks.a.path={MARKER}"],
        ["seed=${oc.env:HOME}"],
    ):
        assert command(*TINY, *words).code == 2


def test_a_tracker_of_ones_own_is_asked_for_by_the_command(command: Command, tmp_path: Path) -> None:
    for word in ("tracking.name=evil:Tracker", "tracking=evil"):
        Path("conf/tracking").mkdir(parents=True, exist_ok=True)
        Path("conf/tracking/evil.yaml").write_text("name: evil:Tracker\n")
        outcome = command(*TINY[:-3], word, "dry_run=true")
        assert "cannot be imported" in outcome.err, "it was looked for, and is not there"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_plain_values_pass(content: Any) -> None:
    text = yaml.safe_dump(content)
    assert read_yaml(text, "claims", "here") == yaml.safe_load(text)
    refuse_code({"sweep": content})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"claims: !!python/object/apply:os.mkdir [{MARKER}]", "could not determine a constructor"),
        (f"claims:\n{LAUGHS}", "once its aliases"),
        ("claims: &a {b: *a}", "within itself"),
        ("claims: " + "{a: " * 3000 + "}" * 3000, "nests more than 50"),
        ("claims: " + "[" * 100_000, "nests more than 50"),
        ("claims: [" + "a," * 60_000 + "]", "has more than 50,000 values"),
        ("x" * 6_000_000, "has more than 5,000,000 characters"),
        ("claims: {a: ${oc.env:HOME}}", "is not YAML"),
        ("claims: {a: '${oc.env:HOME}'}", "refers to the configuration of a sweep"),
        ("claims: 2026-13-45", "is not YAML"),
    ],
)
def test_a_file_of_claims_is_values_and_not_a_bomb(text: str, said: str) -> None:
    Path("claims.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_definitions("claims.yaml")
    assert said in str(caught.value)


# --- names and links ------------------------------------------------------------------------------------------------

NAMES = (
    "../outside",
    "../../outside",
    "/tmp/outside",
    "~/outside",
    "..",
    ".",
    "a/../../b",
    "a\\..\\b",
    "nul\0name",
    "x" * 5000,
    "\u202efdp.exe",
    "a\u2044b",
    "\uff0e\uff0e/\uff0e",
    "-rf",
    "con:aux?*",
    "new\nline",
    "<b>bold</b>",
    "",
)


@given(st.one_of(st.sampled_from(NAMES), st.text(max_size=300)))
def test_a_name_becomes_one_plain_folder(name: str) -> None:
    plain = folder_name(name)
    assert Path(plain).name == plain
    assert len(plain) <= 100
    assert plain not in (".", "..", "")
    assert plain.isprintable()
    assert not set(plain) & set('/\\<>:"|?*')
    assert plain[0] not in ".-~ "
    assert folder_name(plain) == plain


@pytest.mark.parametrize("name", ["quickstart", "sub/folder", "a+b", "l'été", "..b", "a..b"])
def test_honest_names_lead_nowhere_else(name: str) -> None:
    refuse_way_out("sweep", name)


@pytest.mark.parametrize("name", ["../a", "/a", "~/a", "a/../b", "..", "a\\b", "a\0b", "a\nb", "\u202eb", "a/.."])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="leads out"):
        refuse_way_out("sweep", name)


@pytest.mark.parametrize(
    "word", ["+sweep=../../outside", "+sweep=/outside", "+intervention=../../outside", "ladder=../../outside"]
)
def test_a_choice_of_files_stays_in_its_folder(word: str, command: Command) -> None:
    outside = Path.cwd() / "outside.yaml"
    outside.write_text("# @package _global_\nseed: 3\n")
    Path("deep/er/sweeps/sweep").mkdir(parents=True)
    os.chdir("deep/er")
    outcome = command(*TINY, word)
    assert outcome.code == 2
    assert not (Path.cwd() / "results").exists()
    assert not Path("../../results").exists()


TABLE = "n_params,learning_rate,loss\n10,0.1,2\n20,0.1,3\n"


@pytest.mark.parametrize("name", ["...csv", "....csv", "-rf.csv", "x" * 240 + ".csv", "a b\u202e.csv"])
def test_a_table_of_any_name_is_analysed_inside(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Path("in", name).write_text(TABLE)
    code, out, err = told(analyze_main, [f"source=in/{name}", "figures=", "report=false"], capsys)
    assert code == 0, err
    assert {path.parts[0] for path in Path().iterdir()} == {"in", "analysis"}
    assert [len(path.parts) for path in Path("analysis").glob("**/summary.json")] == [3]
    assert "\u202e" not in out


def test_columns_quantities_and_claims_name_no_files_outside() -> None:
    columns = [name for name in NAMES if name and "\0" not in name][:6]
    pl.DataFrame(
        {"n_params": [10, 20], "learning_rate": [0.1, 0.1], "loss": [2.0, 2.0], "arm": ["../../a", "/b"]}
        | {name: [1.0, 2.0] for name in columns}
    ).write_csv("t.csv")
    quantities = {name: {"metric": columns[0]} for name in ("../../q", "/q")}
    claims = {"../../c": {"kind": "sensitivity_below", "arm": "../../a", "than": "/b"}}
    forecasts = {"../../f": {"quantity": columns[0], "n_params": [1e3]}}
    before = set(Path().rglob("*"))
    analyze(
        "t.csv", "out", quantities=quantities, claims=claims, forecasts=forecasts, figure_formats=["svg"], report=False
    )
    made = set(Path().rglob("*")) - before
    assert {path.parts[0] for path in made} == {"out"}
    assert all(len(path.parts) <= 3 and path.suffix in ("", ".svg", ".json", ".html") for path in made)
    assert {path.name for path in Path().parent.glob("*")} == {"t.csv", "out"}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Somebody's folder beside the results, with a picture and a checkpoint of their own."""
    folder = tmp_path / "precious"
    (folder / "10").mkdir(parents=True)
    (folder / "mine.svg").write_text("mine")
    (folder / "10" / "mine").write_text("mine")
    return folder


@pytest.mark.parametrize(
    "link",
    [
        "analysis",
        "runs/RUN/checkpoints",
        *(pytest.param(link, marks=pytest.mark.slow) for link in ("runs", "wandb", "runs/RUN")),
    ],
)
def test_a_link_out_of_a_results_folder_is_not_written_through(
    link: str, command: Command, precious: Path, tmp_path: Path
) -> None:
    words = [*TINY, "training.checkpoint_every=10", "output_dir=out"]
    assert command(*words).code == 0
    (run,) = run_folders(Path("out"))
    (run.path / "summary.json").unlink()
    place = Path("out", link.replace("RUN", run.path.name))
    if place.is_dir():
        place.rename(tmp_path / "moved")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(precious, target_is_directory=True)
    outcome = command(*words)
    assert outcome.code == 2, outcome.out
    assert "is a link that leads out of out" in outcome.err
    assert sorted(path.name for path in precious.rglob("*")) == ["10", "mine", "mine.svg"]


def test_links_that_stay_inside_and_links_to_the_folder_are_let_be(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "real" / "b").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "results").symlink_to(tmp_path / "real")
    for folder in (tmp_path / "real", tmp_path / "results"):
        refuse_links_out(folder, folder / "b" / "c", folder / "new")


def test_a_borrowed_record_brings_no_links(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "output_dir=lender").code == 0
    (run,) = run_folders(Path("lender"))
    (tmp_path / "secret.txt").write_text("mine")
    (run.path / "secret.txt").symlink_to(tmp_path / "secret.txt")
    assert command(*TINY, "output_dir=borrower", "reuse_from=lender").code == 0
    (copy,) = run_folders(Path("borrower"))
    assert copy.read_summary() == run.read_summary()
    assert not (copy.path / "secret.txt").exists()


@pytest.mark.parametrize("file", ["../outside.bin", "/etc/passwd", "train/../../outside.bin"])
def test_shards_lie_in_their_folder(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("".join(f"some words and {i} more\n" for i in range(400)))
    words = ["source=text.txt", "documents=line", "tokenizer=bytes", "output_dir=shards", "workers=1"]
    assert told(prepare_main, words, capsys)[0] == 0
    manifest = json.loads(Path("shards/manifest.json").read_text())
    manifest["train"][0]["file"] = file
    Path("shards/manifest.json").write_text(json.dumps(manifest))
    code, _, err = told(prepare_main, ["check=shards"], capsys)
    assert (code, "is outside its folder" in err) == (2, True), err


# --- what people look at --------------------------------------------------------------------------------------------

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil\x1b\\\x9b2J\r\u202eltr[link=http://evil]x[/link]"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal would obey."""


@given(st.text())
def test_printable_text_steers_nothing_and_keeps_words(text: str) -> None:
    shown = printable(text)
    assert not OBEYED.search(shown)
    assert printable(shown) == shown
    assert "\n" not in printable(text, lines=False)
    if text.isprintable():
        assert shown == text


def test_a_terminal_obeys_nothing_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.DataFrame(
        {"n_params": [10, 20], "learning_rate": [0.1, 0.1], "loss": [2.0, 2.0], "arm": [ESCAPES, "b\nforged line"]}
    )
    table.with_columns(pl.lit(ESCAPES).alias("scale")).write_parquet("t.parquet")
    claim = {"kind": "sensitivity_below", "arm": ESCAPES, "than": "b"}
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": {ESCAPES: claim}}))
    words = ["source=t.parquet", "claims=claims.yaml", "figures=", "report=false", f"output_dir=out{ESCAPES[:4]}"]
    code, out, err = told(analyze_main, words, capsys)
    assert code == 0, err
    assert "red" in out
    assert "\nforged line" not in out
    for bad in (f"source={ESCAPES}", f"{ESCAPES}=1", "source=t.parquet " + ESCAPES, f"column.{ESCAPES}=a"):
        code, more, err = told(analyze_main, [bad], capsys)
        assert code == 2
        assert not OBEYED.search(more + err)
    assert not OBEYED.search(out)


def test_a_terminal_obeys_nothing_of_a_sweep(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweeps/sweep").mkdir(parents=True)
    sweep = {"question": ESCAPES, "claims": {ESCAPES: {"kind": "sensitivity_below", "arm": ESCAPES, "than": "a"}}}
    text = yaml.safe_dump({"sweep": sweep}, allow_unicode=False)
    Path("sweeps/sweep/evil.yaml").write_text(f"# @package _global_\n{text}")
    for words in (["dry_run=true"], ["dry_run=true", "output_dir=\x1b[31m"], []):
        outcome = command(*TINY, "+sweep=evil", *words)
        assert not OBEYED.search(outcome.out + outcome.err), words
    (folder,) = Path("results").iterdir()
    manifest = read_json(folder / "sweep.json")
    manifest["runs"].append("missing")
    manifest["commands"].append({"time": "", "command": ESCAPES})
    (folder / "sweep.json").write_text(json.dumps({**manifest, "sweep": ESCAPES}))
    _, out, err = told(status_main, [str(folder)], capsys)
    assert "To go on" in out
    assert not OBEYED.search(out + err)


HOSTILE_WORDS = (
    "<script>window.broken=1</script>[x](javascript:alert(1))`</code>\n[q]: javascript:alert(2)\n"
    "|cell|<img src=x onerror=a>"
)


def test_the_replication_page_is_words() -> None:
    part = {"status": "missing", "runs_planned": 1, "summary": None, "figure": None, "command": HOSTILE_WORDS}
    claim = {"name": HOSTILE_WORDS, "kind": "x", "paper": HOSTILE_WORDS, "ladders": {}}
    sweep = {"name": HOSTILE_WORDS, "question": HOSTILE_WORDS, "source": HOSTILE_WORDS}
    ladder = {
        "command": HOSTILE_WORDS,
        "seeds": [0],
        "complete": False,
        "missing": [HOSTILE_WORDS],
        "cost": {"runs": 0, "flops": 0.0, "seconds": 0.0},
        "made_with": {HOSTILE_WORDS: [HOSTILE_WORDS]},
    }
    text = page(
        {
            "paper": "arXiv 1",
            "interval_level": 0.9,
            "ladders": {HOSTILE_WORDS: ladder},
            "sweeps": [{**sweep, "ladders": {HOSTILE_WORDS: part}, "claims": [claim]}],
        },
        "card.json",
    )
    harmless = text.replace(
        "<!-- Written by `python -m stability.replicate`: edit the sweep files, not this page. -->", ""
    )
    assert "<" not in harmless
    assert "](javascript" not in text
    assert "]: javascript" not in text
    assert text.count("javascript:alert(1)") > 5, "shown as words"


# --- secrets --------------------------------------------------------------------------------------------------------

SECRET = "s3cr3tValue0123456789"
"""No word of it may be found anywhere."""


@pytest.mark.parametrize(
    "text",
    [
        f"data.path=https://user:{SECRET}@host/x",
        f"https://{SECRET}@host/x?y=1",
        f"s3://key:{SECRET}@bucket/a,https://a:{SECRET}@b/c",
        f"https://host/x?token={SECRET}&page=2",
        f"https://host/x?X-Amz-Signature={SECRET}",
        f"+tracking.api_key={SECRET}",
        f"WANDB_API_KEY={SECRET}",
        f"--password={SECRET} rest",
        f"token='{SECRET} with a blank' rest",
        f'{{"api_key": "{SECRET}"}}',
        json.dumps(json.dumps({"secret": SECRET})),
        f"api_key: {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"bearer {SECRET}",
        f"client_secret={SECRET}",
        "hf_" + SECRET,
        "ghp_" + SECRET,
    ],
)
def test_secrets_in_texts_are_hidden(text: str) -> None:
    hidden = redacted(text)
    assert SECRET not in hidden
    assert HIDDEN in hidden
    assert redacted(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "python -m stability.run +sweep=quickstart seed=0,1,2 optimizer.learning_rate=0.01",
        "source=hf:allenai/c4 tokenizer=bpe:8192 vocabulary_size=32101 end_of_sequence=0",
        "tokenizer=t5.model output_dir=data/c4 revision=0123456789abcdef0123456789abcdef01234567",
        "speed/tokens_per_second=3 tokens=5 query_key_cosine=1 author=me key=value",
        "https://host/x?page=2#part wandb:team/project?group=a s3://bucket/key",
        "me@example.org and a: b",
        "/home/me/token/file.txt",
        "arm=qk_layernorm=none, z_loss=0.0",
        "8958d28e5192ed5d29e793c7e0ae05b9c8e898e749823de13d9fe85afbc50543",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
    assert without_secrets({"tokens": text, "list": [text, 1, None]}) == {"tokens": text, "list": [text, 1, None]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    )
)
def test_hiding_keeps_the_rest_and_is_done_once(content: Any) -> None:
    hidden = without_secrets(content)
    assert without_secrets(hidden) == hidden
    json.dumps(hidden)


def test_values_of_the_environment_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("OTHER", "quite-an-ordinary-value")
    assert redacted(f"x{SECRET}y quite-an-ordinary-value") == f"x{HIDDEN}y quite-an-ordinary-value"
    assert all(map(is_secret_name, ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "api_key", "PGPASSWORD")))
    assert not any(map(is_secret_name, ("TOKENIZERS_PARALLELISM", "KEYBOARD", "tokens", "seed", "arm")))


def test_no_secret_is_written_down_or_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, f"{name}{SECRET}")
    address = f"https://user:{SECRET}@host/x?token={SECRET}"
    Path(address).parent.mkdir(parents=True)
    Path(address).write_text("It was the best of times, it was the worst of times. " * 200)
    url = f"data.path='{address}'"
    Path("sweeps/sweep").mkdir(parents=True)
    question = f"# @package _global_\nsweep:\n  question: Is it WANDB_API_KEY{SECRET}?\n"
    Path("sweeps/sweep/leaky.yaml").write_text(question)
    words = [
        *TINY[:-1],
        "report=true",
        "+sweep=leaky",
        "data=text",
        url,
        "output_dir=out",
        f"reuse_from=https://{SECRET}@host/",
    ]
    Path(words[-1].removeprefix("reuse_from=")).mkdir(parents=True)
    assert command(*words).code == 2, "no sweep's results"
    words.pop()
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    said = outcome.out + outcome.err
    for bad in (f"data.path=https://user:{SECRET}@host", f"wandb_api_key={SECRET}", f"+api_token={SECRET}"):
        refused = command(*TINY, "data=text", bad)
        assert refused.code == 2
        said += refused.out + refused.err
    assert SECRET not in said
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    manifest = read_json(Path("out/sweep.json"))
    assert "https://***@host/x?token=***" in manifest["commands"][0]["command"]
    assert command(*words, "dry_run=true").code == 0, "the same command is the same sweep"


def test_a_run_that_breaks_keeps_the_traceback_and_not_the_secret(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError(f"cannot open https://user:{SECRET}@host")

    monkeypatch.setattr("stability.launching.work.train", broken)
    outcome = command(*TINY, "output_dir=out")
    assert outcome.code == 1
    assert SECRET not in outcome.out + outcome.err
    (run,) = run_folders(Path("out"))
    for name in ("error.txt", "summary.json"):
        assert SECRET not in (run.path / name).read_text()
        assert "cannot open https://***@host" in (run.path / name).read_text()


def test_prepared_shards_do_not_say_how_their_source_was_reached(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("".join(f"some words and {i} more\n" for i in range(400)))
    words = ["documents=line", "tokenizer=bytes", "output_dir=shards", "workers=1", f"licence=see https://a:{SECRET}@b"]
    for source in (f"source=https://user:{SECRET}@127.0.0.1:9/x.txt", "source=text.txt"):
        code, out, err = told(prepare_main, [source, *words], capsys)
        assert code == (0 if "text" in source.split("/")[0] else 2)
        assert SECRET not in out + err
    for path in Path("shards").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


# --- bombs ----------------------------------------------------------------------------------------------------------

DEEP = '{"a":' * 5000 + "1" + "}" * 5000
LESS_DEEP = '{"schema_version": 1, "config": ' + '{"a":' * 400 + "1" + "}" * 401


@pytest.mark.parametrize("text", [DEEP, LESS_DEEP, "[" * 100_000, '{"schema_version": 1, "n": ' + "9" * 10_000 + "}"])
@pytest.mark.parametrize(
    "name", ["sweep.json", "RUN/summary.json", "RUN/config.json", "RUN/provenance.json", "summary.json"]
)
def test_a_json_abyss_is_a_damaged_file(name: str, text: str) -> None:
    folder = made_sweep()
    (run, *_) = run_folders(folder)
    (folder / "summary.json").write_text("{}")
    path = folder / name if "RUN" not in name else run.path / name.removeprefix("RUN/")
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        analyze(folder, folder, figure_formats=(), report=False)
    assert str(path.name) in str(caught.value) or "summary.json" in str(caught.value)


def test_a_row_that_is_an_abyss_is_a_damaged_row() -> None:
    folder = made_sweep()
    (run, *_) = run_folders(folder)
    run.metrics.write_text(DEEP + "\n")
    with pytest.raises(InputError, match="holds"):
        read(folder, quantities={"q": {"metric": "a", "at_step": 3}})


def made_sweep() -> Path:
    folder = Path("made")
    run = RunFolder(folder / "runs" / "one")
    config = {"model": {"width": 8, "depth": 1, "head_dim": 8, "mlp_ratio": 4}, "optimizer": {"learning_rate": 0.1}}
    run.begin({**config, "seed": 0, "data": {"seed": None}}, "f", {})
    known = {"n_params": 10, "learning_rate": 0.1, "seed": 0, "loss_validation": 2.0}
    run.write_summary({"fingerprint": "f", "status": "finished", **known})
    manifest = {"schema_version": 1, "sweep": "made", "scales": {}, "runs": ["f"]}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    return folder


BOUNDED = """
import resource, sys
from stability.analyze import main
import stability.analysis
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param("rows", "rows of 3 columns", marks=pytest.mark.slow),
        pytest.param("cell", "has more than 1,000 characters", marks=pytest.mark.slow),
    ],
)
def test_a_small_parquet_file_that_is_huge_is_refused_in_bounded_memory(kind: str, said: str) -> None:
    if kind == "rows":  # 200 million, written a million at a time
        rows = {name: pl.repeat(1, 1_000_000, eager=True) for name in ("n_params", "learning_rate", "loss")}
        pl.DataFrame(rows).write_parquet("million.parquet")
        pl.concat([pl.scan_parquet("million.parquet")] * 200).sink_parquet("bomb.parquet")
    else:
        cells = {"n_params": [10, 20], "learning_rate": [0.1, 0.1], "loss": [2.0, 2.0], "arm": ["x" * (1 << 29)] * 2}
        pl.DataFrame(cells).write_parquet("bomb.parquet")
    assert Path("bomb.parquet").stat().st_size < 20 << 20
    words = ["source=bomb.parquet", "figures=", "report=false"]
    done = subprocess.run([sys.executable, "-c", BOUNDED, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, (done.stdout[-500:], done.stderr[-500:])
    assert said in done.stderr
    assert len(done.stderr) < 3000


def test_a_table_with_too_many_cells_or_too_long_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stability.analysis.table_parts._MOST_CELLS", 100)
    rows = {"n_params": [10] * 50, "learning_rate": [0.1] * 50, "loss": [2.0] * 50}
    pl.DataFrame(rows).write_parquet("rows.parquet")
    with pytest.raises(InputError, match="has 50 rows of 3 columns, and 100 cells are the most"):
        read("rows.parquet")
    pl.DataFrame({"n_params": [10], "learning_rate": [0.1], "loss": [2.0], "arm": ["x" * 10_000]}).write_csv("arm.csv")
    with pytest.raises(InputError, match=r"has more than 1,000 characters \(line 2 of arm.csv\)"):
        read("arm.csv")
