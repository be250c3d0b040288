"""Every intervention and every sweep that the project ships: each composes, and each intervention does something.

Files are found by globbing, so that a new intervention is under test without a line changed here. One whose effect
comes later than the third step says so in its header: `# Effect by step: 20`.
"""

import functools
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from quick import QUICKLY, quiet_step

from stability.command_line import config_folders, run_hydra
from stability.config import RunConfig, resolve, to_leaves, to_mapping, validate
from stability.launching.grid import Request
from stability.tracking.record import flatten
from stability.training.step import advance, initial_state
from stability.typed import from_mapping

SWEEPS = config_folders().sweeps
INTERVENTIONS = sorted(path.stem for path in (SWEEPS / "intervention").glob("*.yaml"))
SWEEP_NAMES = sorted(path.stem for path in (SWEEPS / "sweep").glob("*.yaml"))

VOCABULARY, CAPACITY, LOOK_AT = 32, 20, 3
# The lengths are the ladder's, so that an intervention may scale them. Two heads, so that per head and whole width
# differ; 40 steps, so that warm-up (5 %) is 2 of them, not 0.
LADDER = {"steps": 40, "batch_size": 2}
TINY = [
    "model.width=16",
    "model.depth=1",
    "model.head_dim=8",
    "training.sequence_length=8",
    *(f"ladder.{key}={value}" for key, value in LADDER.items()),
]
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (CAPACITY, 4, 9), dtype=np.int32)

# One executable for each structure, whatever the number of steps: what differs below is never the program.
forward = jax.jit(advance, compiler_options=QUICKLY)
step_lanes = jax.jit(jax.vmap(quiet_step, in_axes=(0, 0, None)), compiler_options=QUICKLY)


@functools.cache
def compose(*arguments: str) -> Request:
    """The request that `python -m stability.run ARGUMENTS` would launch, by the same path but for the launch."""
    requests: list[Request] = []
    defaults = to_mapping(from_mapping(RunConfig, {}))
    ConfigStore.instance().store(name="run_defaults", node=defaults, provider="stability")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as empty:
        patch.chdir(empty)
        patch.setenv("HYDRA_FULL_ERROR", "1")  # `run_hydra` sets it, and this puts it back
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", ["stability-run", *arguments])
        assert run_hydra("run", lambda request: requests.append(request) or 0) == 0
        assert not list(Path(empty).iterdir())
    (request,) = requests
    return request


def resolved(name: str | None) -> RunConfig:
    """A tiny run with the intervention of that name, None for the baseline."""
    (config,) = compose(*TINY, *([f"+intervention={name}"] if name else [])).configs
    return resolve(config, corpus="test", vocabulary_size=VOCABULARY)


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> tuple[RunConfig, RunConfig]:
    """A tiny baseline and the same run with the intervention, both resolved."""
    return resolved(None), resolved(request.param)


