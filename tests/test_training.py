"""The step: schedule, optimizer, observations, passivity, divergence, lanes, and one golden run.

Run as a script (`python tests/test_training.py` with the project on PYTHONPATH), it writes the golden file anew.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from quick import QUICKLY, quiet_step

from stability.config import ModelConfig, RunConfig, fingerprint, to_leaves
from stability.tracking.summary import Results
from stability.training import loop
from stability.training.journal import training_row
from stability.training.lanes import STEPS_PER_DISPATCH, Program, Programs
from stability.training.optimizer import apply_update
from stability.training.schedule import learning_rate
from stability.training.step import StepMetrics, TrainState, advance, initial_state, step
from stability.typed import from_mapping

STEPS, BATCH, TIME, VOCABULARY = 20, 2, 8, 32
VALIDATION_SHAPE = (2, BATCH, TIME + 1)
GOLDEN = Path(__file__).parent / "golden" / "standard_step.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "observations.md"


pytestmark = pytest.mark.usefixtures("strict_numerics")


def tiny(**groups: dict[str, Any]) -> RunConfig:
    """One block of two heads, 20 steps without warm-up, with changes by group (`optimizer={...}`)."""
    base: dict[str, Any] = {
        "model": {"width": 16, "depth": 1, "head_dim": 8},
        "training": {"steps": STEPS, "batch_size": BATCH, "sequence_length": TIME},
        "schedule": {"warmup_steps": 0},
        "data": {"vocabulary_size": VOCABULARY, "seed": 0},
    }
    return from_mapping(RunConfig, base | {name: base.get(name, {}) | changes for name, changes in groups.items()})


def all_given() -> RunConfig:
    """`tiny()` with a number in every leaf that may be null."""
    return tiny(model={"kappa": 10.0, "attention_scale_exponent": 0.7})


def seeded(config: RunConfig, seed: int) -> RunConfig:
    return dataclasses.replace(config, seed=seed)


TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, BATCH, TIME + 1), dtype=np.int32)
VALIDATION = np.random.default_rng(1).integers(0, VOCABULARY, VALIDATION_SHAPE, dtype=np.int32)

programs = Programs()


@pytest.fixture(scope="module")
def solo() -> Program:
    return programs.get(tiny(), None, VALIDATION_SHAPE)


@pytest.fixture(scope="module")
def three_lanes() -> Program:
    return programs.get(tiny(), 3, VALIDATION_SHAPE)


def dispatch(
    program: Program, config: RunConfig, state: TrainState, start: int, count: int, observe: bool = False
) -> tuple[TrainState, StepMetrics, dict[str, Any]]:
    """Steps start..start+count-1 on TOKENS in one call (the same batches in every lane); `state` survives."""
    tokens = np.zeros((program.lanes or 1, STEPS_PER_DISPATCH, BATCH, TIME + 1), np.int32)
    tokens[:, :count] = TOKENS[start : start + count]
    state = jax.tree.map(jnp.copy, state)  # the program uses its memory again
    state, metrics, seen = program.step(config, state, tokens, count, observe)
    metrics = StepMetrics(*(np.asarray(value)[..., :count] for value in metrics))
    return state, metrics, jax.device_get(seen)


def train(
    program: Program, configs: list[RunConfig], cuts: list[int], observe: bool = False
) -> tuple[TrainState, StepMetrics]:
    """Train from the seeds in dispatches of the given lengths: the last state and all steps' metrics."""
    config, at, parts = program.place(configs), 0, []
    state = program.start(config)
    for count in cuts:
        state, metrics, _ = dispatch(program, config, state, at, count, observe)
        parts.append(metrics)
        at += count
    return state, StepMetrics(*(np.concatenate(series, -1) for series in zip(*parts, strict=True)))


