"""Early warning: alarms see no later row, find what was put in, and are measured on other runs than chosen on."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

import stability
import stability.alarms
from stability.analysis.alarms import ALARMS, WATCHED, trace_of
from stability.analysis.alarms.evaluation import Case, Example, choose, evaluate, rates
from stability.analysis.alarms.scores import WINDOW, robust_score, steps_to
from stability.errors import InputError
from stability.tracking.files import write_json
from stability.tracking.record import MANIFEST, Row, RunFolder

TENSORS = ("embedding", "head")


def rows(count: int = 40, seed: int = 0, spike: int | None = None, growth: float = 0.0) -> list[Row]:
    """A run's rows, every 10 steps: a falling loss with noise, logits that grow as step^growth, perhaps one spike."""
    random = np.random.default_rng(seed)
    found: list[Row] = [{"step": 0, "loss/validation": 6.0}]
    for i in range(count):
        noise = random.normal(size=8) / 50
        loss = 2 + 3 * math.exp(-i / 8) + noise[0] + (5.0 if i == spike else 0.0)
        found.append(
            {
                "step": 10 * i,
                "loss/train": loss,
                "optimizer/gradient_norm": math.exp(noise[1] + (3.0 if spike is not None and i == spike - 2 else 0)),
                "attention_logit/max": 4 * (1 + 10 * i) ** growth * math.exp(noise[2]),
                "attention_entropy/block_00": 1.5,
                "attention_entropy/block_00/head_00": 0.0,
                "output_logit/log_z_mean": noise[3],
                **{f"update/rms/{name}": 0.3 * math.exp(noise[4 + j]) for j, name in enumerate(TENSORS)},
                **{f"gradient/rms/{name}": 0.01 * math.exp(noise[6 + j]) for j, name in enumerate(TENSORS)},
            }
        )
    return found


def first_steps(run: list[Row]) -> dict[str, int | None]:
    return dict(stability.early_warning(run).select("alarm", "first_step").iter_rows())


@pytest.mark.parametrize("name", ALARMS)
def test_no_later_row_changes_a_score(name: str) -> None:
    run = rows(spike=25, growth=3.0)
    whole = ALARMS[name].score(trace_of(run))
    for end in (3, 9, 26, 33):
        part = ALARMS[name].score(trace_of(run[: end + 1]))  # and the row of the evaluation
        np.testing.assert_array_equal(part, whole[:end])
        wild: list[Row] = [
            {key: (value if key == "step" else 1e9) for key, value in row.items()} for row in run[end + 1 :]
        ]
        np.testing.assert_array_equal(ALARMS[name].score(trace_of(run[: end + 1] + wild))[:end], whole[:end])


def test_a_quiet_run_sets_nothing_off() -> None:
    assert set(first_steps(rows()).values()) == {None}


def test_a_spike_and_what_precedes_it_are_found_where_they_are() -> None:
    found = first_steps(rows(spike=25))
    assert found["loss_spike"] == 250
    assert found["gradient_norm_spike"] == 230
    assert found["attention_logit"] is None


def test_growth_of_the_logit_is_a_power_of_the_step_and_tells_the_time_left() -> None:
    trace = trace_of(rows(count=60, growth=2.0))
    growth = ALARMS["attention_logit_growth"].score(trace)
    assert np.median(growth[20:]) == pytest.approx(2.0, abs=0.3)
    exponential: list[Row] = [
        {"step": i, "loss/train": 2.0, "attention_logit/max": math.exp(0.05 * i)} for i in range(0, 300, 10)
    ]
    left = steps_to(trace_of(exponential), 1e4)
    expected = math.log(1e4) / 0.05 - np.arange(0, 300, 10)
    np.testing.assert_allclose(left[10:], np.maximum(expected[10:], 0.0), atol=1e-6)
    table = stability.early_warning(exponential)
    assert table.columns == ["alarm", "watches", "threshold", "first_step", "score", "steps_to_1e4"]
    (row,) = table.filter(pl.col("alarm") == "attention_logit").rows(named=True)
    assert row["first_step"] == math.ceil(math.log(ALARMS["attention_logit"].threshold) / 0.05 / 10) * 10
    assert row["steps_to_1e4"] == pytest.approx(math.log(1e4) / 0.05 - row["first_step"])