def header(path: Path) -> list[str]:
    """The comment lines at the head of a YAML file, Hydra's own line left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line for line in lines[:length] if "@package" not in line]


def look_at(name: str) -> int:
    """The step by which the intervention must have changed something."""
    found = re.search(r"^# Effect by step: (\d+)$", (SWEEPS / f"intervention/{name}.yaml").read_text("utf-8"), re.M)
    return int(found[1]) if found else LOOK_AT


def trained(config: RunConfig, counts: list[int]) -> Any:
    """(state, metrics of the last dispatch, observations) after dispatches of the given lengths, by way of the host."""
    leaves = to_leaves(config)
    state, done, result = initial_state(leaves), 0, None
    for count in counts:
        tokens = np.roll(TOKENS[:, : config.training.batch_size], -done, axis=0)
        result = jax.device_get(forward(leaves, state, tokens, np.int32(count), np.bool_(True)))
        state, done = result[0], done + count
    return result


def differs(a: Any, b: Any) -> bool:
    """Whether two parameter trees differ in shape, or in value by more than rounding."""
    if jax.tree.map(np.shape, a) != jax.tree.map(np.shape, b):
        return True
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.allclose(x, y, rtol=1e-6, atol=1e-7) for x, y in pairs)


def test_there_are_interventions_and_sweeps() -> None:
    assert {"qk_layernorm_none", "z_loss_none", "warmup_none", "bigram", "mup_full"} <= set(INTERVENTIONS)
    assert "quickstart" in SWEEP_NAMES


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_header_gives_the_claim_its_source_and_the_command(name: str) -> None:
    text = "\n".join(header(SWEEPS / f"intervention/{name}.yaml"))
    assert "arXiv" in text
    assert re.search(r"Section|Appendix|Figure", text)
    assert re.search(rf"python -m stability\.run .*\+intervention=\[?.*{name}", text)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_it_changes_what_its_file_says_and_nothing_else(name: str) -> None:
    """Before anything is resolved: what follows from a change, such as a warm-up of 5 %, is no part of it."""
    (baseline,), (changed,) = (compose(*TINY, *more).configs for more in ([], [f"+intervention={name}"]))
    before, after = flatten(to_mapping(baseline)), flatten(to_mapping(changed))
    file = OmegaConf.load(SWEEPS / f"intervention/{name}.yaml")
    said = flatten(OmegaConf.to_container(file))  # type: ignore[arg-type]
    whole = OmegaConf.merge(to_mapping(baseline), {"ladder": LADDER}, file)  # what `${...}` in the file refers to
    values = flatten(OmegaConf.to_container(whole, resolve=True))  # type: ignore[arg-type]
    assert {key: value for key, value in after.items() if value != before[key]} == {key: values[key] for key in said}


@pytest.mark.parametrize(("pair", "name"), [(n, n) for n in INTERVENTIONS], indirect=["pair"], ids=INTERVENTIONS)
def test_it_trains_and_changes_the_training(pair: tuple[RunConfig, RunConfig], name: str) -> None:
    baseline, changed = pair
    validate(changed)
    steps = look_at(name)
    state, metrics, observations = trained(changed, [steps])
    assert state.step == steps
    assert metrics.alive[:steps].all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics, observations)))
    assert differs(trained(baseline, [steps])[0].parameters, state.parameters), "a switch that does nothing"


@pytest.mark.parametrize("pair", INTERVENTIONS, indirect=True)
def test_it_goes_on_from_a_saved_state_as_if_it_had_not_stopped(pair: tuple[RunConfig, RunConfig]) -> None:
    whole, parts = trained(pair[1], [5])[0], trained(pair[1], [2, 3])[0]
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True))


@pytest.mark.parametrize("pair", INTERVENTIONS, indirect=True)
def test_in_a_lane_it_trains_as_it_does_alone(pair: tuple[RunConfig, RunConfig]) -> None:
    baseline, changed = pair
    # Beside the baseline where they share a program; beside itself where the intervention shapes another.
    beside = baseline if jax.tree.structure(baseline) == jax.tree.structure(changed) else changed
    leaves, state = (
        jax.tree.map(lambda *x: np.stack(x), *trees)
        for trees in zip(*((to_leaves(c), initial_state(to_leaves(c))) for c in (beside, changed)), strict=True)
    )
    for tokens in TOKENS[:LOOK_AT, : changed.training.batch_size]:
        state, metrics = step_lanes(leaves, state, tokens)
    alone_state, alone_metrics, _ = trained(changed, [LOOK_AT])
    lane = jax.tree.map(lambda x: np.asarray(x)[1], (state.parameters, metrics))
    alone = (alone_state.parameters, jax.tree.map(lambda series: series[LOOK_AT - 1], alone_metrics))
    for x, y in zip(jax.tree.leaves(lane), jax.tree.leaves(alone), strict=True):
        # Adam's first steps divide gradients by themselves: where one is all rounding, so is its sign.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_interventions_combine() -> None:
    (config,) = compose("+intervention=[z_loss_none,weight_decay_none]").configs
    assert (config.loss.z_loss, config.optimizer.weight_decay) == (0.0, 0.0)


def test_interventions_are_an_axis_and_a_command_line_value_goes_over_them() -> None:
    configs = compose("+intervention=z_loss_none,warmup_none", "optimizer.learning_rate=0.1,0.2").configs
    assert [(c.loss.z_loss, c.schedule.warmup_steps, c.optimizer.learning_rate) for c in configs] == [
        (0.0, None, 0.1),
        (0.0, None, 0.2),
        (1e-4, 0, 0.1),
        (1e-4, 0, 0.2),
    ]
    (config,) = compose("+intervention=z_loss_none", "loss.z_loss=0.01").configs
    assert config.loss.z_loss == 0.01


@pytest.mark.parametrize("name", SWEEP_NAMES)
def test_a_sweep_composes_asks_a_question_and_explains_itself(name: str) -> None:
    request = compose(f"+sweep={name}")
    assert request.sweep == name
    assert request.question.endswith("?")
    assert len(request.configs) > 1
    for config in request.configs:
        validate(config)
    assert len(header(SWEEPS / f"sweep/{name}.yaml")) >= 5
