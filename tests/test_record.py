"""What a run leaves on disk: whole files or none, no NaN, and results that follow from the rows."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.errors import InputError
from stability.tracking import files
from stability.tracking.files import read_json, without_nonfinite, write_json
from stability.tracking.record import RunFolder, flatten, read_rows, run_folders
from stability.tracking.summary import Results

BROKEN = (math.nan, math.inf, -math.inf)


def values() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5)
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    """Rows from columns; a column's name has __ for its slash."""
    names = [name.replace("__", "/") for name in columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# --- JSON files -------------------------------------------------------------------------------------------------------


@given(values())
def test_no_nan_or_infinity_reaches_a_file(value: Any) -> None:
    clean = without_nonfinite({"value": value})
    assert json.loads(json.dumps(clean, allow_nan=False)) == clean
    assert without_nonfinite(clean) == clean


def test_what_is_not_available_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"schema_version": 1, "losses": [1.5, *BROKEN], "deep": {"x": (math.nan, 2)}})
    assert read_json(tmp_path / "a.json") == {
        "schema_version": 1,
        "losses": [1.5, None, None, None],
        "deep": {"x": [None, 2]},
    }


@pytest.mark.parametrize("failing", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"schema_version": 1, "status": "old"})

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, fail)
        with pytest.raises(type(error)):
            write_json(path, {"schema_version": 1, "status": "new"})
    assert read_json(path)["status"] == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"value": object()})
    assert not list(tmp_path.iterdir())


def test_a_file_is_readable_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"schema_version": 1})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ('{"schema_version": 1', "not valid JSON"),
        ("[1]", "no JSON object"),
        ("{}", "schema_version None"),
        ('{"schema_version": 99}', "schema_version 99"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_a_file_that_is_not_ours_to_read_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=problem) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_nested_mappings_flatten_to_dotted_keys_in_their_order() -> None:
    assert list(flatten({"b": {"y": 1, "x": {"z": [2]}}, "a": None}).items()) == [
        ("b.y", 1),
        ("b.x.z", [2]),
        ("a", None),
    ]


# --- a run's folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ['{"step": 2', '{"step": 2, "loss/train": 1.5}', "", '{"st'])
def test_a_last_line_that_a_kill_cut_off_does_not_count(tmp_path: Path, part: str) -> None:
    run = RunFolder(tmp_path)
    run.append([{"step": 0}, {"step": 1}])
    with run.metrics.open("a") as file:
        file.write(part)
    assert read_rows(run.metrics) == [{"step": 0}, {"step": 1}]


