"""Parameterizations: their table worked by hand, equality at the base width, and the coordinate check over widths.

Run as a script (`PYTHONPATH=. python tests/test_parameterization.py`), it writes the golden file anew.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reference
from quick import QUICKLY, quiet_step

from stability.config import ROLES, ModelConfig, Role, RunConfig, to_leaves
from stability.model.parameterization import PARAMETERIZATIONS, attention_scale, rule
from stability.model.transformer import initialise
from stability.training.optimizer import apply_update
from stability.training.step import StepMetrics, TrainState, initial_state
from stability.typed import from_mapping

BASE_WIDTH, WIDTHS = 16, (16, 32, 64, 128)
BATCH, TIME, VOCABULARY, STEPS = 4, 8, 32, 10
MUP = ("mup_simple", "mup_intermediate", "mup_full")
GOLDEN = Path(__file__).parent / "golden" / "mup_steps.json"
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, BATCH, TIME + 1), dtype=np.int32)

pytestmark = pytest.mark.usefixtures("strict_numerics")


def at(parameterization: str, width: int, seed: int = 0, **optimizer: Any) -> RunConfig:
    """One block at some width, the base width being 16, without warm-up and at the start of a long schedule."""
    return from_mapping(
        RunConfig,
        {
            "model": {"width": width, "depth": 1, "head_dim": 8, "base_width": BASE_WIDTH}
            | {"parameterization": parameterization},
            "optimizer": {"learning_rate": 3e-3} | optimizer,
            "training": {"steps": 1000, "batch_size": BATCH, "sequence_length": TIME},
            "schedule": {"warmup_steps": 0},
            "data": {"vocabulary_size": VOCABULARY, "seed": 0},
            "seed": seed,
        },
    )


one_step = jax.jit(quiet_step, compiler_options=QUICKLY)


@functools.cache
def trained(parameterization: str, width: int, seed: int = 0) -> tuple[list[TrainState], list[StepMetrics]]:
    """The states before each of ten steps and after the last, and the metrics of each."""
    leaves = to_leaves(at(parameterization, width, seed))
    states, metrics = [jax.device_get(initial_state(leaves))], []
    for tokens in TOKENS:
        state, seen = jax.device_get(one_step(leaves, states[-1], tokens))
        states.append(state)
        metrics.append(seen)
    return states, metrics


# The table


FAN_INS: dict[Role, int] = {role: 1 for role in ROLES if role != "mlp_out"} | {"mlp_out": 4}
"""In widths, at mlp_ratio 4; not of gains, which have none."""


@pytest.mark.parametrize("width", [16, 24, 128])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_table_is_the_one_worked_by_hand(parameterization: str, role: Role, width: int) -> None:
    """arXiv 2309.14322, Section 3.2.4: f is the fan-in at this width and f0 that at the base width."""
    model = ModelConfig(width=width, head_dim=8, parameterization=parameterization, base_width=BASE_WIDTH)  # type: ignore[arg-type]
    f, f0 = FAN_INS[role] * width, FAN_INS[role] * BASE_WIDTH
    law = rule(model, role, 1 if role == "gain" else f)
    linear = role not in ("embedding", "gain")
    std = {
        ("mup_intermediate", "head"): np.sqrt(f0) / f,
        ("mup_full", "head"): np.sqrt(f0) / f,
        ("mup_full", "query"): 0.0,
    }.get((parameterization, role), 1 / np.sqrt(f))
    assert law.learning_rate == (f0 / f if linear and parameterization != "standard" else 1.0)
    assert law.init_std == pytest.approx(0.0 if role == "gain" else std, rel=1e-12)
    assert law.truncated == (role != "embedding")
    assert (law.weight_decay, law.forward) == (1.0, 1.0)
    scale = 1 / 8 if parameterization == "mup_full" else 1 / np.sqrt(8)
    assert attention_scale(model) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_every_tensor_starts_with_the_standard_deviation_of_the_table(parameterization: str) -> None:
    """n draws scatter it by std/sqrt(2n)."""
    width, shrinkage = 64, np.sqrt(BASE_WIDTH / 64)
    start = reference.flatten(jax.device_get(initial_state(to_leaves(at(parameterization, width))).parameters))
    for path, value in start.items():
        std = 1 / np.sqrt(width if path == "embedding" else value.shape[0])
        if path == "head/kernel" and parameterization in ("mup_intermediate", "mup_full"):
            std *= shrinkage
        if path.endswith("query/kernel") and parameterization == "mup_full":
            std = 0.0
        if path.endswith("gain"):
            np.testing.assert_array_equal(value, 1.0)
        else:
            assert value.std() == pytest.approx(std, rel=5 / np.sqrt(2 * value.size)), path


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_initial_loss_is_log_vocabulary_and_half_the_logits_variance(parameterization: str) -> None:
    """Logits start near N(0, v), v the head's variance times its fan-in: 1, or f0/f where muP makes the head smaller;
    E log sum exp = log V + v/2 for a large V. The 256 targets scatter by sqrt(v / 256); 0.25 is four times that."""
    config = at(parameterization, 64)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary_size=256))
    tokens = np.random.default_rng(5).integers(0, 256, (8, 33))
    parameters = jax.device_get(initial_state(to_leaves(config)).parameters)
    logits = reference.forward(config.model, parameters, tokens[:, :-1]).logits
    variance = BASE_WIDTH / 64 if parameterization in ("mup_intermediate", "mup_full") else 1.0
    assert np.var(logits) == pytest.approx(variance, rel=0.15)
    cross_entropy = reference.losses(logits, tokens[:, 1:], 0.0)[1]
    assert cross_entropy == pytest.approx(np.log(256) + variance / 2, abs=0.25)


# The base width


def test_at_the_base_width_training_with_muP_simple_is_the_standard_one_bit_for_bit() -> None:
    """And with muP intermediate, whose every rule there is the standard one: the next test."""
    ours, standard = trained("mup_simple", BASE_WIDTH), trained("standard", BASE_WIDTH)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(standard), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("parameterization", MUP)
@pytest.mark.parametrize("role", ROLES)
def test_at_the_base_width_every_multiplier_is_one(parameterization: str, role: Role) -> None:
    model = ModelConfig(width=48, base_width=48, head_dim=8, parameterization=parameterization)  # type: ignore[arg-type]
    for fan_in in (48, 4 * 48):
        law = rule(model, role, fan_in)
        assert (law.learning_rate, law.weight_decay, law.forward) == (1.0, 1.0, 1.0)
        if (parameterization, role) != ("mup_full", "query"):
            assert law == rule(dataclasses.replace(model, parameterization="standard"), role, fan_in)


def test_full_muP_starts_blind_and_learns_to_look() -> None:
    """Queries at zero give logits of zero, and a gradient that moves them in the first step."""
    states, _ = trained("mup_full", 32)
    first, second = (state.parameters["blocks"]["block_00"]["attention"] for state in states[:2])
    assert np.all(first["query"]["kernel"] == 0)
    assert np.all(first["key"]["kernel"] != 0)
    assert np.all(second["query"]["kernel"] != 0)


# Over widths


@pytest.mark.parametrize("coupling", ["independent", "coupled"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_update_and_decay_per_step_over_widths(parameterization: str, coupling: str) -> None:
    """theta = 1 and D = 1, one step without warm-up: independent decay takes wd of every tensor at every width, coupled
    decay lr wd times the multiplier of the tensor's learning rate."""
    rate, decay = 0.1, 0.3
    for width in WIDTHS:
        config = at(parameterization, width, weight_decay_coupling=coupling, learning_rate=rate, weight_decay=decay)
        shapes = jax.eval_shape(initialise, to_leaves(config))
        ones = jax.tree.map(lambda shape: np.ones(shape.shape, shape.dtype), shapes)
        moved = apply_update(to_leaves(config), ones, ones, np.int32(0))
        for path, value in reference.flatten(jax.device_get(moved)).items():
            linear = path.endswith("kernel") and parameterization != "standard"
            own = rate * (BASE_WIDTH / width if linear else 1.0)
            lost = own * decay if coupling == "coupled" else decay
            np.testing.assert_allclose(value, 1 - own - lost, rtol=1e-6, atol=1e-6, err_msg=path)


