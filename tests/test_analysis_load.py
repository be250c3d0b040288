"""Records and CSV files become one table, or an InputError that says what to mend."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.analysis import COLUMNS, load, read
from stability.analysis.load import size_name, size_names
from stability.errors import InputError
from stability.tracking import files, record

SCALES = {"w32": {"model.width": 32, "model.depth": 2}, "w64": {"model.width": 64, "model.depth": 2}}


def config(width: int = 32, learning_rate: float = 0.01, seed: int = 0, norm: str = "none") -> dict[str, Any]:
    return {
        "model": {"width": width, "depth": 2, "head_dim": 16, "mlp_ratio": 4, "qk_layernorm": norm},
        "optimizer": {"learning_rate": learning_rate},
        "seed": seed,
        "data": {"seed": None},
    }


def add_run(sweep: Path, fingerprint: str, settings: dict[str, Any], **summary: Any) -> Path:
    folder = record.RunFolder(sweep / "runs" / f"run-{fingerprint}")
    folder.begin(settings, fingerprint, {"device": "cpu"})
    if summary:
        folder.write_summary({"fingerprint": fingerprint, **summary})
    return folder.path


def result(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "n_params": 12 * 2 * settings["model"]["width"] ** 2,
        "learning_rate": settings["optimizer"]["learning_rate"],
        "seed": settings["seed"],
        "data_seed": settings["seed"],
        "steps": 500,
        "loss_initial": 6.0,
        "loss_validation": 2.0,
        "attention_logit_max": 30,
        "attention_logit_max_final": 20.5,
        "first_bad_step": None,
        "tokens_seen": 1024,
        **changes,
    }


def manifest(sweep: Path, runs: list[str], **more: Any) -> None:
    sweep.mkdir(exist_ok=True)
    files.write_json(
        sweep / "sweep.json",
        {"schema_version": 1, "sweep": sweep.name, "question": "does it?", "scales": SCALES, "runs": runs, **more},
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    manifest(folder, ["a", "b", "c", "d"])
    add_run(folder, "b", config(64), **result(config(64), status="diverged", loss_validation=None))
    add_run(folder, "a", config(32), **result(config(32)))
    add_run(folder, "c", config(32, norm="per_head", seed=3))
    return folder


class TestFolder:
    def test_one_row_a_run_with_derived_scale_and_arm(self, sweep: Path) -> None:
        table = load(sweep)
        assert dict(table.schema) == {name: dtype() for name, dtype in COLUMNS.items()}
        assert table.select("fingerprint", "folder", "scale", "arm", "status").rows() == [
            ("a", "runs/run-a", "w32", "qk_layernorm=none", "finished"),
            ("b", "runs/run-b", "w64", "qk_layernorm=none", "diverged"),
            ("c", "runs/run-c", "w32", "qk_layernorm=per_head", "running"),
        ]

    def test_running_run_takes_its_identity_from_the_config(self, sweep: Path) -> None:
        row = load(sweep).filter(fingerprint="c").row(0, named=True)
        assert (row["n_params"], row["learning_rate"], row["seed"], row["data_seed"]) == (24576, 0.01, 3, 3)
        assert row["steps"] is None
        assert row["loss_validation"] is None

    def test_complete_when_every_planned_run_has_a_result(self, sweep: Path) -> None:
        source = read(sweep)
        assert not source.complete
        assert source.sweep == "demo"
        assert source.warnings == (
            "2 of 4 planned runs have no result yet and are not counted (not started: 1, running: 1).",
        )
        manifest(sweep, ["a", "b"])
        assert not read(sweep).complete, "a run that an earlier command left unfinished counts"
        shutil.rmtree(sweep / "runs" / "run-c")
        assert read(sweep).complete
        assert read(sweep).warnings == ()

    def test_a_sweep_without_runs_is_an_empty_table(self, tmp_path: Path) -> None:
        manifest(tmp_path, [])
        assert load(tmp_path).is_empty()

    def test_a_folder_that_is_no_sweep(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"sweep\.json") as caught:
            load(tmp_path)
        assert caught.value.key == "source"

    @pytest.mark.parametrize("name", ["summary.json", "config.json"])
    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1}', b"\xff".decode("latin1")]
    )
    def test_damaged_run_files_are_named(self, sweep: Path, name: str, text: str) -> None:
        path = sweep / "runs" / "run-a" / name
        path.write_text(text)
        with pytest.raises(InputError, match=name) as caught:
            load(sweep)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(("key", "value"), [("n_params", "big"), ("status", "happy"), ("seed", 1.5)])
    def test_fields_of_a_wrong_type_are_named(self, sweep: Path, key: str, value: object) -> None:
        add_run(sweep, "a", config(), **{**result(config()), key: value})
        with pytest.raises(InputError, match=f"`{key}`"):
            load(sweep)

    def test_config_keys_that_are_missing_are_named_as_the_config_has_them(self, sweep: Path) -> None:
        broken = config()
        del broken["optimizer"]
        add_run(sweep, "a", broken)
        with pytest.raises(InputError, match=r"`optimizer\.learning_rate`"):
            load(sweep)

    def test_missing_config_and_damaged_manifest(self, sweep: Path) -> None:
        (sweep / "runs" / "run-a" / "config.json").unlink()
        with pytest.raises(InputError, match=r"config\.json"):
            load(sweep)
        files.write_json(sweep / "sweep.json", {"schema_version": 1})
        with pytest.raises(InputError, match=r"sweep\.json"):
            load(sweep)

    def test_one_run_in_two_folders(self, sweep: Path) -> None:
        (sweep / "runs" / "run-a").rename(sweep / "runs" / "copy-a")
        add_run(sweep, "a", config(), **result(config()))
        with pytest.raises(InputError, match="copy-a"):
            load(sweep)


def add_rows(run: Path, steps: range, scale: float = 1.0) -> None:
    record.RunFolder(run).append({"step": step, "tokens": step, "logit": scale * step} for step in steps)


class TestQuantities:
    """Of records; tests/test_quantities.py holds what a quantity is."""

    @pytest.fixture
    def observed(self, sweep: Path) -> Path:
        declared = {"early": {"metric": "logit", "at_step": 95}, "late": {"metric": "logit", "last_steps": 20}}
        manifest(sweep, ["a", "b", "c"], quantities=declared)
        add_rows(sweep / "runs" / "run-a", range(0, 501, 10))
        add_rows(sweep / "runs" / "run-b", range(0, 61, 10), -1.0)
        return sweep

    def test_the_manifest_declares_them_and_the_caller_may_say_otherwise(self, observed: Path) -> None:
        source = read(observed)
        assert source.table.columns == [*COLUMNS, "early", "late"]
        assert source.table.select("fingerprint", "early", "late").rows() == [
            ("a", 90.0, 500.0),
            ("b", None, None),
            ("c", None, None),
        ]
        own = {
            "late": {"metric": "logit", "last_steps": 400, "reduce": "min"},
            "top": {"metric": "logit", "reduce": "max"},
        }
        table = load(observed, quantities=own)
        assert table.select("fingerprint", "early", "late", "top").rows() == [
            ("a", 90.0, 110.0, 500.0),
            ("b", None, None, 0.0),
            ("c", None, None, None),
        ]

    def test_a_metric_that_no_run_has_is_pointed_out(self, observed: Path) -> None:
        source = read(observed, quantities={"x": {"metric": "logits"}, "y": {"metric": "logit", "at_step": 10**6}})
        assert source.table["x"].null_count() == source.table["y"].null_count() == 3
        assert [line for line in source.warnings if "quantity" in line] == [
            "No run has the metric logits of the quantity x, which is null everywhere; did you mean logit?",
            "The quantity y is null everywhere: no run has a finite value of logit at the steps that it asks for.",
        ]

    @pytest.mark.parametrize("bad", [{"early": {"metric": "a", "at": 3}}, {"loss": {"metric": "a"}}])
    def test_a_manifest_that_declares_nonsense_is_named(self, sweep: Path, bad: dict[str, Any]) -> None:
        manifest(sweep, [], quantities=bad)
        with pytest.raises(InputError, match="in the manifest of") as caught:
            load(sweep)
        assert caught.value.key.startswith("quantities.")

    @pytest.mark.parametrize("key", ["quantities", "claims"])
    def test_parts_of_the_manifest_of_a_wrong_type_are_named(self, sweep: Path, key: str) -> None:
        manifest(sweep, [], **{key: {"x": 3}})
        with pytest.raises(InputError, match=f"`{key}.x"):
            load(sweep)

    def test_a_damaged_metrics_file_is_named(self, observed: Path) -> None:
        (observed / "runs" / "run-a" / "metrics.jsonl").write_text('{"step": 700, "logit": "high"}\n')
        with pytest.raises(InputError, match=r"run-a/metrics\.jsonl"):
            load(observed)


class TestSeveral:
    @pytest.fixture
    def other(self, tmp_path: Path, sweep: Path) -> Path:
        """Another sweep of the same runs' kind: one arm that the first has too, at a seed of its own."""
        folder = tmp_path / "more"
        manifest(folder, ["e"], claims={"c": {"kind": "k"}})
        settings = config(32, seed=7) | {"optimizer": {"learning_rate": 0.01, "eps": 1e-15}}
        add_run(folder, "e", settings, **result(settings))
        return folder

    def test_arms_are_what_sets_runs_apart_over_all_folders(self, sweep: Path, other: Path) -> None:
        assert load(other)["arm"].to_list() == ["default"]
        source = read([sweep, str(other)])
        assert source.sweep == "demo+more"
        assert not source.complete
        assert source.claims == {"c": {"kind": "k"}}
        assert source.table.select("fingerprint", "folder", "arm").sort("fingerprint").rows() == [
            ("a", f"{sweep.as_posix()}/runs/run-a", "qk_layernorm=none, eps=null"),
            ("b", f"{sweep.as_posix()}/runs/run-b", "qk_layernorm=none, eps=null"),
            ("c", f"{sweep.as_posix()}/runs/run-c", "qk_layernorm=per_head, eps=null"),
            ("e", f"{other.as_posix()}/runs/run-e", "qk_layernorm=none, eps=1e-15"),
        ]
        assert source.warnings == (
            "2 of 5 planned runs have no result yet and are not counted (not started: 1, running: 1).",
        )

    def test_order_of_the_sources_changes_only_the_name(self, sweep: Path, other: Path) -> None:
        one, two = read([sweep, other]), read([other, sweep])
        assert one.table.equals(two.table)
        assert (one.sweep, two.sweep) == ("demo+more", "more+demo")

    def test_a_run_in_two_folders_counts_once(self, sweep: Path, other: Path) -> None:
        shutil.copytree(sweep / "runs" / "run-a", other / "runs" / "copy-a")
        source = read([sweep, other])
        assert source.table.filter(fingerprint="a").height == 1
        assert any("1 runs are in more than one source" in warning for warning in source.warnings)

    def test_a_run_that_another_folder_has_finished_is_finished(self, sweep: Path, other: Path) -> None:
        settings = config(32, norm="per_head", seed=3)
        add_run(other, "c", settings, **result(settings))
        for sources in ([sweep, other], [other, sweep]):
            assert load(sources).filter(fingerprint="c")["status"].to_list() == ["finished"]

    def test_a_run_with_two_results_is_refused(self, sweep: Path, other: Path) -> None:
        add_run(other, "a", config(), **result(config(), loss_validation=2.5))
        with pytest.raises(InputError, match=r"run-a .*than in") as caught:
            load([sweep, other])
        assert (caught.value.key, caught.value.value) == ("fingerprint", "a")

    def test_ladders_that_contradict_each_other_are_refused(self, sweep: Path, other: Path) -> None:
        manifest(other, [], scales={"w32": {"model.width": 48}})
        with pytest.raises(InputError, match="w32"):
            load([sweep, other])

    def test_one_name_with_two_meanings_is_refused(self, sweep: Path, other: Path) -> None:
        manifest(sweep, [], quantities={"q": {"metric": "a"}})
        manifest(other, [], quantities={"q": {"metric": "b"}})
        with pytest.raises(InputError) as caught:
            load([sweep, other])
        assert caught.value.key == "quantities.q"
        assert "q" in load([sweep, other], quantities={"q": {"metric": "a"}}).columns

    def test_folders_and_tables_together(self, tmp_path: Path, sweep: Path) -> None:
        add_rows(sweep / "runs" / "run-a", range(0, 501, 10))
        path = write(
            tmp_path / "t.csv", "n_params,learning_rate,loss,logit,arm\n24576,0.1,2,5,theirs\n2400000,0.1,2,,theirs\n"
        )
        source = read([sweep, path], quantities={"logit": {"metric": "logit", "at_step": 500}})
        assert source.sweep == "demo+t"
        assert source.table.select("folder", "scale", "arm", "logit").rows() == [
            (f"{sweep.as_posix()}/runs/run-a", "w32", "qk_layernorm=none", 500.0),
            (f"{sweep.as_posix()}/runs/run-b", "w64", "qk_layernorm=none", None),
            (f"{sweep.as_posix()}/runs/run-c", "w32", "qk_layernorm=per_head", None),
            (str(path), "24.6k", "theirs", None),
            (str(path), "2.4M", "theirs", None),
        ]

    def test_tables_together(self, tmp_path: Path) -> None:
        one = write(tmp_path / "one.csv", "n_params,learning_rate,loss,x\n1000001,0.1,2,1\n")
        two = write(tmp_path / "two.csv", "n_params,lr,loss\n1000002,0.1,2\n")
        source = read([one, two], aliases={"learning_rate": "lr"})
        assert source.table.select("scale", "x").rows() == [("1.000001M", 1.0), ("1.000002M", None)]
        write(two, "n_params,lr,loss\n1e6,0.1,2\n1000001,0.1,2\n")
        with pytest.raises(InputError, match=r"line 3 of .*two\.csv") as caught:
            load([one, two], aliases={"learning_rate": "lr"})
        assert "line 2" in str(caught.value)

    def test_a_run_of_a_table_that_is_one_of_a_folder(self, tmp_path: Path, sweep: Path) -> None:
        text = "n_params,learning_rate,loss,arm,scale\n24576,0.01,2,qk_layernorm=none,w32\n"
        with pytest.raises(InputError, match=r"run-a"):
            load([sweep, write(tmp_path / "t.csv", text)])

    @pytest.mark.parametrize("sources", [[], ["demo", "demo"], ["demo", "demo/../demo"], ["demo", "nowhere"]])
    def test_sources_that_are_none(self, tmp_path: Path, sweep: Path, sources: list[str]) -> None:
        with pytest.raises(InputError) as caught:
            load([tmp_path / one for one in sources])
        assert caught.value.key == "source"

    def test_aliases_are_for_tables(self, sweep: Path) -> None:
        with pytest.raises(InputError, match="no source is one"):
            load(sweep, aliases={"loss": "test_loss"})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestCsv:
    def test_required_columns_only(self, tmp_path: Path) -> None:
        source = read(write(tmp_path / "t.csv", "learning_rate,n_params,loss\n3e-3,2.4e6,2.5\n\n1e-3,2400000,3\n"))
        assert (source.sweep, source.complete, source.warnings) == ("t", True, ())
        assert source.table.select("arm", "scale", "n_params", "learning_rate", "seed", "status").rows() == [
            ("default", "2.4M", 2_400_000, 0.001, 0, "finished"),
            ("default", "2.4M", 2_400_000, 0.003, 0, "finished"),
        ]
        assert source.table["fingerprint"].is_null().all()

    @pytest.mark.parametrize(
        ("loss", "initial", "status", "value"),
        [
            ("nan", "9", "diverged", None),
            ("inf", "", "diverged", None),
            ("", "nan", "diverged", None),
            ("9.5", "9", "diverged", 9.5),
            ("9", "9", "finished", 9.0),
            ("9.5", "", "finished", 9.5),
        ],
    )
    def test_status(self, tmp_path: Path, loss: str, initial: str, status: str, value: float | None) -> None:
        path = write(tmp_path / "t.csv", f"n_params,learning_rate,loss,loss_initial\n10,1,{loss},{initial}\n")
        assert load(path).select("status", "loss_validation").row(0) == (status, value)

    def test_optional_columns_byte_order_mark_and_unknown_ones(self, tmp_path: Path) -> None:
        header = "\ufeffn_params,learning_rate,loss,arm,seed,loss_initial,attention_logit_max,extra,more"
        source = read(write(tmp_path / "t.csv", f'{header}\n10,1,2,"a, b",7,9,1e5,x,y\n'))
        row = source.table.row(0, named=True)
        assert (row["arm"], row["seed"], row["loss_initial"], row["attention_logit_max"]) == ("a, b", 7, 9.0, 1e5)
        assert source.warnings == ("Columns of t.csv that were not used: extra, more.",)

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ("x,1,2,0", "n_params"),
            ("10.5,1,2,0", "n_params"),
            ("-10,1,2,0", "n_params"),
            ("0,1,2,0", "n_params"),
            (",1,2,0", "n_params"),
            ("inf,1,2,0", "n_params"),
            ("1e30,1,2,0", "n_params"),
            ("10,0,2,0", "learning_rate"),
            ("10,-1,2,0", "learning_rate"),
            ("10,inf,2,0", "learning_rate"),
            ("10,nan,2,0", "learning_rate"),
            ("10,,2,0", "learning_rate"),
            ("10,fast,2,0", "learning_rate"),
            ("10,1,low,0", "loss"),
            ("10,1,2,0.5", "seed"),
        ],
    )
    def test_bad_cells_are_named_by_line(self, tmp_path: Path, line: str, key: str) -> None:
        path = write(tmp_path / "t.csv", f"n_params,learning_rate,loss,seed\n10,1,2,9\n\n{line}\n")
        with pytest.raises(InputError, match="line 4") as caught:
            load(path)
        assert caught.value.key == key

    def test_duplicates_name_both_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "n_params,learning_rate,loss\n10,0.1,2\n10,1,2\n1e1,1e-1,3\n")
        with pytest.raises(InputError, match="lines 2 and 4"):
            load(path)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "empty"),
            (b"\n", "empty"),
            (b"n_params,learning_rate,loss\n", "no runs"),
            (b"n_params,lr,loss\n1,1,1\n", "learning_rate"),
            (b"n_params,learning_rate,loss\n1,1\n", "line 2"),
            (b"n_params,learning_rate,loss\n1,1,1,1\n", "line 2"),
            (b"n_params,learning_rate,loss,loss\n1,1,1,1\n", "twice"),
            (b"n_params,learning_rate,loss\n\xff,1,1\n", "UTF-8"),
            (b'n_params,learning_rate,loss\n"1,1,1\n', "CSV"),
        ],
    )
    def test_files_that_are_no_table(self, tmp_path: Path, content: bytes, match: str) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes(content)
        with pytest.raises(InputError, match=match):
            load(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            load(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("size", "name"),
    [(7, "7"), (999, "999"), (24_576, "24.6k"), (2_400_000, "2.4M"), (999_999_999, "1B"), (1_200_000_000, "1.2B")],
)
def test_size_name(size: int, name: str) -> None:
    assert size_name(size) == name


@given(st.sets(st.integers(1, 2**63 - 1), min_size=1, max_size=8))
def test_different_sizes_have_different_names(sizes: set[int]) -> None:
    assert len(set(size_names(sizes).values())) == len(sizes)


def test_table_is_sorted(tmp_path: Path) -> None:
    lines = [f"{n},{lr},2,{arm}" for n in (20, 3) for lr in (1, 0.1) for arm in "ba"]
    table = load(write(tmp_path / "t.csv", "n_params,learning_rate,loss,arm\n" + "\n".join(lines)))
    assert table.equals(table.sort("arm", "n_params", "learning_rate", "seed"))
    assert json.dumps(table["n_params"].to_list()) == json.dumps([3, 3, 20, 20] * 2)
    assert isinstance(table, pl.DataFrame)