def assert_same(one: Any, other: Any) -> None:
    """Equal bit for bit, NaN to NaN."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Schedule


@pytest.mark.parametrize("steps", [1, 20, 1000])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("peak", "minimum"), [(1e-2, 1e-5), (0.3, 0.0), (1e-5, 1e-5)])
def test_schedule_is_optax_s(steps: int, warmup_fraction: float, peak: float, minimum: float) -> None:
    warmup = int(warmup_fraction * (steps - 1))
    config = tiny(
        training={"steps": steps},
        optimizer={"learning_rate": peak},
        schedule={"warmup_steps": warmup, "minimum_learning_rate": minimum},
    )
    ours = np.asarray(scheduled(to_leaves(config), np.arange(steps, dtype=np.int32)))
    theirs = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, minimum)
    np.testing.assert_allclose(ours, theirs(np.arange(steps)), rtol=1e-5, atol=1e-6 * peak)
    formula = [reference.learning_rate(s, steps=steps, warmup=warmup, peak=peak, minimum=minimum) for s in range(steps)]
    np.testing.assert_allclose(ours, formula, rtol=1e-5, atol=1e-6 * peak)
    assert ours[warmup] == np.float32(peak)
    assert warmup == 0 or ours[0] == 0.0
    assert np.all(np.diff(ours[warmup:]) <= 0)
    assert ours[-1] >= np.float32(minimum)


scheduled = jax.jit(learning_rate)


def test_schedule_reaches_the_minimum_after_the_last_step_and_stays() -> None:
    config = to_leaves(tiny(schedule={"warmup_steps": 3}))
    assert scheduled(config, np.int32(STEPS)) == config.schedule.minimum_learning_rate
    assert scheduled(config, np.int32(10 * STEPS)) == config.schedule.minimum_learning_rate


def test_steps_report_the_learning_rate_that_they_apply(solo: Program) -> None:
    config = tiny(schedule={"warmup_steps": 4})
    _, metrics = train(solo, [config], [10, 10])
    np.testing.assert_array_equal(metrics.learning_rate, scheduled(to_leaves(config), np.arange(STEPS, dtype=np.int32)))


# Optimizer

AT = 3
"""The step on which the optimizer is compared: moments are warm, and the schedule is below its peak."""
MUCH = 0.5
"""A weight decay whose absence would show."""


@pytest.fixture(scope="module")
def warm(solo: Program) -> TrainState:
    """A state after three steps."""
    config = solo.place([tiny()])
    return dispatch(solo, config, solo.start(config), 0, AT)[0]


@pytest.fixture(scope="module")
def gradients(solo: Program, warm: TrainState) -> dict[str, np.ndarray]:
    """The gradient at `warm`, read off Adam's first moment with beta1 = 0 and nothing clipped."""
    config = solo.place([tiny(optimizer={"beta1": 0.0, "clip_norm": 1e9})])
    state, _, _ = dispatch(solo, config, warm, AT, 1)
    return moments(state)[0]


def moments(state: TrainState) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Adam's mu and nu, flattened, and its count."""
    get = functools.partial(optax.tree_utils.tree_get, state.optimizer)
    mu, nu = (reference.flatten(reference.to_float64(jax.device_get(get(name)))) for name in ("mu", "nu"))
    return mu, nu, int(get("count"))


def flat_parameters(state: TrainState) -> dict[str, np.ndarray]:
    return reference.flatten(reference.to_float64(jax.device_get(state.parameters)))


def norm_of(tensors: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(g**2) for g in tensors.values())))


def worked_by_hand(
    config: RunConfig, state: TrainState, gradients: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Clipped gradient, direction D and theta - s_t (rate D + decay theta), in float64."""
    optimizer, (mu, nu, count) = config.optimizer, moments(state)
    norm = norm_of(gradients)
    factor = 1.0 if optimizer.clip_norm is None else min(1.0, optimizer.clip_norm / norm)
    clipped = {path: factor * g for path, g in gradients.items()}
    betas = {"beta1": optimizer.beta1, "beta2": optimizer.beta2, "eps": optimizer.eps}
    directions = {path: reference.adam(g, mu[path], nu[path], count, **betas) for path, g in clipped.items()}
    return clipped, directions, moved_by_hand(config, flat_parameters(state), directions, int(state.step))


def moved_by_hand(
    config: RunConfig, parameters: dict[str, np.ndarray], directions: dict[str, np.ndarray], step: int
) -> dict[str, np.ndarray]:
    """theta - s_t (rate D + wd theta), where wd is times the rate if it is coupled to it."""
    optimizer, new = config.optimizer, {}
    peak, minimum = optimizer.learning_rate, config.schedule.minimum_learning_rate
    now = reference.learning_rate(step, steps=STEPS, warmup=0, peak=peak, minimum=minimum)
    for path, theta in parameters.items():
        rate = peak
        if config.model.parameterization != "standard" and path.endswith("kernel"):
            rate *= config.model.base_width / config.model.width
        if optimizer.learning_rate_scaling == "tensor_rms":
            rate *= max(reference.rms(theta), 1e-3)
        decay = optimizer.weight_decay if is_decayed(path, optimizer.decayed_roles) else 0.0
        if optimizer.weight_decay_coupling == "coupled":
            decay *= rate
        new[path] = theta - now / peak * (rate * directions[path] + decay * theta)
    return new


def is_decayed(path: str, roles: tuple[str, ...]) -> bool:
    """Whether a role of this path's is among the roles; of the two roles that a test restricts to, by name."""
    places = {"mlp_in": "mlp/inner/kernel", "head": "head/kernel"}
    return len(roles) > len(places) or any(path.endswith(places[role]) for role in roles)


def test_gradient_is_the_slope_of_the_objective(warm: TrainState, gradients: dict[str, np.ndarray]) -> None:
    rng, flat = np.random.default_rng(2), flat_parameters(warm)
    for _ in range(3):
        direction = {path: rng.normal(size=value.shape) for path, value in flat.items()}
        expected = reference.slope(tiny(), flat, direction, TOKENS[AT])
        got = sum(np.sum(gradients[path] * d) for path, d in direction.items())
        assert got == pytest.approx(expected, abs=1e-4 * norm_of(gradients))


COUPLED = {"weight_decay_coupling": "coupled", "weight_decay": 10 * MUCH}
HAND_WORKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipped": ({}, {"clip_norm": 0.1}),
    "not_clipped": ({}, {"clip_norm": 1e3}),
    "decayed": ({}, {"clip_norm": 0.1, "weight_decay": MUCH}),
    "other_constants": ({}, {"clip_norm": 0.1, "eps": 1e-2, "beta1": 0.8, "beta2": 0.99}),
    "no_clipping_and_two_roles_decayed": (
        {},
        {"clip_norm": None, "weight_decay": MUCH, "decayed_roles": ("mlp_in", "head")},
    ),
    "coupled": ({}, COUPLED),
    "tensor_rms": ({}, {"learning_rate_scaling": "tensor_rms", "weight_decay": MUCH, "learning_rate": 0.3}),
    "mup_coupled_tensor_rms": (
        {"parameterization": "mup_intermediate", "base_width": 64},
        {**COUPLED, "learning_rate_scaling": "tensor_rms", "learning_rate": 0.1},
    ),
}
"""Changes to the model and the optimizer. The parameterizations here start and move otherwise, but compute the same."""


