"""The documentation is true: its commands and Python run, its output is what they print, its links and its site work.

CONTRIBUTING.md, "Documentation", says what happens to which block. Pages run in this process, each from top to bottom
in a folder of its own that holds a small sweep's results, a table, claims and a few texts.
"""

import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import polars as pl
import pytest
import yaml
from quick import compile_quickly

import stability
from stability.analysis import format_table
from stability.launching import devices, launch
from stability.tracking.wandb import WandbTracker
from stability.training import lanes

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SMALL = ("ladder=tiny", "tracking=files", "figures=[]", "report=false")
REASONS = {
    "needs a GPU",
    "needs a cluster",
    "needs an account",
    "needs the network",
    "needs a table that is not in the repository",
    "is the test suite itself",
    "is followed by tests/test_data_page.py",
    "is followed by tests/test_processes.py",
}
"""Why a block may be left out: nothing but hardware, other machines and what this test would call itself by."""
SKIPPED_AT_MOST = 15

# --- blocks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A block of code: its language and title, the marker above it, and what it may print (the `text` right below)."""

    line: int
    language: str
    title: str
    text: str
    marker: str
    output: str | None = None

    @property
    def skipped(self) -> str | None:
        return self.marker.removeprefix("skip, ") if self.marker.startswith("skip, ") else None