def test_a_run_that_never_wrote_has_no_rows(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    assert read_rows(run.metrics) == []
    assert run.read_summary() is None


def test_rows_hold_null_for_what_is_not_finite(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append([{"step": 0, "loss/train": broken} for broken in BROKEN])
    assert [row["loss/train"] for row in read_rows(run.metrics)] == [None, None, None]


def test_a_run_that_starts_again_adds_to_its_provenance_and_forgets_its_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    run.begin({"seed": 1}, "f" * 16, {"host": "one"})
    (run.path / "error.txt").write_text("Traceback")
    run.begin({"seed": 1}, "f" * 16, {"host": "two"})
    assert [start["host"] for start in run.read_provenance()] == ["one", "two"]
    assert run.read_config() == {"seed": 1}
    assert run.read_summary() == {"schema_version": 1, "fingerprint": "f" * 16, "status": "running"}
    assert not (run.path / "error.txt").exists()
    assert run_folders(tmp_path) == [run]


def test_folders_without_a_summary_are_no_runs(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == []
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    assert run_folders(tmp_path) == []


def test_checkpoints_are_removed_whether_or_not_there_are_any_but_for_one_that_is_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.remove_checkpoints()
    for step in ("100", "200"):
        (run.checkpoints / step / "default").mkdir(parents=True)
        (run.checkpoints / f"{step}.json").write_text("{}")
    run.remove_checkpoints(but=200)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["200", "200.json"]
    run.remove_checkpoints()
    assert not run.checkpoints.exists()


# --- results ----------------------------------------------------------------------------------------------------------


ABSENT = object()
"""What stands for a value that a row does not have."""


def losses(initial: Any, final: Any) -> list[dict[str, Any]]:
    table = rows(step=[0, 5, 10], loss__validation=[initial, ABSENT, final], loss__train=[6.0, 4.0, ABSENT])
    return [{name: value for name, value in row.items() if value is not ABSENT} for row in table]


@pytest.mark.parametrize(
    ("initial", "final", "status", "bad_step"),
    [
        (6.0, 2.0, "finished", None),
        (6.0, 6.0, "finished", None),
        (6.0, 6.000001, "diverged", None),
        (6.0, math.nan, "diverged", 10),
        (6.0, math.inf, "diverged", 10),
        (6.0, None, "diverged", 10),
        (6.0, ABSENT, "diverged", None),
        (math.nan, 2.0, "diverged", 0),
        (None, 2.0, "diverged", 0),
        (None, None, "diverged", 0),
        (ABSENT, 2.0, "finished", None),
    ],
)
def test_a_run_diverged_when_a_validation_loss_is_no_number_or_the_last_above_the_first(
    initial: Any, final: Any, status: str, bad_step: int | None
) -> None:
    """A loss that was not finite is None in a row that was read back."""
    summary = Results(10, losses(initial, final)).summary(diverged_at=None)
    assert summary["status"] == status
    assert summary["steps"] == 10
    assert summary["first_bad_step"] == bad_step
    assert summary["first_bad_observation"] == (None if bad_step is None else "loss/validation")
    assert summary["loss_initial"] == (initial if initial == 6.0 else None)
    assert summary["loss_validation"] == (final if isinstance(final, float) and math.isfinite(final) else None)
    assert summary["loss_train"] == 4.0


def test_a_run_that_met_a_number_that_is_not_finite_diverged_then_and_has_no_final_loss() -> None:
    summary = Results(10, losses(6.0, 2.0)).summary(diverged_at=7, first_bad_observation="loss/train")
    assert summary["status"] == "diverged"
    assert (summary["steps"], summary["first_bad_step"], summary["loss_validation"]) == (7, 7, None)
    assert summary["first_bad_observation"] == "loss/train"


@pytest.mark.parametrize(("evaluated", "expected"), [(5, (5, "loss/validation")), (7, (7, "loss/train"))])
def test_a_validation_loss_that_went_bad_before_the_bad_step_went_bad_first(
    evaluated: int, expected: tuple[int, str]
) -> None:
    table = rows(step=[0, evaluated], loss__validation=[6.0, math.nan])
    summary = Results(10, table).summary(diverged_at=7, first_bad_observation="loss/train")
    assert (summary["first_bad_step"], summary["first_bad_observation"]) == expected
    assert summary["steps"] == 7


def test_a_loss_above_the_first_on_the_way_is_no_divergence() -> None:
    way = rows(step=[0, 5, 10], loss__validation=[6.0, 900.0, 3.0])
    assert Results(10, way).summary(diverged_at=None)["status"] == "finished"


@given(st.lists(st.none() | st.floats(), max_size=8))
def test_extreme_and_final_observations_are_of_the_finite_ones(observed: list[float | None]) -> None:
    table = rows(step=list(range(len(observed))), attention_logit__max=observed, optimizer__gradient_norm=observed)
    summary = Results(10, table).summary(diverged_at=None)
    finite = [value for value in observed if value is not None and math.isfinite(value)]
    assert summary["attention_logit_max"] == max(finite, default=None)
    assert summary["attention_logit_max_final"] == (finite[-1] if finite else None)
    assert summary["gradient_norm_final"] == (finite[-1] if finite else None)
    assert summary["log_z_final"] is None


def test_a_summary_needs_no_rows() -> None:
    assert Results(10, []).summary(diverged_at=0)["status"] == "diverged"