@pytest.mark.parametrize(("model", "optimizer"), HAND_WORKED.values(), ids=HAND_WORKED.keys())
def test_step_is_adamw_worked_by_hand(
    solo: Program,
    warm: TrainState,
    gradients: dict[str, np.ndarray],
    model: dict[str, Any],
    optimizer: dict[str, Any],
) -> None:
    config = tiny(model=model, optimizer=optimizer)
    state, norm = one_step(solo, config, warm)
    assert norm == pytest.approx(norm_of(gradients), rel=1e-5)  # before clipping
    _, _, expected = worked_by_hand(config, warm, gradients)
    for path, value in flat_parameters(state).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=2e-6, err_msg=path)
    assert int(state.step) == AT + 1


def one_step(solo: Program, config: RunConfig, warm: TrainState) -> tuple[TrainState, float]:
    """The state one step after `warm`, and the gradient's norm, by the solo program if it is the config's."""
    if jax.tree.structure(config) == jax.tree.structure(tiny()):
        state, metrics, _ = dispatch(solo, solo.place([config]), warm, AT, 1)
        return state, float(metrics.gradient_norm[0])
    like = jax.tree.structure(jax.eval_shape(initial_state, to_leaves(config)))
    start = jax.tree.unflatten(like, jax.tree.leaves(warm))
    state, metrics = other_step(to_leaves(config), start, TOKENS[AT])
    return state, float(metrics.gradient_norm)


other_step = jax.jit(quiet_step, compiler_options=QUICKLY)
"""A step of whatever structure a test asks for, compiled once for each."""


@pytest.mark.parametrize("parameterization", get_args(get_type_hints(ModelConfig)["parameterization"]))
@pytest.mark.parametrize("coupling", ["independent", "coupled"])
@pytest.mark.parametrize("scaling", ["none", "tensor_rms"])
def test_every_combination_of_what_multiplies_a_rate_is_worked_by_hand(
    warm: TrainState, parameterization: str, coupling: str, scaling: str
) -> None:
    config = tiny(
        model={"parameterization": parameterization, "base_width": 64},
        optimizer={"weight_decay_coupling": coupling, "learning_rate_scaling": scaling, "weight_decay": MUCH},
    )
    parameters = flat_parameters(warm)
    parameters["head/kernel"] *= 1e-5  # an RMS below the floor of 1e-3
    rng = np.random.default_rng(6)
    directions = {path: rng.normal(size=theta.shape) for path, theta in parameters.items()}
    to_float32 = functools.partial(jax.tree.map, lambda x: x.astype(np.float32))
    trees = (to_float32(reference.unflatten(flat)) for flat in (parameters, directions))
    moved = reference.flatten(jax.device_get(apply_update(to_leaves(config), *trees, jnp.int32(AT))))
    for path, value in moved_by_hand(config, parameters, directions, AT).items():
        np.testing.assert_allclose(moved[path], value, rtol=1e-5, atol=1e-7, err_msg=path)


