"""A quantity is what a full read of the rows gives, however it was read: by bisection, from CSV, from Parquet."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stability.analysis.load import read
from stability.analysis.quantities import Quantity, of_metrics, parse_quantities
from stability.errors import InputError
from stability.tracking import record
from stability.tracking.record import Metrics, RunFolder, read_rows

METRICS = ("loss/train", "attention_logit/max", "step_time", 'odd"name', "name")

values = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
rows = st.dictionaries(st.sampled_from(METRICS), values, max_size=4)


@st.composite
def stories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that ascend in step, two of one step now and then, some of them long."""
    steps = sorted(draw(st.lists(st.integers(0, 60), max_size=25)))
    return [
        {"step": step, **draw(rows), **({"long": 1.0} | {f"x{i}": 0.5 for i in range(draw(st.integers(0, 9)))})}
        for step in steps
    ]


@pytest.fixture(scope="module")
def metrics_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "metrics.jsonl"


def write_rows(path: Path, story: list[dict[str, Any]], cut_off: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in story) + cut_off, encoding="utf-8")


class TestMetrics:
    """Random access gives what `read_rows` gives."""

    @given(
        story=stories(),
        cut_off=st.sampled_from(["", '{"step": 70', '{"step": 70, "name": 1}', '{"st']),
        first=st.integers(-3, 70),
        last=st.none() | st.integers(-3, 70),
        block=st.sampled_from([1, 7, 40, 150, 1 << 14]),
    )
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_like_a_full_read(
        self,
        metrics_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        story: list[dict[str, Any]],
        cut_off: str,
        first: int,
        last: int | None,
        block: int,
    ) -> None:
        monkeypatch.setattr(record, "_BLOCK", block)
        write_rows(metrics_path, story, cut_off)
        wanted = [row for row in story if first <= row["step"] and (last is None or row["step"] <= last)]
        assert read_rows(metrics_path) == story
        with Metrics(metrics_path) as metrics:
            assert metrics.rows(first, last) == wanted
            assert metrics.last_step == (story[-1]["step"] if story else None)
            for name in METRICS:
                found = list(metrics.values(name, first, last))
                assert found == [row[name] for row in reversed(wanted) if name in row]

    def test_after_repeated_resumes(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path)
        for start in (0, 40, 20, 90):
            kept = [json.dumps(row) + "\n" for row in read_rows(run.metrics) if (row["step"] or 0) < start]
            run.metrics.write_text("".join(kept))
            run.append({"step": step, "loss/train": step + start / 1000} for step in range(start, start + 60, 10))
            with run.metrics.open("a") as file:
                file.write('{"step": 99999, "loss/tr')
        with Metrics(run.metrics) as metrics:
            assert metrics.rows() == read_rows(run.metrics)
            assert list(metrics.values("loss/train", 0, 35)) == [30.02, 20.02, 10.0, 0.0]
            assert metrics.last_step == 140

    @pytest.mark.parametrize("text", ["", "{", '{"step": 3, "a": 1'])
    def test_without_a_whole_row(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "metrics.jsonl"
        for _ in range(2):  # first without a file
            with Metrics(path) as metrics:
                assert (metrics.rows(), metrics.last_step, list(metrics.values("a"))) == ([], None, [])
            path.write_text(text)

    @pytest.mark.parametrize("line", ["{}", "3", "[", '{"step": null}', '{"step": "x"}'])
    def test_damage_is_named(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(f"{line}\n")
        with Metrics(path) as metrics, pytest.raises(InputError, match=r"metrics\.jsonl"):
            metrics.rows(5)

    @pytest.mark.parametrize("value", ['"high"', "true", "[1]", "{}"])
    def test_values_that_are_no_numbers_are_named(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(f'{{"step": 0, "a": {value}}}\n')
        with Metrics(path) as metrics, pytest.raises(InputError, match=r"for a"):
            list(metrics.values("a"))

    def test_reads_next_to_nothing_of_a_large_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "metrics.jsonl"
        write_rows(path, [{"step": step, "a": step, "filler": "x" * 300} for step in range(20_000)])
        asked = 0

        with Metrics(path) as metrics:
            step_of = metrics._step

            def counted(line: bytes) -> int:
                nonlocal asked
                asked += 1
                return step_of(line)

            monkeypatch.setattr(metrics, "_step", counted)
            assert next(metrics.values("a", 0, 4321)) == 4321
        assert asked < 200


class TestDefinition:
    @pytest.mark.parametrize(
        ("name", "content", "key"),
        [
            ("a", {"metric": "m", "at_stp": 3}, "quantities.a.at_stp"),
            ("a", {"metric": "m", "colour": 3}, "quantities.a.colour"),
            ("a", {}, "quantities.a.metric"),
            ("a", {"metric": ""}, "quantities.a.metric"),
            ("a", {"metric": 3}, "quantities.a.metric"),
            ("a", {"metric": "m", "at_step": -1}, "quantities.a.at_step"),
            ("a", {"metric": "m", "at_step": 1.5}, "quantities.a.at_step"),
            ("a", {"metric": "m", "last_steps": 0}, "quantities.a.last_steps"),
            ("a", {"metric": "m", "reduce": "median"}, "quantities.a.reduce"),
            ("a", {"metric": "m", "at_step": 1, "last_steps": 1}, "quantities.a.at_step"),
            ("a", {"metric": "m", "at_step": 1, "reduce": "max"}, "quantities.a.at_step"),
            ("a", Quantity("m", at_step=1, reduce="max"), "quantities.a.at_step"),
            ("a", "m", "quantities.a"),
            ("loss_validation", {"metric": "m"}, "quantities.loss_validation"),
            ("diverged", {"metric": "m"}, "quantities.diverged"),
            ("", {"metric": "m"}, "quantities"),
        ],
    )
    def test_what_is_refused_is_named(self, name: str, content: Any, key: str) -> None:
        with pytest.raises(InputError) as caught:
            parse_quantities({name: content})
        assert caught.value.key == key

    def test_misspelt_keys_have_a_suggestion(self) -> None:
        with pytest.raises(InputError, match=r"Did you mean at_step\?"):
            parse_quantities({"a": {"metric": "m", "at_stp": 3}})

    def test_steps_may_be_written_as_people_do(self) -> None:
        assert parse_quantities({"a": {"metric": "m", "at_step": 2e3}}) == {"a": Quantity("m", at_step=2000)}

    def test_no_mapping(self) -> None:
        with pytest.raises(InputError, match="no mapping"):
            parse_quantities([{"metric": "m"}])  # type: ignore[arg-type]


def by_hand(quantity: Quantity, story: list[dict[str, Any]], steps: int) -> float | None:
    """The definition, word by word."""
    if not story or (quantity.at_step is not None and story[-1]["step"] < quantity.at_step):
        return None
    chosen = [row for row in story if quantity.metric in row]
    if quantity.at_step is not None:
        chosen = [row for row in chosen if row["step"] <= quantity.at_step]
    if quantity.last_steps is not None:
        chosen = [row for row in chosen if row["step"] > steps - quantity.last_steps]
    seen = [row[quantity.metric] for row in chosen]
    if quantity.reduce == "last":
        seen = seen[-1:]
    seen = [abs(value) if quantity.absolute else value for value in seen if value is not None]
    if not seen:
        return None
    if quantity.reduce == "mean":
        return sum(seen) / len(seen)
    return min(seen) if quantity.reduce == "min" else max(seen)


def close(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9))


@st.composite
def definitions(draw: st.DrawFn) -> Quantity:
    absolute = draw(st.booleans())
    if draw(st.booleans()):
        return Quantity("m", at_step=draw(st.integers(0, 40)), absolute=absolute)
    window = draw(st.none() | st.integers(1, 40))
    reduce = draw(st.sampled_from(["last", "mean", "max", "min"]))
    return Quantity("m", last_steps=window, reduce=reduce, absolute=absolute)


numbers = st.none() | st.floats(-100, 100)


@st.composite
def numbered_stories(draw: st.DrawFn) -> list[dict[str, Any]]:
    steps = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=12)))
    return [{"step": step, **({"m": draw(numbers)} if draw(st.booleans()) else {})} for step in steps]


