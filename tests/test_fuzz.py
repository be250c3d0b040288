"""Whatever is typed, and whatever stands in a file: an answer or an InputError, and nothing else.

`pytest -m slow tests/test_fuzz.py` tries many times more.
"""

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stability.analysis import load
from stability.analysis.alarms.evaluation import examples
from stability.analysis.claims import parse_claims
from stability.analysis.definitions import read_definitions
from stability.analysis.forecast import parse_forecasts
from stability.analysis.quantities import parse_quantities
from stability.config import RunConfig
from stability.data import load_shards
from stability.errors import InputError
from stability.launching.settings import Execution
from stability.status import main as status
from stability.tracking.record import RunFolder, read_rows
from stability.typed import dotted_fields
from tests.bad_input.keys import kind_of
from tests.bad_input.records import records
from tests.bad_input.texts import shards
from tests.conftest import Command

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""The fixtures used here leave nothing behind from one example to the next."""


def few_and_many(few: int, many: int) -> Callable[[Any], Any]:
    """The same property twice: with few examples, and with many behind the mark `slow`."""
    counts = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", counts)


def tried(count: int, property_: Callable[..., None]) -> None:
    """Run a property so often."""
    settings(max_examples=count, deadline=None, suppress_health_check=SHARED, derandomize=count < 100)(property_)()


# --- commands ---------------------------------------------------------------------------------------------------------

KEYS = [
    (key, kind_of(field.type).of)
    for key, field in [*dotted_fields(RunConfig), *dotted_fields(Execution)]
    if key not in ("dry_run", "calibrate", "output_dir")
]
SIGNS = "[]{}(),:=+~'\"$\\ .#%&*?!<>|@/-é\t0aA"
text = st.text(alphabet=st.sampled_from(SIGNS), max_size=8) | st.text(max_size=4)
number = st.one_of(
    st.sampled_from(["0", "1", "-1", "64", "16", "1e-3", "1e3", "1e400", "nan", "-inf", "0x10", "1_0", "2147483648"]),
    st.floats(allow_nan=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
)
word = st.sampled_from(
    ["null", "true", "false", "none", "auto", "[]", "{}", "???", "${seed}", "${nope}", "${share:0.1}", "''", "[1,2]",
     "choice(1,2)", "range(3)", "1,2", "per_head,none", "{a:1}", "kjv", "micro", "w32", "tag(a,1)", "glob(*)"]
)  # fmt: skip
value = number | word | text
key = st.sampled_from([name for name, _ in KEYS])
odd_key = text | st.builds(lambda name, letter: name + letter, key, st.sampled_from("xs._"))
group = st.sampled_from(
    ["+sweep=quickstart", "+sweep=z_loss", "+sweep=nope", "scale=w32", "scale=w32,w64", "ladder=mini", "ladder=none",
     "data=text", "data=shards", "+intervention=warmup_long", "+intervention=z_loss_none,bigram", "tracking=files"]
)  # fmt: skip
sign = st.sampled_from(["", "", "", "+", "++", "~"])
override = st.builds("{}{}={}".format, sign, key | key | odd_key, value)
words = st.lists(override | override | group | text, max_size=5)


@few_and_many(25, 400)
def test_every_command_is_a_plan_or_refused(command: Command, tmp_path: Path, count: int) -> None:
    @given(words)
    def holds(typed: list[str]) -> None:
        typed = [one for one in typed if "\0" not in one and not one.lstrip("+~").startswith(("dry_run", "-"))]
        outcome = command(*typed, "dry_run=true")
        assert outcome.code in (0, 2)
        if outcome.code == 2:
            assert outcome.err.startswith("error: ")
            assert "Traceback" not in outcome.err
        else:
            assert "Dry run: nothing was trained or written" in outcome.out
        assert not list(tmp_path.iterdir())

    tried(count, holds)


# --- files ------------------------------------------------------------------------------------------------------------

scalar = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(deeper for name, child in children for deeper in places(child, (*path, name)))]


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which something was done to the parent of one place."""
    whole = {"": copy.deepcopy(tree)}
    *parents, last = ("", *path)
    node: Any = whole
    for name in parents:
        node = node[name]
    change(node, last)
    return whole.get("")


def damaged_json(data: st.DataObject, content: bytes) -> bytes:
    """A JSON file in which one value is another, or gone, or whose bytes are others."""
    how = data.draw(st.sampled_from(["value", "value", "gone", "bytes"]))
    if how == "bytes":
        return damaged_bytes(data, content)
    tree = json.loads(content)
    path = data.draw(st.sampled_from(places(tree)))
    if how == "gone":
        return json.dumps(changed(tree, path, lambda parent, name: parent.pop(name))).encode()
    new = data.draw(anything)
    return json.dumps(changed(tree, path, lambda parent, name: parent.__setitem__(name, new))).encode()