def test_step_is_optax_s_adamw_where_decay_is_coupled(
    solo: Program, warm: TrainState, gradients: dict[str, np.ndarray]
) -> None:
    config = tiny(optimizer={**COUPLED, "learning_rate": 0.05})
    assert_steps_like_optax(
        solo,
        config,
        warm,
        gradients,
        lambda now: optax.adamw(now, 0.9, 0.95, 1e-8, weight_decay=config.optimizer.weight_decay),
    )


def test_step_is_optax_s_scaling_by_the_rms_of_each_tensor(
    solo: Program, warm: TrainState, gradients: dict[str, np.ndarray]
) -> None:
    config = tiny(optimizer={"learning_rate_scaling": "tensor_rms", "learning_rate": 0.3, "weight_decay": 0.0})
    assert_steps_like_optax(
        solo,
        config,
        warm,
        gradients,
        lambda now: optax.chain(
            optax.scale_by_adam(0.9, 0.95, 1e-8), optax.scale_by_param_block_rms(1e-3), optax.scale(-now)
        ),
    )


def assert_steps_like_optax(
    solo: Program,
    config: RunConfig,
    warm: TrainState,
    gradients: dict[str, np.ndarray],
    build: Callable[[float], optax.GradientTransformation],
) -> None:
    """One step of ours from `warm` is one of Optax's transformation at that step's LR, gradients clipped first."""
    now = float(scheduled(to_leaves(config), np.int32(AT)))
    theirs = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), build(now))
    held = {name: optax.tree_utils.tree_get(warm.optimizer, name) for name in ("count", "mu", "nu")}
    start = optax.tree_utils.tree_set(theirs.init(warm.parameters), **held)
    tree = jax.tree.map(lambda g: g.astype(np.float32), reference.unflatten(gradients))
    updates, _ = jax.jit(theirs.update)(tree, start, warm.parameters)
    expected = reference.flatten(jax.device_get(optax.apply_updates(warm.parameters, updates)))
    state, _ = one_step(solo, config, warm)
    for path, value in flat_parameters(state).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("decay", [0.0, MUCH])
def test_step_is_optax_s_adamw_where_coupled_and_independent_decay_agree(
    solo: Program, warm: TrainState, gradients: dict[str, np.ndarray], decay: float
) -> None:
    """Coupled decay is s_t lr (D + wd' theta): the independent wd equals lr x wd', and 0 equals 0."""
    config = tiny(optimizer={"weight_decay": decay})
    theirs = decay / config.optimizer.learning_rate
    build = functools.partial(optax.adamw, b1=0.9, b2=0.95, eps=1e-8, weight_decay=theirs)
    assert_steps_like_optax(solo, config, warm, gradients, build)


def test_decay_does_not_depend_on_the_learning_rate(solo: Program, warm: TrainState) -> None:
    for peak in (1e-10, 1e-12):
        config = tiny(optimizer={"learning_rate": peak, "weight_decay": MUCH}, schedule={"minimum_learning_rate": 0.0})
        state, _, _ = dispatch(solo, solo.place([config]), dataclasses.replace(warm, step=jnp.int32(0)), AT, 1)
        for path, value in flat_parameters(state).items():
            np.testing.assert_allclose(value, (1 - MUCH) * flat_parameters(warm)[path], rtol=1e-5, atol=1e-9)


# Observations of a step


def test_observations_of_a_step_are_brute_force_values(
    solo: Program, warm: TrainState, gradients: dict[str, np.ndarray]
) -> None:
    config = tiny(optimizer={"clip_norm": 0.1, "eps": 1e-6}, loss={"z_loss": 1e-4})
    _, metrics, seen = dispatch(solo, solo.place([config]), warm, AT, 1, observe=True)
    parameters = flat_parameters(warm)
    trace = reference.forward(config.model, reference.unflatten(parameters), TOKENS[AT][:, :-1])
    clipped, directions, _ = worked_by_hand(config, warm, gradients)
    expected: dict[str, Any] = reference.observe_output_logits(trace.logits)
    expected["final_stream/rms"] = reference.rms(trace.final_stream)
    expected |= {f"{name}/block_00": value for name, value in reference.observe_block(trace.blocks[0]).items()}
    for path in parameters:
        name = reference.metric_name(path)
        expected[f"gradient/rms/{name}"] = reference.rms(gradients[path])
        expected[f"gradient/rms_over_eps/{name}"] = reference.rms(clipped[path]) / 1e-6
        expected[f"parameter/rms/{name}"] = reference.rms(parameters[path])
        expected[f"update/rms/{name}"] = reference.rms(directions[path])
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    total, cross_entropy = reference.losses(trace.logits, TOKENS[AT][:, 1:], 1e-4)
    assert metrics.loss[0] == pytest.approx(total, rel=1e-5)
    assert metrics.cross_entropy[0] == pytest.approx(cross_entropy, rel=1e-5)