_FENCE = re.compile(r"^( *)```(\w*)\s*(.*)$")
_MARKER = re.compile(r"^ *<!-- test: (.+) -->$")
_COMMAND = re.compile(r"^(\.venv/bin/)?(python3?|pip|pytest|mkdocs|wandb) ")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, fenced and indented, those of output joined to the one they belong to."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[tuple[int, Block]] = []  # with the line after it
    at = 0
    while at < len(lines):
        if fence := _FENCE.match(lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            text, language, rest, after = lines[at + 1 : end], fence[2], fence[3], end + 1
        elif lines[at].startswith("    ") and not lines[at - 1].strip() and not _in_list(lines, at):
            end = next((i for i in range(at, len(lines)) if lines[i].strip() and not lines[i].startswith("    ")), None)
            text, rest, after = lines[at:end], "", end or len(lines)
            language = "bash" if _COMMAND.match(text[0].strip()) else "text"
        else:
            at += 1
            continue
        marker = _MARKER.match(lines[at - 1]) if at else None
        title = re.search(r'title="([^"]+)"', rest)
        body = inspect.cleandoc("\n" + "\n".join(text)) + "\n"
        block = Block(at + 1, language, title[1] if title else "", body, marker[1] if marker else "")
        if language == "text" and found and not any(line.strip() for line in lines[found[-1][0] : at]):
            last = found[-1][1]
            block = Block(last.line, last.language, last.title, last.text, last.marker, body)
            found.pop()
        found.append((after, block))
        at = after
    return [block for _, block in found]


def _in_list(lines: Sequence[str], at: int) -> bool:
    above = next((line for line in reversed(lines[:at]) if line.strip() and not line.startswith(" ")), "")
    return bool(re.match(r"([-*]|\d+\.) ", above))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block, without what needs the network before the first of ours."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if words and words[1:3] != ["-m", "venv"] and not words[0].endswith("pip"):
                yield words


# --- running them ---------------------------------------------------------------------------------------------------


def tiny_ladder() -> dict[str, Any]:
    """The micro ladder, every name in it kept and every number shrunk."""
    ladder: dict[str, Any] = yaml.safe_load((ROOT / "sweeps/ladder/micro.yaml").read_text(encoding="utf-8"))
    inner = ladder["ladder"]
    width = {name: 8 + 8 * place for place, name in enumerate(inner["scales"])}
    shape = {name: {"model.width": w, "model.depth": 1, "model.head_dim": w} for name, w in width.items()}
    inner |= {"name": "tiny", "steps": 100, "batch_size": 2, "scales": shape}
    inner["series"] = {name: scales[:1] for name, scales in inner["series"].items()}
    inner["learning_rates"] = {name: [0.01, 0.1, 1.0] for name in inner["learning_rates"]}
    model = {key.removeprefix("model."): value for key, value in shape["w32"].items()}
    training = {"sequence_length": 8, "validation_sequences": 4, "observe_every": 50}
    return ladder | {"model": ladder["model"] | model, "training": ladder["training"] | training}


load_corpus = functools.cache(launch.load_corpus)
_first_of_structure: dict[object, Any] = {}


def first_alike(config: Any) -> Any:
    """The first config seen of this one's structure."""
    return _first_of_structure.setdefault(jax.tree.structure(config), config)


@functools.cache
def quick_program(
    config: Any, count: int | None, shape: tuple[int, ...], mesh: jax.sharding.Mesh | None = None
) -> lanes.Program:
    """A program compiled in a fraction of the time."""
    return compile_quickly(config, count, shape, mesh)


def execute(words: Sequence[str]) -> str:
    """Run a command as `python -m` would, in this process where it is ours; returns what it prints.

    Nothing is compiled, measured or read twice in this module.
    The exit code must be 0; `stability.status` may say with 1 that something is unfinished.
    """
    printed = io.StringIO()
    module = words[2] if words[1:2] == ["-m"] else ""
    if module not in (
        "stability.run",
        "stability.analyze",
        "stability.status",
        "stability.replicate",
        "stability.alarms",
    ):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("STABILITY_NO_REEXECUTION", "1")
        patch.setenv("HYDRA_FULL_ERROR", "1")  # `run_hydra` sets it, and this puts it back
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", [module, *words[3:]])
        patch.setattr(sys, "orig_argv", ["python", *words[1:]])
        patch.setattr(lanes, "compile_program", lambda config, *rest: quick_program(first_alike(config), *rest))
        patch.setattr(launch, "load_corpus", load_corpus)
        patch.setattr(devices, "usable_cores", lambda: 2)  # as on the machine that the pages were written on
        main = importlib.import_module(module).main
        code = main() if module == "stability.run" else main(list(words[3:]))
    assert code == 0 or (code == 1 and module == "stability.status"), shlex.join(words)
    return printed.getvalue()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a page may count on: `results/quickstart`, tiny and trained by the README's command, and a user's files."""
    folder = tmp_path_factory.mktemp("docs")
    for group in ("ladder", "sweep", "intervention"):
        (folder / "sweeps" / group).mkdir(parents=True)
    ladder = yaml.safe_dump(tiny_ladder(), sort_keys=False)
    (folder / "sweeps/ladder/tiny.yaml").write_text(f"# @package _global_\n{ladder}", encoding="utf-8")
    (folder / "books").mkdir()
    verse = "In the beginning was the word, and the word was with the reader. "
    (folder / "books/one.txt").write_text(verse * 8000, encoding="utf-8")
    rates = {"adamw": (3.1, 2.9, 3.3), "lion": (3.2, 3.0, 4.1)}
    rows = [
        {"n_params": size, "lr": rate, "eval_loss": loss - 0.1 * (size > 1e6), "optimizer": name}
        for name, losses in rates.items()
        for size in (1_000_000, 4_000_000)
        for rate, loss in zip((0.001, 0.01, 0.1), losses, strict=True)
    ]
    pl.DataFrame(rows).write_csv(folder / "runs.csv")
    claim = {"kind": "sensitivity_below", "arm": "adamw", "than": "lion"}
    (folder / "claims.yaml").write_text(yaml.safe_dump({"claims": {"adamw_is_less_sensitive": claim}}))
    with contextlib.chdir(folder):
        (command,) = [words for words in commands(readme_commands()[0]) if words[2:3] == ["stability.run"]]
        assert "Results: results/quickstart" in execute([*command, *SMALL])
    return folder


def readme_commands() -> list[str]:
    """The README's two commands that install."""
    return [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("python3 -m venv")]


def test_the_readme_has_its_two_commands_and_ci_runs_the_second() -> None:
    train, test = readme_commands()
    install = "python3 -m venv .venv && .venv/bin/pip install -e"
    assert train == f"{install} . && .venv/bin/python -m stability.run +sweep=quickstart"
    assert test == f"{install} '.[test]' && .venv/bin/python -m pytest"
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert re.search(r"-m venv .*\n.*pip\" install .*-e '\.\[test,dev\]'", ci)
    assert all(f'"$environment/bin/{tool}"' in ci for tool in ("ruff", "mypy"))
    assert '"$environment/bin/python" -m pytest\n' in ci


def test_what_is_left_out_is_counted_and_has_a_reason() -> None:
    skipped = [(page.name, block.line, block.skipped) for page in PAGES for block in blocks(page) if block.skipped]
    assert {reason for *_, reason in skipped} <= REASONS
    assert len(skipped) <= SKIPPED_AT_MOST, skipped
    known = ("", "run", "run small")
    markers = [(page.name, block.line) for page in PAGES for block in blocks(page) if block.marker not in known]
    assert len(markers) == len(skipped), "a marker that says nothing"


RUNNING = [page for page in PAGES if any(block.language in ("bash", "python", "yaml") for block in blocks(page))]


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs(page: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    shutil.copytree(workshop, folder)
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "plans").mkdir()
    (folder / "conf").mkdir()
    for name in ("sweeps", "books", "conf"):
        (folder / "plans" / name).symlink_to(folder / name)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.skipped:
            continue
        if block.title:
            path = Path(block.title)
            assert not path.is_absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language == "bash":
            printed = run_bash(block)
            if block.output is not None and printed is not None:
                assert_alike(printed, block.output, where)
        elif block.language == "python":
            printed = run_python(block.text, names, where)
            if block.output is not None:
                assert_alike(printed, block.output, where)


def run_bash(block: Block) -> str | None:
    """What the block's commands print; None where they were not run as written."""
    printed, as_written = [], True
    for words in commands(block.text):
        extra: tuple[str, ...] = ()
        if words[2:3] == ["stability.run"] and block.marker != "run":
            extra = SMALL if block.marker == "run small" else ("dry_run=true",) * ("dry_run=true" not in words)
        elif words[2:3] == ["stability.analyze"] and block.marker == "run small":
            extra = ("figures=", "report=false")
        as_written = as_written and not extra
        # A plan is checked against the folder that it would go to: tiny results there are another sweep's.
        dry = "dry_run=true" in (*words, *extra)
        with contextlib.chdir("plans" if dry else "."):
            printed.append(execute([sys.executable if "python" in words[0] else words[0], *words[1:], *extra]))
    return "".join(printed) if as_written else None


def run_python(text: str, names: dict[str, Any], where: str) -> str:
    """Execute a block in a page's names; returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.parse(text), where, "exec"), names)
    return printed.getvalue()


_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?(?![\w.])")


def assert_alike(printed: str, shown: str, where: str) -> None:
    """The same words and, to 5 % or the last digit shown, the same numbers; spaces and rules do not matter."""

    def parts(text: str) -> tuple[list[str], list[float]]:
        words = re.sub(r"[\s─═┌┐└┘│┆╞╡┬┴╪-]+", " ", _NUMBER.sub("#", text)).split()
        return words, [float(number.replace(",", "")) for number in _NUMBER.findall(text)]

    (words, numbers), (shown_words, shown_numbers) = parts(printed), parts(shown)
    assert words == shown_words, f"{where} shows\n{shown}\nand prints\n{printed}"
    assert numbers == pytest.approx(shown_numbers, rel=0.05, abs=0.0015), f"{where} prints\n{printed}"


_INLINE = re.compile(r"(?<!`)`((?:python3? -m|pytest|pip|mkdocs|wandb|\.ci/)[^`]*)`(?!`)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_name_what_exists(page: Path) -> None:
    for match in _INLINE.finditer(re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)):
        words = shlex.split(match[1])
        if words[0].startswith("python"):
            assert len(words) < 3 or importlib.util.find_spec(words[2]), match[0]
        for word in words[1:]:
            assert not word.startswith(("tests/", "docs/")) or (ROOT / word).exists(), match[0]
        for word in words:
            chosen = re.fullmatch(r"\+(sweep|intervention)=([a-z]\w*)", word)
            assert not chosen or (ROOT / "sweeps" / chosen[1] / f"{chosen[2]}.yaml").exists(), match[0]


# --- what the README shows ------------------------------------------------------------------------------------------


def columns(table: str) -> list[list[str]]:
    """The cells of an aligned table, its header among them."""
    lines = table.splitlines()
    spans = [match.span() for match in re.finditer("-+", lines[1])]
    return [[line[begin:end].strip() for begin, end in spans] for line in (lines[0], *lines[2:]) if line.strip()]


def shape(cell: str) -> str:
    """What kind of thing stands in a cell: numbers become 0."""
    return re.sub(r"\d+(\.\d+)?(e\+\d+)?[kM]?", "0", cell)


def test_the_readme_shows_the_table_that_the_program_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = [block.text for block in blocks(ROOT / "README.md") if "highest stable LR" in block.text]
    table, results = shown.split("\n\n")
    first, *last = results.splitlines()
    assert first == "Results: results/quickstart   (report.html, summary.json, analysis/, runs/)"
    monkeypatch.chdir(tmp_path)
    for i in range(43):  # 42 runs and the analysis
        run = Path(f"results/quickstart/wandb/offline-run-20260101_000000-{i}")
        run.mkdir(parents=True)
        (run / f"run-{i}.wandb").touch()
    assert last == WandbTracker("stability", None, "offline", Path("results/quickstart")).closing_words()
    summary = json.loads((ROOT / "docs/replication/micro/qk_layernorm/summary.json").read_text("utf-8"))
    header, *rows = columns(table)
    real_header, *real_rows = columns(format_table(summary))
    assert header == real_header
    assert [row[2] for row in rows] == [row[2] for row in real_rows], "arms"
    ladder = yaml.safe_load((ROOT / "sweeps/ladder/micro.yaml").read_text("utf-8"))["ladder"]
    assert [row[0] for row in rows[::2]] == ladder["series"]["quickstart"]
    for column in range(3, len(header)):
        known = {shape(row[column]) for row in real_rows}
        assert {shape(row[column]) for row in rows} <= known, header[column]


def test_the_readme_names_every_sweep() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    missing = [path.stem for path in (ROOT / "sweeps/sweep").glob("*.yaml") if path.stem not in text]
    assert not missing


# --- links and the site ---------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme advertises on stderr unless asked not to.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_the_site_asks_nobody_for_anything(site: Path) -> None:
    loaded = r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
    outside = {match for page in site.rglob("*.html") for match in re.findall(loaded, page.read_text("utf-8"))}
    outside |= {
        match for sheet in site.rglob("*.css") for match in re.findall(r"url\([\"']?(https?:[^)]+)", sheet.read_text())
    }
    assert not outside


def test_the_site_lists_every_intervention_and_sweep(site: Path) -> None:
    for page, group in (("interventions", "intervention"), ("experiments", "sweep")):
        html = (site / f"{page}.html").read_text("utf-8")
        missing = [path.stem for path in (ROOT / "sweeps" / group).glob("*.yaml") if path.stem not in html]
        assert not missing, page


# --- the Python API -------------------------------------------------------------------------------------------------

PUBLIC = [name for name in stability.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_typed_and_documented(name: str, site: Path) -> None:
    function = getattr(stability.analysis, name)
    assert callable(getattr(stability, name)), "also where an entry point has the same name"
    documentation = inspect.getdoc(function) or ""
    assert all(f"{section}:\n" in documentation for section in ("Args", "Returns", "Raises"))
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    assert {*parameters, "return"} <= hints.keys()
    arguments = documentation.split("Args:\n")[1].split("Returns:\n")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.M) == list(parameters)
    assert f'id="{function.__module__}.{name}"' in (site / "api.html").read_text("utf-8")
    assert f"heading: stability.{name}}}" in (ROOT / "docs/api.md").read_text("utf-8")


MEASURES = [name for name in PUBLIC if name not in ("analyze", "early_warning", "forecast", "load")]


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_takes_any_table_and_names_its_columns(name: str) -> None:
    rates = (0.001, 0.01, 0.1)
    table = pl.DataFrame(
        {
            "arm": ["only"] * 6,
            "scale": ["small"] * 3 + ["large"] * 3,
            "n_params": [1000] * 3 + [4000] * 3,
            "learning_rate": rates * 2,
            "seed": [0] * 6,
            "status": ["finished"] * 5 + ["diverged"],
            "loss_validation": [3.0, 2.5, 2.6, 2.9, 2.4, None],
            "loss_initial": [5.5] * 6,
            "colour": ["blue"] * 6,
        }
    )
    found = getattr(stability, name)(table)
    assert isinstance(found, pl.DataFrame)
    assert found.height
    documentation = inspect.getdoc(getattr(stability, name)) or ""
    returns = documentation.split("Returns:\n")[1].split("Raises:\n")[0]
    assert set(re.findall(r"`(\w+)`", returns)) >= set(found.columns)


def test_load_names_its_columns(workshop: Path) -> None:
    documentation = inspect.getdoc(stability.load) or ""
    assert set(re.findall(r"`(\w+)`", documentation)) >= set(stability.load(workshop / "results/quickstart").columns)


def test_a_table_that_is_not_of_polars_is_refused_with_the_way_out() -> None:
    for given in ({"arm": []}, pl.LazyFrame({"arm": ["a"]})):
        with pytest.raises(stability.errors.InputError, match="from_pandas"):
            stability.sensitivity(given)  # type: ignore[arg-type]


def test_types_ship() -> None:
    assert (Path(stability.__file__).parent / "py.typed").is_file()
