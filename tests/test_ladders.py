"""Every sweep on every ladder: it composes, plans and states claims that the records can answer; the ladders' sizes."""

import dataclasses
import functools

import pytest

from stability.analysis.claims import Claim, parse_claims
from stability.analysis.claims.vocabulary import Curve
from stability.analysis.quantities import parse_quantities
from stability.command_line import config_folders
from stability.config import resolve, validate
from stability.launching.describe import describe
from stability.launching.devices import Layout
from stability.launching.grid import Request
from stability.launching.memory import Budget, state_bytes
from stability.launching.plan import PlannedRun, plan_runs
from tests.test_interventions import compose

SWEEPS = sorted(path.stem for path in (config_folders().sweeps / "sweep").glob("*.yaml"))
LADDERS = sorted(path.stem for path in (config_folders().sweeps / "ladder").glob("*.yaml"))
EXPERIMENTS = {
    *("qk_layernorm", "z_loss", "warmup", "weight_decay_coupling", "width_vs_depth", "mup", "attention_scale"),
    *("total_steps", "qk_layernorm_scope", "batch_size", "weight_decay", "pointwise_attention", "rms_scaled_lr"),
    *("logit_growth_forecast", "logit_cap", "gradient_rms", "adam_epsilon", "output_norm"),
}
"""One sweep for each experiment of arXiv 2309.14322."""
WITHOUT_A_COLUMN = {"loss", "sensitivity", "attention_logit_max", "attention_logit_max_final"}
"""Quantities that every table of runs has, or that are made of it."""


@functools.cache
def planned(sweep: str, ladder: str) -> tuple[Request, tuple[PlannedRun, ...]]:
    request = compose(f"+sweep={sweep}", f"ladder={ladder}")
    configs = [resolve(config, corpus="test", vocabulary_size=256) for config in request.configs]
    return request, plan_runs(configs, request.ladder.scales)


def test_every_experiment_of_the_paper_has_a_sweep_and_there_are_three_ladders() -> None:
    assert set(SWEEPS) >= EXPERIMENTS
    assert set(LADDERS) >= {"micro", "mini", "paper"}


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_it_plans_and_its_claims_speak_of_arms_scales_and_quantities_that_there_are(sweep: str, ladder: str) -> None:
    request, runs = planned(sweep, ladder)
    for run in runs:
        validate(run.config)
    assert len({run.fingerprint for run in runs}) == len(runs)
    assert request.question.endswith("?")
    named = {scale for series in request.ladder.series.values() for scale in series}
    assert {run.scale for run in runs} <= named
    quantities = {*parse_quantities(request.definition.quantities), *WITHOUT_A_COLUMN}
    arms = {run.arm for run in runs}
    scales = {run.scale for run in runs}
    for name, claim in parse_claims(request.definition.claims).items():
        for arm in arms_named(claim):
            fitting = [label for label in arms if set(arm.split(", ")) <= set(label.split(", "))] if arm else list(arms)
            assert len(fitting) == 1, f"{name}: {arm!r} fits {fitting} of {arms}"
        assert quantities_named(claim) <= quantities, name
        assert scales_named(claim) <= scales, name


def arms_named(claim: Claim) -> list[str]:
    """Every arm that a claim names, "" where it means the only one."""
    values = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim)}
    if isinstance(values.get("curve"), Curve):
        return [values["curve"].arm, values["than"].arm]
    if values.get("arms"):
        return list(values["arms"])
    return [values[key] for key in ("arm", "than") if key in values and (key == "arm" or values[key])]


def quantities_named(claim: Claim) -> set[str]:
    curves = [getattr(claim, key, None) for key in ("curve", "than")]
    found = {one.quantity for one in curves if isinstance(one, Curve)}
    return found | {value for key in ("quantity", "than_quantity") if (value := getattr(claim, key, ""))}


def scales_named(claim: Claim) -> set[str]:
    parts = [claim, *(one for key in ("curve", "than") if isinstance(one := getattr(claim, key, None), Curve))]
    given = [part.scales for part in parts if not isinstance(getattr(part, "scales", "every"), str)]
    return {scale for scales in given for scale in scales}


@pytest.mark.parametrize("sweep", sorted(EXPERIMENTS))
def test_it_names_its_source_its_claims_and_what_to_expect_at_each_ladder(sweep: str) -> None:
    definition = planned(sweep, "micro")[0].definition
    assert "arXiv 2309.14322" in definition.source
    assert definition.claims
    assert {"micro", "mini", "paper"} <= set(definition.expect)


def test_the_paper_ladder_has_the_paper_s_sizes_steps_and_batch() -> None:
    request, _ = planned("logit_growth_forecast", "paper")
    sizes = {config.model.n_params for config in request.configs}
    rounded = {float(f"{size:.1e}") for size in sizes}
    assert rounded == {2.4e6, 9.4e6, 1.9e7, 4.2e7, 8.5e7, 1.5e8, 3.0e8, 1.2e9, 4.8e9}
    config = request.configs[0]
    assert (config.training.steps, config.training.batch_size, config.training.sequence_length) == (100_000, 256, 512)
    assert config.training.precision == "bfloat16"
    assert {config.model.head_dim for config in request.configs} == {64}
    warmups = sorted({run.config.schedule.warmup_steps for run in planned("warmup", "paper")[1]})
    assert warmups == [50, 500, 5_000, 10_000, 25_000]
    assert {run.config.training.steps for run in planned("total_steps", "paper")[1]} == {50_000, 100_000, 200_000}
    assert {run.config.training.batch_size for run in planned("batch_size", "paper")[1]} == {256, 512, 1024}
    assert {run.config.tokens for run in planned("batch_size", "paper")[1]} == {config.tokens}


def test_the_micro_ladder_has_heads_of_16() -> None:
    assert {config["model.head_dim"] for config in planned("mup", "micro")[0].ladder.scales.values()} == {16}


def test_every_paper_scale_is_counted_to_its_size() -> None:
    request, runs = planned("logit_growth_forecast", "paper")
    configs = {run.scale: run.config for run in runs}
    configs |= {run.scale: run.config for sweep in ("width_vs_depth", "mup") for run in planned(sweep, "paper")[1]}
    assert set(configs) == set(request.ladder.scales)
    for scale, config in configs.items():
        model = config.model
        gains = model.width * (2 * model.depth + 1)
        norms = 2 * model.head_dim * model.depth if model.qk_layernorm == "per_head" else 0
        tensors = model.n_params + 2 * 256 * model.width + gains + norms
        # Parameters and Adam's two moments in float32; the rest is a handful of counters.
        assert 0 <= state_bytes(config) - 3 * 4 * tensors < 64, scale


def test_a_sweep_s_lengths_follow_the_steps_that_one_asks_for() -> None:
    request = compose("+sweep=warmup", "training.steps=1000")
    assert {config.schedule.warmup_steps for config in request.configs} == {0, 10, 50, 100, 250}
    assert {config.training.steps for config in request.configs} == {1000}
    (longest, *_) = request.definition.claims.values()
    assert longest["arm"] == "warmup_steps=250"


def test_the_plan_says_what_the_state_takes() -> None:
    runs = planned("qk_layernorm", "paper")[1]
    text = describe(runs, runs, Layout("sequential", ""), Budget(10**12, "here"), None)
    assert "14.5 GB" in text
    assert "1,207,959,552" in text