# Passivity and dispatch


def test_a_run_is_the_same_bit_for_bit_however_often_it_is_observed(solo: Program) -> None:
    never = train(solo, [tiny()], [10, 10])
    every_tenth = train(solo, [tiny()], [10, 10], observe=True)
    always = train(solo, [tiny()], [1] * STEPS, observe=True)
    assert_same(never, every_tenth)
    assert_same(never, always)


def test_a_dispatch_shows_its_last_step(solo: Program) -> None:
    config = solo.place([tiny()])
    fresh = solo.start(config)
    _, _, together = dispatch(solo, config, fresh, 0, 5, observe=True)
    _, _, alone = dispatch(solo, config, dispatch(solo, config, fresh, 0, 4)[0], 4, 1, observe=True)
    assert_same(together, alone)
    _, _, quiet = dispatch(solo, config, fresh, 0, 5, observe=False)
    assert all(np.all(value == 0) for value in quiet.values())


@pytest.mark.parametrize("cuts", [[1] * 12, [10, 2], [3, 9]], ids=str)
def test_a_run_is_the_same_bit_for_bit_however_it_is_cut(solo: Program, cuts: list[int]) -> None:
    assert_same(train(solo, [tiny()], cuts), train(solo, [tiny()], [6, 6]))


def test_tokens_beyond_the_count_are_not_read(solo: Program) -> None:
    config = solo.place([tiny()])
    tokens = np.stack([TOKENS[:10]])
    other = tokens.copy()
    other[:, 4:] = 0
    assert_same(*(solo.step(config, solo.start(config), t, 4, False) for t in (tokens, other)))


def test_one_program_serves_every_count_and_every_leaf(solo: Program) -> None:
    """A compiled executable cannot trace again: every test above ran it with other counts and leaves."""
    assert isinstance(solo.advance, jax.stages.Compiled)
    another = seeded(tiny(optimizer={"learning_rate": 0.3}, loss={"z_loss": 0.0}), 9)
    before = len(programs.compiled)
    assert programs.get(another, None, VALIDATION_SHAPE) is solo
    assert len(programs.compiled) == before


def test_evaluation_is_the_mean_over_batches(solo: Program, warm: TrainState) -> None:
    config = solo.place([tiny(loss={"z_loss": 1.0})])
    single = [float(solo.loss(config, warm, np.stack([batch, batch]))[0]) for batch in VALIDATION]
    assert float(solo.loss(config, warm, VALIDATION)[0]) == pytest.approx(np.mean(single), rel=1e-6)
    for batch, value in zip(VALIDATION, single, strict=True):
        logits = reference.forward(tiny().model, jax.device_get(warm.parameters), batch[:, :-1]).logits
        assert value == pytest.approx(reference.losses(logits, batch[:, 1:], 0.0)[1], rel=1e-5)  # without z-loss


# Divergence


@pytest.mark.parametrize("peak", [1e10, 1e30])
def test_a_run_stops_at_its_last_good_parameters(solo: Program, peak: float) -> None:
    config = solo.place([tiny(optimizer={"learning_rate": peak})])
    state, metrics, _ = dispatch(solo, config, solo.start(config), 0, 10)
    good = int(np.argmin(metrics.alive))
    assert 0 < good < 10
    assert not np.any(metrics.alive[good:])
    assert np.all(np.isfinite(metrics.loss[:good]))
    before, _, _ = dispatch(solo, config, solo.start(config), 0, good)
    assert bool(before.alive)
    assert int(before.step) == good
    assert_same(dataclasses.replace(state, alive=before.alive), before)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.parameters))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_the_first_bad_step_is_the_one_that_computed_it(solo: Program, warm: TrainState, poison: float) -> None:
    parameters = jax.device_get(warm.parameters)
    parameters["head"]["kernel"] = np.full_like(parameters["head"]["kernel"], poison)
    poisoned = dataclasses.replace(warm, parameters=parameters)
    state, metrics, _ = dispatch(solo, solo.place([tiny()]), poisoned, AT, 5)
    assert not np.any(metrics.alive)
    assert_same(state, dataclasses.replace(poisoned, alive=np.array(False)))
    later, metrics, _ = dispatch(solo, solo.place([tiny()]), state, AT, 2)
    assert_same(later, state)