def activations(config: RunConfig, parameters: Any) -> dict[str, np.ndarray]:
    """What each linear layer gives on the first batch, and the attention logits, in float64."""
    trace = reference.forward(config.model, parameters, TOKENS[0, :, :-1])
    (block,) = trace.blocks
    assert block.attention is not None
    assert block.hidden is not None
    assert block.thought is not None
    return {
        "query": block.attention.raw_query,
        "key": block.attention.raw_key,
        "value": block.attention.value,
        "attention_output": block.attention.mixed,
        "mlp_in": block.hidden,
        "mlp_out": block.thought,
        "head": trace.logits,
        "attention_logit": np.nan_to_num(block.attention.logits),
    }


@functools.cache
def growth(parameterization: str, after: int) -> dict[str, float]:
    """For each activation, the slope of log RMS change since the start against log width, two seeds' mean.

    The embedding is put back to its start: it is exempt. Its learning rate does not shrink while its entries start at
    1/sqrt(width), so its relative change, which is what the first LayerNorm lets through, grows as sqrt(width).
    """
    changes: dict[str, list[float]] = {}
    for width in WIDTHS:
        sizes: dict[str, list[float]] = {}
        for seed in (0, 1):
            config, (states, _) = at(parameterization, width, seed), trained(parameterization, width, seed)
            start = states[0].parameters
            before = activations(config, start)
            now = activations(config, states[after].parameters | {"embedding": start["embedding"]})
            for name, value in now.items():
                sizes.setdefault(name, []).append(np.log(reference.rms(value - before[name])))
        for name, logs in sizes.items():
            changes.setdefault(name, []).append(float(np.mean(logs)))
    return {name: float(np.polyfit(np.log(WIDTHS), logs, 1)[0]) for name, logs in changes.items()}