def damaged_bytes(data: st.DataObject, content: bytes) -> bytes:
    """A file cut off, or with some bytes replaced, put in or taken out."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.sampled_from([start, start + 1, start + 9, len(content)]))
    return content[:start] + data.draw(st.binary(max_size=6)) + content[end:]


def readers(folder: Path) -> list[Callable[[], object]]:
    """Everything that reads a sweep's records."""
    runs = [RunFolder(path) for path in sorted((folder / "runs").iterdir())]
    return [
        lambda: load(folder),
        lambda: load(folder, quantities={"mean": {"metric": "loss/train", "last_steps": 5, "reduce": "mean"}}),
        lambda: examples(folder),
        lambda: status([str(folder)]),
        *(lambda run=run: read_rows(run.metrics) for run in runs),  # type: ignore[misc]
        *(lambda run=run: (run.read_summary(), run.read_config(), run.read_provenance()) for run in runs),  # type: ignore[misc]
    ]


FILES = ["sweep.json", *(f"runs/run-a/{name}.json" for name in ("summary", "config", "provenance"))]
METRICS = ["runs/run-a/metrics.jsonl", "runs/run-b/metrics.jsonl"]


@few_and_many(60, 2000)
def test_damaged_records_are_read_or_refused(tmp_path: Path, count: int) -> None:
    make: Any = records()
    make(tmp_path / "whole")
    folder = tmp_path / "s"

    @given(st.data())
    def holds(data: st.DataObject) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        path = folder / data.draw(st.sampled_from([*FILES, *METRICS]))
        damage = damaged_bytes if path.suffix == ".jsonl" else damaged_json
        path.write_bytes(damage(data, path.read_bytes()))
        for reader in readers(folder):
            with contextlib.suppress(InputError):
                reader()

    tried(count, holds)


@few_and_many(40, 2000)
def test_a_damaged_folder_of_shards_is_refused_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make: Any = shards()
    make(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.json"
    whole = manifest.read_bytes()

    @given(st.data())
    def holds(data: st.DataObject) -> None:
        manifest.write_bytes(damaged_json(data, whole))
        with contextlib.suppress(InputError):
            load_shards(str(tmp_path / "s"))

    tried(count, holds)


# --- tables -----------------------------------------------------------------------------------------------------------

HEADERS = ["n_params", "learning_rate", "loss", "arm", "scale", "seed", "status", "step", "steps", "loss_initial", "x"]
cell = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "0", "1", "10", "2.4e6", "0.01", "finished", "diverged", '"', '"a,b"']),
    st.text(max_size=6),
    number,
)
line = st.lists(cell, min_size=1, max_size=6).map(",".join)
header = st.lists(st.sampled_from(HEADERS), min_size=1, max_size=6).map(",".join) | line
good_header = st.just("n_params,learning_rate,loss,arm,step")
good_line = st.builds(
    "{},{},{},{},{}".format,
    st.sampled_from(["10", "20", "1e18", "9223372036854775807"]),
    st.sampled_from(["0.1", "1e-300", "1e300", "0.2"]),
    st.sampled_from(["1", "nan", "1e308", "-5", ""]),
    st.text(alphabet="ab \u00e9<", max_size=3),
    st.sampled_from(["0", "1", "7", "9223372036854775807"]),
)
table = st.builds(
    lambda first, rest, end: end.join([first, *rest]),
    good_header | header,
    st.lists(good_line | line, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@few_and_many(80, 3000)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_any_table_is_read_or_refused(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"t.{suffix}"

    @given(table.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
    def holds(content: bytes) -> None:
        if suffix == "parquet":
            content = b"PAR1" + content + b"PAR1"
        path.write_bytes(content.replace(b",", b"\t") if suffix == "tsv" else content)
        with contextlib.suppress(InputError):
            assert isinstance(load(path), pl.DataFrame)

    tried(count, holds)


@few_and_many(60, 2000)
def test_any_definitions_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "claims.yaml"
    names = st.sampled_from(["kind", "arm", "than", "quantity", "metric", "at_step", "threshold", "scales", "within"])
    kinds = st.sampled_from(["sensitivity_below", "quantity_rises", "grows_faster", "none", "w32", "learning_rate"])
    fields = st.dictionaries(names | st.text(max_size=3), kinds | anything, max_size=4)
    part = st.dictionaries(st.text(max_size=4), fields | anything, max_size=2) | anything
    tree = st.fixed_dictionaries({}, optional=dict.fromkeys(("claims", "quantities", "forecasts"), part))

    @given(tree.map(lambda one: yaml.safe_dump(one).encode()) | st.binary(max_size=30))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = read_definitions(path)
            parse_claims(found.claims)
            parse_quantities(found.quantities)
            parse_forecasts(found.forecasts)
        except InputError:
            pass

    tried(count, holds)