def test_a_dead_state_stays_dead_with_healthy_parameters(solo: Program, warm: TrainState) -> None:
    dead = dataclasses.replace(warm, alive=jnp.zeros((), bool))
    state, metrics, _ = dispatch(solo, solo.place([tiny()]), dead, AT, 3)
    assert not np.any(metrics.alive)
    assert_same(state, dead)


def test_a_diverged_lane_leaves_its_neighbours_as_they_are(three_lanes: Program) -> None:
    healthy = [seeded(tiny(), seed) for seed in range(3)]
    bad = tiny(optimizer={"learning_rate": 1e30})
    quiet_state, quiet_metrics = train(three_lanes, healthy, [10, 10])
    state, metrics = train(three_lanes, [healthy[0], bad, healthy[2]], [10, 10])
    np.testing.assert_array_equal(metrics.alive[:, -1], [True, False, True])
    for lane in (0, 2):
        assert_same(three_lanes.lane(state, lane), three_lanes.lane(quiet_state, lane))
        assert_same(three_lanes.lane(metrics, lane), three_lanes.lane(quiet_metrics, lane))


# Lanes

LANES = [
    tiny(optimizer={"learning_rate": 1e-3}),
    seeded(tiny(optimizer={"learning_rate": 3e-3, "weight_decay": 1e-2}), 1),
    seeded(tiny(schedule={"warmup_steps": 5}, loss={"z_loss": 1e-2}), 2),
]


def test_a_quiet_step_measures_nothing_in_lanes_either(three_lanes: Program) -> None:
    """Under `vmap` a condition on a lane's own number would become a `select` of both branches: ours stays one."""
    config = three_lanes.place([tiny()] * 3)
    tokens = np.zeros((3, STEPS_PER_DISPATCH, BATCH, TIME + 1), np.int32)
    lanes = jax.vmap(advance, in_axes=(0, 0, 0, None, None))
    program = str(jax.make_jaxpr(lanes)(config, three_lanes.start(config), tokens, np.int32(1), np.bool_(False)))
    # one block; the final stream; output logits; tensors
    assert program.count("cond[") == 4


