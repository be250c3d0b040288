"""What `analyze` writes: the contract of summary.json, the figures, the table for the terminal; and no JAX."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import polars as pl
import pytest

from stability.analysis import analyze, figures, format_table, load, sensitivity, summary
from stability.errors import InputError
from stability.tracking import files, record

SCHEMA = json.loads((Path(summary.__file__).parent / "summary.schema.json").read_text(encoding="utf-8"))
HEADER = "n_params,learning_rate,loss,arm,seed,loss_initial,attention_logit_max\n"


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def csv(tmp_path: Path, name: str = "demo.csv", wild: bool = True) -> Path:
    """Two arms, two sizes, two seeds, four LRs; the arm `none` goes wrong at 0.3 with the larger model."""
    lines = [
        f"{n},{rate},{'nan' if wild and (arm, n, rate) == ('none', 9000, 0.3) else loss + seed / 25},{arm},{seed},6,"
        f"{logit}"
        for n in (2000, 9000)
        for rate, loss, logit in ((0.003, 2.5, 5), (0.01, 2, 20), (0.03, 2.1, 2e3), (0.3, 2.4, 5e5))
        for arm in ("none", "per_head")
        for seed in (0, 1)
    ]
    path = tmp_path / name
    path.write_text(HEADER + "\n".join(lines), encoding="utf-8")
    return path


def written(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "summary.json").read_text(), parse_constant=no_constants)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content


def folder_of(tmp_path: Path) -> Path:
    sweep = tmp_path / "sweep"
    config = {
        "model": {"width": 32, "depth": 2, "head_dim": 16, "mlp_ratio": 4},
        "optimizer": {"learning_rate": 0.01},
        "seed": 0,
        "data": {"seed": None},
    }
    record.RunFolder(sweep / "runs" / "run-a").begin(config, "a", {})
    files.write_json(
        sweep / "sweep.json", {"schema_version": 1, "sweep": "one", "question": "?", "scales": {}, "runs": ["a"]}
    )
    return sweep


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_csv_to_summary_and_figures(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = analyze(csv(tmp_path), out)
    assert written(out) == result
    assert (result["sweep"], result["complete"], len(result["runs"])) == ("demo", True, 32)
    assert len(result["sensitivity"]) == 2 * 2 * 3
    assert {(e["arm"], e["n_params"]): (e["lower"], e["upper"]) for e in result["max_stable_learning_rate"]} == {
        ("none", 2000): (0.3, None),
        ("none", 9000): (0.03, 0.3),
        ("per_head", 2000): (0.3, None),
        ("per_head", 9000): (0.3, None),
    }
    names = (
        "loss_by_learning_rate",
        "attention_logit_max_by_learning_rate",
        "sensitivity_by_n_params",
        "stable_edge_by_n_params",
    )
    assert sorted(path.name for path in (out / "analysis").iterdir()) == sorted(
        f"{n}.{e}" for n in names for e in ("svg", "pdf", "png")
    )
    for name in names:
        assert (out / "analysis" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "analysis" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / "analysis" / f"{name}.svg").read_text().startswith("<svg")
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_analysing_again_replaces_and_drops_figures_without_data(tmp_path: Path) -> None:
    out = tmp_path / "out"
    analyze(csv(tmp_path), out)
    one = tmp_path / "demo.csv"
    one.write_text("n_params,learning_rate,loss\n10,0.1,2\n")
    result = analyze(one, out)
    assert written(out) == result
    assert {path.stem for path in (out / "analysis").iterdir()} == {"loss_by_learning_rate", "stable_edge_by_n_params"}
    (out / "analysis" / "mine.txt").write_text("kept")
    assert analyze(one, out, figure_formats=["svg"], report=False) == result
    assert {path.name for path in (out / "analysis").iterdir()} == {
        "loss_by_learning_rate.svg",
        "stable_edge_by_n_params.svg",
        "mine.txt",
    }
    assert not (out / "report.html").exists(), "one from an earlier analysis would show what is no longer so"
    assert format_table(result).splitlines()[-1].split() == ["10", "-", "0.1", "(end", "of", "grid)", "≥", "0.1", "-"]


@pytest.mark.parametrize(
    "rows",
    [
        "10,0.1,nan,,,,\n10,0.3,nan,,,,\n",  # all diverged, l0 unknown
        "10,0.1,nan,,,5,\n10,0.3,nan,,,5,\n",
        "10,0.1,2,,,5,-3\n10,0.3,3,,,5,0\n",  # logits that a logarithmic axis cannot show
        "10,0.1,2,,,,\n10,0.3,nan,,,,7\n",
        "10,0.1,2,a,,5,\n20,0.1,2,b,,5,\n",
    ],
)
def test_degenerate_tables_have_a_result(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(HEADER + rows)
    result = analyze(path, tmp_path)
    assert written(tmp_path) == result
    assert format_table(result)


def test_a_sweep_without_results_yet(tmp_path: Path) -> None:
    sweep = folder_of(tmp_path)
    result = analyze(sweep, sweep)
    assert written(sweep) == result
    assert not result["complete"]
    assert result["max_stable_learning_rate"][0]["lower"] is None
    assert list((sweep / "analysis").iterdir()) == []
    assert len(load(sweep)) == 1  # the summary beside the records does not disturb them
    assert format_table(result).splitlines()[-1].split()[1:] == ["24.6k", "-", "-", "-", "-"]


@pytest.mark.parametrize("content", ['{"schema_version": 1, "sweep": "other"}', "{", "[]", '{"fingerprint": "a"}'])
def test_the_folder_of_another_sweep_is_left_alone(tmp_path: Path, content: str) -> None:
    source, out = csv(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text(content)
    with pytest.raises(InputError) as caught:
        analyze(source, out)
    assert caught.value.key == "output_dir"
    assert [path.name for path in out.iterdir()] == ["summary.json"]
    assert (out / "summary.json").read_text() == content


@pytest.mark.parametrize("options", [{"unstable_excess": 0.0}, {"learning_rate_min": -1.0}, {"learning_rate_max": 0.0}])
def test_bad_arguments_write_nothing(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        analyze(csv(tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    source = csv(tmp_path)
    with pytest.raises(InputError, match="output_dir"):
        analyze(source, source / "out")


def test_format_table(tmp_path: Path) -> None:
    lines = format_table(analyze(csv(tmp_path), tmp_path, figure_formats=(), report=False)).splitlines()
    assert lines == [
        "scale  arm       sensitivity (mean)    best LR  highest stable LR         max attention logit",
        "-----  --------  --------------------  -------  ------------------------  -------------------",
        "2k     none      0.250 [0.220, 0.280]    0.014  ≥ 0.3                                 5.0e+05",
        "       per_head  0.250 [0.220, 0.280]    0.014  ≥ 0.3                                 5.0e+05",
        "9k     none      1.145 [1.117, 1.173]    0.014  0.03 (unstable from 0.3)              5.0e+05",
        "       per_head  0.250 [0.220, 0.280]    0.014  ≥ 0.3                                 5.0e+05",
    ]


def test_charts_say_only_what_there_is_to_see(tmp_path: Path) -> None:
    table = load(csv(tmp_path))
    crossed = figures.loss_by_learning_rate(table)
    calm = figures.loss_by_learning_rate(load(csv(tmp_path, "calm.csv", wild=False)).filter(pl.col("seed") == 0))
    assert crossed is not None
    assert calm is not None
    assert crossed.to_dict()["title"]["subtitle"] == "line: mean over seeds, band: their range; cross: diverged run"
    assert "subtitle" not in calm.to_dict()["title"]
    assert figures.attention_logit_max_by_learning_rate(table.drop("attention_logit_max")) is None
    assert figures.sensitivity_by_n_params(sensitivity(table.clear())) is None


def test_a_large_sweep_can_be_drawn(tmp_path: Path) -> None:
    """More rows than Altair takes unasked."""
    seeds = pl.DataFrame({"seed": range(400)})
    table = load(csv(tmp_path)).filter(pl.col("seed") == 0).drop("seed").join(seeds, how="cross")
    chart = figures.loss_by_learning_rate(table)
    assert chart is not None
    figures.save_all({"large": figures.specification(chart)}, tmp_path, ["svg"])
    assert (tmp_path / "large.svg").stat().st_size > 10_000


def test_no_jax() -> None:
    code = "import sys, stability.analysis; print([name for name in ('jax', 'jaxlib', 'flax') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