@given(story=numbered_stories(), quantity=definitions(), more=st.none() | st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_of_a_metrics_file_as_defined(
    metrics_path: Path, story: list[dict[str, Any]], quantity: Quantity, more: int | None
) -> None:
    write_rows(metrics_path, story)
    end = story[-1]["step"]
    with Metrics(metrics_path) as metrics:
        found = of_metrics(quantity, metrics, None if more is None else end + more)
    assert close(found, by_hand(quantity, story, end + (more or 0)))


@given(runs=st.lists(numbered_stories(), min_size=1, max_size=3), quantity=definitions())
@settings(max_examples=60, deadline=None)
def test_of_a_table_as_defined(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[dict[str, Any]]], quantity: Quantity
) -> None:
    """In a table an empty cell is a row without the metric, and a nan one that was not finite."""
    folder = tmp_path_factory.mktemp("table")
    table = pl.DataFrame(
        [
            {"seed": seed, "step": row["step"], "m": math.nan if row.get("m", 0) is None else row.get("m")}
            for seed, story in enumerate(runs)
            for row in story
        ],
        schema={"seed": pl.Int64, "step": pl.Int64, "m": pl.Float64},
    ).with_columns(pl.lit(1.0).alias("loss"), pl.lit(10).alias("n_params"), pl.lit(0.1).alias("learning_rate"))
    table.write_csv(folder / "t.csv")
    table.sample(fraction=1, shuffle=True, seed=0).write_parquet(folder / "t.parquet")
    wanted = [by_hand(quantity, story, story[-1]["step"]) for story in runs]
    for name in ("t.csv", "t.parquet"):
        found = read(folder / name, quantities={"q": quantity}).table["q"].to_list()
        assert all(map(close, found, wanted)), (found, wanted)