@pytest.mark.parametrize("after", [1, 3, 10])
@pytest.mark.parametrize("parameterization", ["mup_simple", "mup_full"])
def test_under_muP_activations_change_alike_at_every_width(parameterization: str, after: int) -> None:
    """The coordinate check (arXiv 2203.03466, Appendix D.1). In the limit the slope is 0; widths this small leave
    0.2 of it, 0.35 for full muP's head, whose start still fades against its updates."""
    for name, slope in growth(parameterization, after).items():
        assert abs(slope) < 0.45, (name, slope)


@pytest.mark.parametrize("after", [1, 3, 10])
def test_under_the_standard_parameterization_activations_change_the_more_the_wider(after: int) -> None:
    """An Adam step moves every entry by the learning rate, and f entries add up: a slope of 1 in theory, 0.75 to 1 here
    in the first steps, and less once the change is no longer small."""
    for name, slope in growth("standard", after).items():
        assert slope > (0.65 if after <= 3 else 0.4), (name, slope)


def test_the_embedding_moves_alike_at_every_width() -> None:
    for parameterization in ("standard", "mup_full"):
        moved = []
        for width in WIDTHS:
            states, _ = trained(parameterization, width)
            seen = np.unique(TOKENS[0, :, :-1])
            moved.append(reference.rms((states[1].parameters["embedding"] - states[0].parameters["embedding"])[seen]))
        np.testing.assert_allclose(moved, 3e-3, rtol=0.05)  # Adam's first step is the learning rate


# The golden runs


def golden_numbers(parameterization: str) -> dict[str, Any]:
    """Losses and sums of absolute parameters at twice the base width, after 1 and 10 steps."""
    states, metrics = trained(parameterization, 2 * BASE_WIDTH)
    numbers: dict[str, Any] = {}
    for count in (1, 10):
        flat = reference.flatten(states[count].parameters)
        numbers[f"after_{count}_steps"] = {
            "loss": float(metrics[count - 1].loss),
            "sum_of_absolute_parameters": {
                path: float(np.abs(flat[path]).sum(dtype=np.float64))
                for path in ("embedding", "blocks/block_00/attention/query/kernel", "head/kernel")
            },
        }
    return numbers


@pytest.mark.parametrize("parameterization", MUP)
def test_the_golden_steps_are_as_they_were(parameterization: str) -> None:
    expected = reference.flatten(json.loads(GOLDEN.read_text())[parameterization])
    got = reference.flatten(golden_numbers(parameterization))
    assert got.keys() == expected.keys()
    wrong = {path: (got[path], expected[path]) for path in got if got[path] != pytest.approx(expected[path], rel=1e-4)}
    assert not wrong, (
        f"Numbers of {parameterization} changed (now, before): {wrong}. Only a deliberate change of what it means, or "
        "of JAX's random numbers in an upgrade, makes it right to write them anew: say so in the changelog and run "
        "`PYTHONPATH=. python tests/test_parameterization.py`."
    )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: golden_numbers(name) for name in MUP}, indent=2) + "\n", encoding="utf-8")
