"""`python -m stability.analyze`: tables of other people, their column names, claims from a file, several sources."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pytest

import stability.analysis
from stability.analysis.definitions import read_definitions
from stability.analyze import main
from stability.errors import InputError
from tests.worlds import Arm, world

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "oec_lr_sweep.csv"
SCHEMA = json.loads((Path(stability.analysis.__file__).parent / "summary.schema.json").read_text())
CLAIMS = """
quantities:
  rms: {metric: output_rms}
claims:
  calm_is_less_sensitive: {kind: sensitivity_below, arm: mode=calm, than: mode=steep}
  rms_is_set_by_the_rate: {kind: set_by_learning_rate, quantity: output_rms, arm: mode=calm}
  no_such_arm: {kind: stable_edge_falls_with_n, arm: mode=absent}
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV of a known world, in columns of the contract."""
    monkeypatch.chdir(tmp_path)
    runs, _ = world(np.random.default_rng(0), arms={"mode=calm": Arm(edge=30.0), "mode=steep": Arm(edge=0.05)})
    columns = {"loss_validation": "loss"}
    path = tmp_path / "runs.csv"
    runs.select("arm", "n_params", "learning_rate", "seed", "loss_validation", "loss_initial", "output_rms").rename(
        columns
    ).write_csv(path)
    return path


def summary(folder: str) -> dict:
    content = json.loads((Path(folder) / "summary.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content


def test_a_table_with_claims_from_a_file(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("claims.yaml").write_text(CLAIMS.replace("quantities:\n  rms: {metric: output_rms}\n", ""))
    assert main(["source=runs.csv", "claims=claims.yaml", "forecast_n_params=1e7,1e8"]) == 0
    found = summary("analysis/runs")
    verdicts = {claim["name"]: claim["verdict"] for claim in found["claims"]}
    assert verdicts == {
        "calm_is_less_sensitive": "holds",
        "rms_is_set_by_the_rate": "holds",
        "no_such_arm": "undecided",
    }
    assert {run["quantities"]["output_rms"] is not None for run in found["runs"]} == {True}
    steep = [row for row in found["forecasts"] if row["arm"] == "mode=steep"]
    assert [(row["held_out"], row["n_params"]) for row in steep] == [(True, 1_600_000), (False, 1e7), (False, 1e8)]
    held_out = steep[0]
    assert held_out["interval"][0] < held_out["value"] < held_out["interval"][1]
    out = capsys.readouterr().out
    assert "calm_is_less_sensitive" in out
    assert "undecided" in out


def test_the_same_table_gives_the_same_file(table: Path) -> None:
    assert main(["source=runs.csv", "output_dir=a"]) == 0
    assert main(["source=runs.csv", "output_dir=b"]) == 0
    assert Path("a/summary.json").read_bytes() == Path("b/summary.json").read_bytes()


def test_columns_by_other_names_and_two_sources(table: Path) -> None:
    runs = pl.read_csv(table)
    parts = {
        "calm.csv": runs.filter(pl.col("arm") == "mode=calm"),
        "steep.csv": runs.filter(pl.col("arm") == "mode=steep"),
    }
    for name, part in parts.items():
        part.rename({"loss": "eval/loss", "learning_rate": "lr"}).write_csv(name)
    names = ["column.loss=eval/loss", "column.learning_rate=lr"]
    assert main(["source=calm.csv,steep.csv", *names]) == 0
    assert main(["source=runs.csv"]) == 0
    both, one = summary("analysis/calm+steep"), summary("analysis/runs")
    assert both["sensitivity"] == one["sensitivity"]
    assert both["sweep"] == "calm+steep"


def test_a_sweep_file_is_a_file_of_claims(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep:\n  question: Why?\n  claims: {it: {kind: stable_edge_falls_with_n}}\n")
    assert read_definitions(path).claims == {"it": {"kind": "stable_edge_falls_with_n"}}
    with pytest.raises(InputError, match=r"claims=.*absent"):
        read_definitions(tmp_path / "absent.yaml")


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference numbers are not beside this checkout")
def test_the_published_rerun_of_this_study(tmp_path: Path) -> None:
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        """claims:
  z_loss_lowers_sensitivity: {kind: sensitivity_below, arm: zloss, than: baseline}
  sensitivity_is_as_high_with_it: {kind: sensitivity_below, arm: baseline, than: zloss}
"""
    )
    names = ["column.learning_rate=lr", "column.loss=test_loss", "column.arm=variant"]
    assert main([f"source={REFERENCE}", *names, f"claims={claims}", f"output_dir={tmp_path / 'out'}"]) == 0
    found = summary(str(tmp_path / "out"))
    published = {16e6: (0.306, 0.054), 29e6: (0.391, 0.033), 57e6: (0.508, 0.235), 109e6: (0.344, 0.118)}
    published[221e6] = (0.412, 0.109)
    ours = {
        (row["n_params"], row["arm"]): row["value"]
        for row in found["sensitivity"]
        if row["estimator"] == "mean_k_minus_1"
    }
    for size, (baseline, zloss) in published.items():
        assert ours[(size, "baseline")] == pytest.approx(baseline, abs=0.002)
        assert ours[(size, "zloss")] == pytest.approx(zloss, abs=0.002)
    assert {claim["name"]: claim["verdict"] for claim in found["claims"]} == {
        "z_loss_lowers_sensitivity": "holds",
        "sensitivity_is_as_high_with_it": "fails",
    }