def test_lanes_agree_with_solo_runs(solo: Program, three_lanes: Program) -> None:
    """Another program rounds otherwise: the agreement is to tolerance, over the first steps."""
    together_state, together = train(three_lanes, LANES, [10, 10])
    for i, config in enumerate(LANES):
        state, metrics = train(solo, [config], [10, 10])
        for got, expected in zip(three_lanes.lane(together, i), metrics, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4)
        parameters = jax.tree.leaves(three_lanes.lane(together_state.parameters, i))
        for got, expected in zip(parameters, jax.tree.leaves(state.parameters), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    assert len({float(value) for value in together.loss[:, -1]}) == 3


def test_lanes_start_and_are_evaluated_as_alone(solo: Program, three_lanes: Program) -> None:
    config = three_lanes.place(LANES)
    state = three_lanes.start(config)
    losses = three_lanes.loss(config, state, VALIDATION)
    assert losses.shape == (3,)
    for i, one in enumerate(LANES):
        alone = solo.start(solo.place([one]))
        for a, b in zip(jax.tree.leaves(three_lanes.lane(state, i)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert losses[i] == pytest.approx(solo.loss(solo.place([one]), alone, VALIDATION)[0], rel=1e-5)


def test_a_lane_goes_into_a_pack_and_comes_out_unchanged(three_lanes: Program) -> None:
    state = three_lanes.start(three_lanes.place(LANES))
    parts = [three_lanes.lane(state, i) for i in range(3)]
    assert_same(three_lanes.resume(parts), state)
    assert_same(three_lanes.lane(three_lanes.resume(parts[::-1]), 0), parts[2])


# Structure


def every_field(cls: type, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names of all fields of a config class, with their kinds."""
    found: list[tuple[str, str]] = []
    for f in dataclasses.fields(cls):
        kind = f.metadata.get("kind", "structure")
        if kind == "group":
            found += every_field(f.default_factory, f"{prefix}{f.name}.")
        else:
            found.append((prefix + f.name, kind))
    return found


def changed(config: Any, dotted: str) -> Any:
    """The config with another value in one field."""
    name, _, rest = dotted.partition(".")
    value = getattr(config, name)
    return dataclasses.replace(config, **{name: changed(value, rest) if rest else other(type(config), name, value)})


def other(cls: type, name: str, value: Any) -> Any:
    literals = [choice for choice in get_args(get_type_hints(cls)[name]) if isinstance(choice, str)]
    if isinstance(value, str) and literals:
        return next((choice for choice in literals if choice != value), "another")
    if isinstance(value, tuple):
        return value[:-1]
    if isinstance(value, int | float):
        return type(value)(value + 1)
    return "another" if "str" in str(get_type_hints(cls)[name]) else 7


@pytest.mark.parametrize(("dotted", "kind"), every_field(RunConfig))
def test_each_kind_of_field_shapes_program_and_identity_as_it_says(dotted: str, kind: str) -> None:
    config = dataclasses.replace(all_given(), data=dataclasses.replace(tiny().data, corpus="a hash"))
    varied = changed(config, dotted)
    assert varied != config
    same_structure = jax.tree.structure(varied) == jax.tree.structure(config)
    assert same_structure == (kind in ("leaf", "provenance"))
    assert (jax.tree.leaves(varied) == jax.tree.leaves(config)) == (kind != "leaf")
    assert (fingerprint(varied) == fingerprint(config)) == (kind in ("provenance", "execution"))


@pytest.mark.parametrize("dotted", [name for name, kind in every_field(RunConfig) if kind == "leaf"])
def test_every_leaf_is_a_strongly_typed_scalar(dotted: str) -> None:
    leaf = functools.reduce(getattr, dotted.split("."), to_leaves(all_given()))
    again = functools.reduce(getattr, dotted.split("."), to_leaves(changed(all_given(), dotted)))
    assert leaf.shape == again.shape == ()
    assert leaf.dtype == again.dtype
    assert leaf.dtype in (np.float32, np.int32, np.uint32)


def test_no_number_and_a_number_are_different_programs() -> None:
    for groups in ({"optimizer": {"clip_norm": None}}, {"model": {"kappa": 1.0}}):
        assert jax.tree.structure(tiny(**groups)) != jax.tree.structure(tiny())


# The golden run


def golden_numbers(program: Program) -> dict[str, Any]:
    """Losses, gradient norms and sums of absolute parameters of the standard parameterization after 1 and 10 steps."""
    index = np.arange(STEPS_PER_DISPATCH * BATCH * (TIME + 1))
    tokens = ((7 * index**2 + 3 * index) % VOCABULARY).astype(np.int32)
    tokens = tokens.reshape(1, STEPS_PER_DISPATCH, BATCH, TIME + 1)
    config = program.place([tiny(optimizer={"learning_rate": 3e-3})])
    numbers: dict[str, Any] = {}
    for count in (1, 10):
        state, metrics, _ = program.step(config, program.start(config), tokens, count, False)
        flat = flat_parameters(state)
        numbers[f"after_{count}_steps"] = {
            "loss": float(metrics.loss[count - 1]),
            "gradient_norm": float(metrics.gradient_norm[count - 1]),
            "sum_of_absolute_parameters": {
                path: float(np.abs(flat[path]).sum())
                for path in ("embedding", "blocks/block_00/attention/query/kernel", "final_norm/gain", "head/kernel")
            },
        }
    return numbers


def test_the_standard_parameterization_s_golden_steps_are_as_they_were(solo: Program) -> None:
    got, expected = reference.flatten(golden_numbers(solo)), reference.flatten(json.loads(GOLDEN.read_text()))
    assert got.keys() == expected.keys()
    wrong = {path: (got[path], expected[path]) for path in got if got[path] != pytest.approx(expected[path], rel=1e-5)}
    assert not wrong, (
        f"The default recipe's numbers changed (now, before): {wrong}. A refactoring, a new intervention or a faster "
        "kernel must leave them alone: look for the bug. Only a deliberate change of the default recipe, or of JAX's "
        "random numbers in an upgrade, makes it right to write them anew, and then results from before and after do "
        "not compare: say so in the changelog and run `PYTHONPATH=. python tests/test_training.py`."
    )


# The document of observations

PLACES = {"block_NN": r"block_\d\d", "head_NN": r"head_\d\d"}


def documented() -> dict[str, re.Pattern[str]]:
    """Every name in the first column of the document's tables of metrics, as a regular expression."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    tensors = [name for line in lines for name in re.findall(r"^\| tensor `([^`]+)`", line)]
    names = [name for line in lines for name in re.findall(r"^\| `([^`]+)`", line)]
    spelled = [name.replace("TENSOR", tensor) for name in names for tensor in (tensors if "TENSOR" in name else [""])]
    return {name: re.compile(functools.reduce(lambda s, p: s.replace(*p), PLACES.items(), name)) for name in spelled}


class Listener:
    """A journal that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ends: list[int | None] = []

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def progress(self, step: int) -> None:
        pass

    def ended(self, *, diverged_at: int | None, first_bad_observation: str | None = None) -> None:
        self.ends.append(diverged_at)


@pytest.fixture(scope="module")
def real_rows(solo: Program) -> list[dict[str, Any]]:
    """The rows of a run of the real loop."""
    listener = Listener()

    def no_checkpoints() -> Any:
        raise AssertionError("a run this short saves nothing")

    lane = loop.Lane(tiny(), lambda start, count, rows: TOKENS[start : start + count, rows], listener, no_checkpoints)
    loop.train(solo, [lane], VALIDATION, 0, lambda: False)
    assert listener.ends == [None]
    return listener.rows


def test_every_name_of_a_row_is_documented_and_every_documented_name_occurs(real_rows: list[dict[str, Any]]) -> None:
    patterns = documented()
    names = {name for row in real_rows for name in row}
    assert {name for name in names if not any(p.fullmatch(name) for p in patterns.values())} == set()
    assert {name for name, p in patterns.items() if not any(p.fullmatch(one) for one in names)} == set()


def test_rows_reduce_over_heads_and_blocks_as_documented(real_rows: list[dict[str, Any]]) -> None:
    row = next(row for row in real_rows if row["step"] == 10 and "attention_logit/max" in row)

    def heads(name: str) -> list[float]:
        return [row[f"{name}/block_00/head_{i:02d}"] for i in range(2)]

    for name in ("attention_logit/max", "attention_logit/abs_max"):
        assert row[name] == row[f"{name}/block_00"] == max(heads(name))
    for name in ("attention_entropy", "query_key_cosine"):
        assert row[f"{name}/block_00"] == pytest.approx(np.mean(heads(name)))
    for name in ("query_rms/before_norm", "key_rms/after_norm"):
        assert row[f"{name}/block_00"] == pytest.approx(reference.rms(heads(name)))
    assert row["tokens"] == 10 * BATCH * TIME


def variant_row(**model: Any) -> dict[str, Any]:
    """The row of an observed step of a variant, every observation 1, without a program."""
    leaves = to_leaves(tiny(model=model))
    shapes = jax.eval_shape(step, leaves, jax.eval_shape(initial_state, leaves), TOKENS[0], np.bool_(True))
    _, metrics, seen = jax.tree.map(lambda shape: np.ones(shape.shape, shape.dtype), shapes)
    metrics = StepMetrics(*(np.ones(1) for _ in metrics))
    return training_row(tiny().training, 0, 0, metrics, seen, 1.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "squared_relu": {"attention": "squared_relu"},
    "no_qk_layernorm_but_kappa": {"qk_layernorm": "none", "kappa": 10.0},
    "no_attention": {"attention": "none"},
    "no_mlp": {"mlp": "none"},
    "bigram": {"attention": "none", "mlp": "none"},
}


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_s_row_lacks_what_it_has_not_and_no_more(model: dict[str, Any]) -> None:
    row, whole = variant_row(**model), variant_row()
    assert set(row) <= set(whole)
    lacking = {part for name in set(whole) - set(row) for part in name.split("/")}
    attention = {"attention_logit", "attention_entropy", "query_rms", "key_rms", "query_key_cosine", "attention_output"}
    gone = attention if model.get("attention") == "none" else set()
    if model.get("attention") == "squared_relu":
        gone = {"attention_entropy"}
    if model.get("mlp") == "none":
        gone = gone | {"mlp_output"}
    quantities = attention | {"mlp_output", "block_output", "final_stream", "output_logit"}
    assert lacking & quantities == gone
    assert ("attention_logit/max" in row) == (model.get("attention") != "none")


def test_a_run_without_attention_comes_to_a_result_without_attention_logits() -> None:
    rows = [{"step": 0, "loss/validation": 4.0}, variant_row(attention="none"), {"step": 20, "loss/validation": 3.0}]
    result = Results(20, rows).summary(None)
    assert result["status"] == "finished"
    assert result["attention_logit_max"] is None
    assert result["attention_logit_max_final"] is None


@pytest.mark.parametrize("values", [[0.0, -1.0], [-3.0, -2.0], [5.0, math.inf, math.nan, 2.0], [math.nan], []])
def test_results_row_by_row_are_those_of_all_rows(values: list[float]) -> None:
    """Also where a run goes on from a checkpoint with the rows that it had."""
    rows = [{"step": i, "attention_logit/max": value} for i, value in enumerate(values)]
    finite = [value for value in values if math.isfinite(value)]
    for had in range(len(rows) + 1):
        results = Results(20, rows[:had])
        for row in rows[had:]:
            results.add(row)
        found = results.summary(None)
        assert found["attention_logit_max"] == max(finite, default=None)
        assert found["attention_logit_max_final"] == (finite[-1] if finite else None)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    content = json.dumps(golden_numbers(programs.get(tiny(), None, VALIDATION_SHAPE)), indent=2)
    GOLDEN.write_text(content + "\n", encoding="utf-8")