def test_the_robust_score_is_that_of_median_and_mad() -> None:
    x = np.random.default_rng(1).normal(size=60)
    x[7] = np.nan
    scores = robust_score(x, 0.01)
    for t in (6, 20, 59):
        past = x[max(0, t - WINDOW) : t]
        middle = np.nanmedian(past)
        mad = 1.4826 * np.nanmedian(np.abs(past - middle))
        assert scores[t] == pytest.approx((x[t] - middle) / mad)
    assert np.isnan(scores[:6]).all(), "too few rows to tell"
    assert robust_score(np.full(20, 3.0), 0.5)[-1] == 0


def test_a_loss_that_is_not_finite_is_a_spike_and_missing_metrics_are_no_alarm() -> None:
    run: list[Row] = [{"step": i, "loss/train": 2.0 if i < 20 else None} for i in range(22)]
    assert first_steps(run) == {**dict.fromkeys(ALARMS), "loss_spike": 20}
    assert set(first_steps([]).values()) == {None}
    assert set(first_steps(run[:1]).values()) == {None}


def test_a_runs_folder_gives_what_its_rows_give(tmp_path: Path) -> None:
    run = rows(spike=25)
    RunFolder(tmp_path).append(run)
    assert stability.early_warning(tmp_path).equals(stability.early_warning(run))
    with pytest.raises(InputError, match=r"holds no metrics\.jsonl"):
        stability.early_warning(tmp_path / "nowhere")


def test_what_alarms_watch_is_read() -> None:
    names = {name for row in rows() for name in row}
    assert all(any(name.startswith(prefix) for name in names) for prefix in WATCHED)


# --- how often they are right -----------------------------------------------------------------------------------------


def case(score: list[float], *, bad: bool) -> Case:
    steps = np.arange(len(score)) * 10
    return Case(steps, dict.fromkeys(ALARMS, np.array(score, float)), 10 * len(score), 100, bad)


def example(score: list[float], *, unstable: bool = False, spikes: tuple[int, ...] = (), seed: int = 0) -> Example:
    steps, is_spike = np.arange(len(score)) * 10, np.isin(np.arange(len(score)), spikes)
    scores = dict.fromkeys(ALARMS, np.array(score, float))
    return Example(seed, 10 * len(score), steps, scores, unstable, is_spike)


def test_rates_count_misses_false_alarms_and_steps_before_the_end() -> None:
    cases = [
        case([0, 5, 0, 9], bad=True),  # fires at 10 of 40
        case([0, 0, 0, 0], bad=True),
        case([0, 0, 0, 0], bad=False),
        case([6, 0, 0, 0], bad=False),
    ]
    found = rates("log_z", 4.0, cases)
    assert (found["miss"]["count"], found["miss"]["of"]) == (1, 2)
    assert (found["false_alarm"]["count"], found["false_alarm"]["of"]) == (1, 2)
    assert found["lead_steps"] == [30, 30, 30]
    assert found["lead_share_of_run"] == [0.3, 0.3, 0.3]
    assert not found["better_than_chance"]
    assert rates("log_z", 4.0, [*cases[:1] * 40, *cases[2:3] * 40])["better_than_chance"]
    assert rates("log_z", 4.0, cases[:2])["false_alarm"]["rate"] is None


def test_only_the_first_half_of_a_run_foretells_how_it_ends() -> None:
    (one,) = example([0, 1, 2, 9], unstable=True).cases("unstable")
    assert one.is_bad
    assert one.peak("log_z") == 2, "the row at half of the steps counts, later ones do not"
    assert one.end == 40


def test_a_spike_is_foretold_by_the_rows_before_it_and_quiet_windows_are_far_from_any() -> None:
    cases = example(list(range(80)), spikes=(35, 36, 70)).cases("spike")
    bad = [(int(one.steps[0]), one.end) for one in cases if one.is_bad]
    assert bad == [(250, 350), (600, 700)], "a spike in the wake of another is none of its own"
    quiet = [(int(one.steps[0]), int(one.steps[-1])) for one in cases if not one.is_bad]
    assert quiet == [(0, 90), (100, 190), (400, 490), (500, 590)]


def test_a_threshold_separates_what_can_be_separated_and_there_is_none_without_both_kinds() -> None:
    cases = [*(case([i], bad=False) for i in range(5)), *(case([i], bad=True) for i in (8, 9))]
    assert choose("log_z", cases) == 6.0
    assert choose("log_z", cases[:5]) is None
    assert choose("log_z", cases[5:]) is None


def test_runs_that_both_sides_have_are_not_measured_on() -> None:
    good, bad = example([0, 0]), example([9, 0], unstable=True)
    sweeps = {"a": {"1": good, "2": bad}, "b": {"1": good, "2": bad, "3": good, "4": bad, "5": good}}
    found = evaluate(sweeps, ["a"])["outcomes"]["unstable"]
    assert found["split_by"] == "sweeps"
    assert found["measured_on"] == {"cases": 3, "bad": 1}
    assert found["alarms"][0]["measured"]["false_alarm"]["of"] == 2
    with pytest.raises(InputError, match="leaves no sweep on one side"):
        evaluate(sweeps, ["a", "b"])


def test_where_one_side_has_nothing_bad_the_seeds_are_split() -> None:
    good = {str(seed): example([0, 0], seed=seed) for seed in (0, 1, 2)}
    bad = {f"bad {seed}": example([9, 0], unstable=True, seed=seed) for seed in (0, 1, 2)}
    found = evaluate({"a": good, "b": bad}, ["a"])["outcomes"]["unstable"]
    assert found["split_by"] == "seeds"
    assert (found["chosen_on"], found["measured_on"]) == ({"cases": 2, "bad": 1}, {"cases": 4, "bad": 2})


def sweep_folder(path: Path, seeds: tuple[int, ...]) -> None:
    """Results of one arm at one size whose highest learning rate fails, with logits that grow."""
    settings = {"model": {"width": 8, "depth": 1, "head_dim": 8, "mlp_ratio": 4}, "data": {"seed": None}}
    names = []
    for seed in seeds:
        for rate, loss, growth in ((0.01, 2.0, 0.0), (0.1, 2.1, 0.0), (1.0, 4.0, 3.0)):
            name = f"{path.name}-{rate}-{seed}"
            folder = RunFolder(path / "runs" / name)
            config = {**settings, "optimizer": {"learning_rate": rate}, "seed": seed}
            folder.begin(config, name, {"device": "none"})
            folder.append(rows(seed=seed, growth=growth))
            result = {"fingerprint": name, "status": "finished", "steps": 400, "n_params": 768, "seed": seed}
            losses = {"loss_initial": 6.0, "loss_validation": loss}
            folder.write_summary({**result, "data_seed": seed, "learning_rate": rate, **losses})
            names.append(name)
    scales: dict[str, Any] = {"w8": {"model.width": 8}}
    write_json(path / MANIFEST, {"schema_version": 1, "sweep": path.name, "scales": scales, "runs": names})


def test_the_command_measures_folders_and_writes_the_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seeds in (("one", (0, 1)), ("two", (2, 3))):
        sweep_folder(tmp_path / "results" / name, seeds)
    output = tmp_path / "rates.json"
    assert stability.alarms.main([f"source={tmp_path / 'results'}", f"output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "unstable: 2 of 6 cases" in printed
    found = json.loads(output.read_text())
    assert (found["chosen_on"], found["measured_on"]) == (["one"], ["two"])
    alarms = {alarm["alarm"]: alarm for alarm in found["outcomes"]["unstable"]["alarms"]}
    assert alarms.keys() == ALARMS.keys()
    logit = alarms["attention_logit"]["measured"]
    assert (logit["miss"]["rate"], logit["false_alarm"]["rate"]) == (0, 0)
    assert alarms["attention_entropy"]["measured"] is None, "the same in all runs: nothing to choose"


def test_the_analysis_tells_what_fired_in_which_run_when_asked(tmp_path: Path) -> None:
    sweep_folder(tmp_path / "one", (0, 1))
    settings: dict[str, Any] = {"figure_formats": (), "report": True}
    quiet = stability.analyze(tmp_path / "one", tmp_path / "out", **settings)
    assert quiet["early_warning"] is None
    assert "Early warning" not in (tmp_path / "out/report.html").read_text()
    told = stability.analyze(tmp_path / "one", tmp_path / "out", early_warning=True, **settings)
    fired = {(row["fingerprint"], row["alarm"]) for row in told["early_warning"]}
    assert {("one-1.0-0", "attention_logit"), ("one-1.0-1", "attention_logit")} <= fired
    assert not [run for run, _ in fired if not run.startswith("one-1.0")]
    schema = json.loads((Path(stability.__file__).parent / "analysis/summary.schema.json").read_text())
    jsonschema.validate(told, schema)
    assert "Early warning" in (tmp_path / "out/report.html").read_text()
