"""The model against float64 NumPy: logits, loss, gradients, observations, initialisation, invariances, precision."""

import dataclasses
from functools import partial
from itertools import product
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from quick import QUICKLY

from stability.config import ModelConfig, RunConfig, to_leaves
from stability.model.layers import ATTENTIONS, MLPS, rescale, rotate
from stability.model.parameterization import PARAMETERIZATIONS, TRUNCATED_NORMAL_STD
from stability.model.transformer import apply, initialise, parameter_kinds
from stability.training.loss import Loss, loss
from stability.training.step import initial_state, step
from stability.typed import from_mapping

SCOPES = ["none", "per_head", "whole_width"]
BATCH, TIME, VOCABULARY = 2, 8, 32
RTOL = 2e-5
"""float32 against float64: some hundred roundings of 6e-8 each."""


pytestmark = pytest.mark.usefixtures("strict_numerics")


def small(precision: str = "float32", **model: Any) -> RunConfig:
    """Two blocks of two heads; eps and rotary base large enough to matter."""
    return from_mapping(
        RunConfig,
        {
            "model": {"width": 16, "depth": 2, "head_dim": 8, "layernorm_eps": 1e-2, "rotary_base": 50.0} | model,
            "loss": {"z_loss": 0.05},
            "training": {"steps": 20, "batch_size": BATCH, "sequence_length": TIME, "precision": precision},
            "schedule": {"warmup_steps": 0},
            "data": {"vocabulary_size": VOCABULARY},
        },
    )


def spread_parameters(config: RunConfig) -> Any:
    """Parameters far from their start: gains differ, attention is not uniform, nothing is symmetric."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(initialise, to_leaves(config))

    def draw(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        unit = rng.normal(size=shape.shape).astype(np.float32)
        return 1 + 0.3 * unit if len(shape.shape) == 1 else 1.5 * unit / np.float32(np.sqrt(shape.shape[0]))

    return jax.tree.map(lambda shape: draw(shape).astype(np.float32), shapes)


TOKENS = np.random.default_rng(2).integers(0, VOCABULARY, (BATCH, TIME + 1), dtype=np.int32)


class Measured(NamedTuple):
    logits: jax.Array
    losses: Loss
    seen: dict[str, Any]
    gradients: Any


@partial(jax.jit, compiler_options=QUICKLY)
def measure(config: RunConfig, parameters: Any, tokens: Any, observe: Any) -> Measured:
    def objective(parameters: Any) -> Any:
        logits, seen = apply(config, parameters, tokens[:, :-1], observe)
        losses = loss(config, logits, tokens[:, 1:].reshape(-1))
        return losses.total, (logits, losses, seen)

    gradients, aux = jax.grad(objective, has_aux=True)(parameters)
    return Measured(*aux, gradients)


class Case(NamedTuple):
    """One structure, compiled once for the module."""

    config: RunConfig
    parameters: Any

    def run(self, tokens: np.ndarray = TOKENS, observe: bool = False) -> Measured:
        return measure(to_leaves(self.config), self.parameters, tokens, np.bool_(observe))


@pytest.fixture(scope="module", params=SCOPES)
def case(request: pytest.FixtureRequest) -> Case:
    """Two blocks with each kind of qk-layernorm."""
    config = small(qk_layernorm=request.param)
    return Case(config, spread_parameters(config))


ATTENTION_VARIANTS = {
    f"{attention}-{scope}{'' if kappa is None else '-kappa'}{'' if exponent is None else '-scaled'}": {
        "attention": attention,
        "qk_layernorm": scope,
        "kappa": kappa,
        "attention_scale_exponent": exponent,
        "attention_length_exponent": 0.7,
    }
    for attention, scope, kappa, exponent in product(["softmax", "squared_relu"], SCOPES, [None, 3.0], [None, 0.8])
}
OTHER_VARIANTS = {
    "no_attention": {"attention": "none"},
    "no_mlp": {"mlp": "none"},
    "bigram": {"attention": "none", "mlp": "none"},
    "mup_full": {"parameterization": "mup_full"},
}
VARIANTS = {f"two_blocks-{scope}": {"depth": 2, "qk_layernorm": scope} for scope in SCOPES} | {
    name: {"depth": 1} | changes for name, changes in (ATTENTION_VARIANTS | OTHER_VARIANTS).items()
}
"""Every attention x qk-layernorm x kappa x scale, and what may be left out: one block, and two of the commonest."""


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request: pytest.FixtureRequest) -> Case:
    config = small(**request.param)
    return Case(config, spread_parameters(config))


@pytest.fixture(scope="module")
def per_head() -> Case:
    config = small(qk_layernorm="per_head")
    return Case(config, spread_parameters(config))


def close(actual: Any, expected: Any, rtol: float = RTOL) -> None:
    """Equal up to `rtol` of the largest expected value, so that entries near zero are not held to their own size."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.max(np.abs(expected)))


def test_logits_and_loss_are_the_reference_s(variant: Case) -> None:
    got = variant.run()
    trace = reference.forward(variant.config.model, variant.parameters, TOKENS[:, :-1])
    close(got.logits, trace.logits.reshape(-1, VOCABULARY))
    total, cross_entropy = reference.losses(trace.logits, TOKENS[:, 1:], variant.config.loss.z_loss)
    assert float(got.losses.total) == pytest.approx(total, rel=RTOL)
    assert float(got.losses.cross_entropy) == pytest.approx(cross_entropy, rel=RTOL)
    assert total > cross_entropy + 0.1  # z-loss is large enough here for its absence to show


@pytest.mark.parametrize("kappa", [0.1, 30.0])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_leaves_of_attention_are_the_reference_s_at_any_value(kappa: float, exponent: float) -> None:
    """The programs are those of `variant`: such numbers flow through them."""
    config = small(
        depth=1,
        attention="squared_relu",
        kappa=kappa,
        attention_scale_exponent=exponent,
        attention_length_exponent=exponent,
    )
    parameters = spread_parameters(config)
    trace = reference.forward(config.model, parameters, TOKENS[:, :-1])
    close(Case(config, parameters).run().logits, trace.logits.reshape(-1, VOCABULARY))


def test_gradient_of_every_tensor_is_the_reference_s_slope(variant: Case) -> None:
    flat = reference.flatten(reference.to_float64(variant.parameters))
    gradients = reference.flatten(reference.to_float64(variant.run().gradients))
    assert gradients.keys() == flat.keys()
    rng = np.random.default_rng(3)
    directions = [{path: rng.normal(size=value.shape)} for path, value in flat.items()]
    directions += [{path: rng.normal(size=value.shape) for path, value in flat.items()} for _ in range(3)]
    for direction in directions:
        expected = reference.slope(variant.config, flat, direction, TOKENS)
        terms = [float(np.sum(gradients[path] * d)) for path, d in direction.items()]
        size = np.sqrt(sum(np.sum(gradients[path] ** 2) for path in direction))
        assert sum(terms) == pytest.approx(expected, abs=1e-4 * size), list(direction)


def test_observations_are_brute_force_values(variant: Case) -> None:
    seen = variant.run(observe=True).seen
    trace = reference.forward(variant.config.model, variant.parameters, TOKENS[:, :-1])
    expected: dict[str, Any] = {"final_stream/rms": reference.rms(trace.final_stream)}
    for i, block in enumerate(trace.blocks):
        expected |= {f"{name}/block_{i:02d}": value for name, value in reference.observe_block(block).items()}
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=5e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["attention", "mlp", "parameterization"])
def test_every_choice_of_a_table_is_in_the_config_and_the_other_way_round(name: str) -> None:
    table: dict[str, Any] = {"attention": ATTENTIONS, "mlp": MLPS, "parameterization": PARAMETERIZATIONS}[name]
    assert set(table) == set(get_args(get_type_hints(ModelConfig)[name]))


@pytest.mark.parametrize("exponent", [0.5, 0.0])
def test_kappa_bounds_the_logits_however_large_the_weights(exponent: float) -> None:
    """abs(logit) <= kappa sqrt(head dim) at exponent 1/2; a query and the same key at its own position reach it."""
    config = small(depth=1, qk_layernorm="none", kappa=40.0, attention_scale_exponent=exponent)
    parameters = jax.tree.map(np.copy, spread_parameters(config))
    attention = parameters["blocks"]["block_00"]["attention"]
    attention["query"]["kernel"] *= 1e4
    attention["key"]["kernel"] = attention["query"]["kernel"]
    seen = Case(config, parameters).run(observe=True).seen
    bound = 40.0 * config.model.head_dim ** (1 - exponent)
    np.testing.assert_allclose(seen["attention_logit/max/block_00"], bound, rtol=1e-5)
    np.testing.assert_allclose(seen["query_rms/after_norm/block_00"], np.sqrt(40.0), rtol=1e-5)
    assert np.all(seen["attention_logit/abs_max/block_00"] <= bound * (1 + 1e-5))


def test_rescaling_nothing_gives_nothing_and_a_gradient() -> None:
    zero = jnp.zeros((3, 8), jnp.float32)
    np.testing.assert_array_equal(rescale(zero, 100.0), 0.0)
    slope = jax.grad(lambda x: jnp.sum(rescale(x, 100.0)))(zero)
    assert np.all(np.isfinite(slope))
    assert np.all(slope > 0)


def test_pointwise_attention_sees_no_negative_logits_and_no_distribution() -> None:
    config = small(depth=1, attention="squared_relu")
    parameters = spread_parameters(config)
    seen = Case(config, parameters).run(observe=True).seen
    assert not any(name.startswith("attention_entropy") for name in seen)
    (trace,) = reference.forward(config.model, parameters, TOKENS[:, :-1]).blocks
    assert trace.attention is not None
    ignored = np.nan_to_num(trace.attention.logits) <= 0
    assert np.all(trace.attention.weights[ignored] == 0)
    assert np.any(trace.attention.weights.sum(-1) > 1)


def test_without_attention_and_mlp_a_position_is_all_that_a_logit_depends_on() -> None:
    """A bigram model: equal tokens have equal logits wherever they stand, and nothing lies between stream and head."""
    config = small(attention="none", mlp="none")
    parameters = spread_parameters(config)
    assert set(reference.flatten(parameters)) == {"embedding", "final_norm/gain", "head/kernel"}
    got = Case(config, parameters).run(observe=True)
    logits, tokens = np.asarray(got.logits), TOKENS[:, :-1].ravel()
    assert len(set(tokens)) < len(tokens)
    for token in tokens:
        same = logits[tokens == token]
        np.testing.assert_array_equal(same, np.broadcast_to(same[0], same.shape))
    stream = reference.rms(parameters["embedding"][tokens])
    for block in ("block_00", "block_01"):
        assert float(got.seen[f"block_output/rms/{block}"]) == pytest.approx(stream, rel=1e-6)
    assert set(got.seen) == {"block_output/rms/block_00", "block_output/rms/block_01", "final_stream/rms"}


def test_n_params_names_the_scale_whatever_is_left_out() -> None:
    whole = small().model
    for changes in ({"attention": "none"}, {"mlp": "none"}, {"attention": "none", "mlp": "none"}):
        assert dataclasses.replace(whole, **changes).n_params == whole.n_params


def test_signed_and_absolute_maximum_differ_somewhere(per_head: Case) -> None:
    seen = per_head.run(observe=True).seen
    signed = np.concatenate([v for name, v in seen.items() if name.startswith("attention_logit/max")])
    absolute = np.concatenate([v for name, v in seen.items() if name.startswith("attention_logit/abs_max")])
    assert np.all(absolute >= signed)
    assert np.any(absolute > signed)


def test_observing_changes_nothing_and_not_observing_measures_nothing(case: Case) -> None:
    observed, quiet = case.run(observe=True), case.run(observe=False)
    assert all(np.all(np.asarray(value) == 0) for value in quiet.seen.values())
    trees = (jax.tree.leaves(measured._replace(seen={})) for measured in (observed, quiet))
    for one, other in zip(*trees, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("changed", [1, 5, TIME - 1])
def test_no_logit_depends_on_a_later_token(case: Case, changed: int) -> None:
    tokens = TOKENS.copy()
    tokens[:, changed] = (tokens[:, changed] + 1) % VOCABULARY
    before, after = (np.asarray(case.run(t).logits).reshape(BATCH, TIME, -1) for t in (TOKENS, tokens))
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert np.all(np.any(before[:, changed:] != after[:, changed:], axis=-1))  # and each later one does depend on it


def test_order_of_the_batch_does_not_matter(case: Case) -> None:
    order = [1, 0]
    one, other = case.run(TOKENS), case.run(TOKENS[order])
    close(other.logits.reshape(BATCH, TIME, -1), np.asarray(one.logits).reshape(BATCH, TIME, -1)[order], 1e-6)
    assert float(one.losses.total) == pytest.approx(float(other.losses.total), rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.gradients), jax.tree.leaves(other.gradients), strict=True):
        close(a, b)


def test_qk_layernorm_makes_attention_blind_to_the_scale_of_queries(case: Case) -> None:
    model = dataclasses.replace(case.config.model, layernorm_eps=1e-12)
    config = dataclasses.replace(case.config, model=model)
    scaled = jax.tree.map(np.copy, case.parameters)
    for block in scaled["blocks"].values():
        block["attention"]["query"]["kernel"] *= 8
    one, other = Case(config, case.parameters).run().logits, Case(config, scaled).run().logits
    difference = float(jnp.max(jnp.abs(one - other)))
    assert difference > 0.1 if case.config.model.qk_layernorm == "none" else difference < 1e-4


def test_without_z_loss_the_total_is_the_cross_entropy(per_head: Case) -> None:
    config = dataclasses.replace(per_head.config, loss=dataclasses.replace(per_head.config.loss, z_loss=0.0))
    losses = Case(config, per_head.parameters).run().losses
    assert float(losses.total) == float(losses.cross_entropy)


def test_rotated_product_depends_on_relative_position_only() -> None:
    query, key = np.random.default_rng(4).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turned_query, turned_key = (rotate(jnp.tile(x, (1, TIME, 1, 1)), np.float32(50.0)) for x in (query, key))
    dot = np.einsum("tk,sk->ts", turned_query[0, :, 0], turned_key[0, :, 0])
    for lag in range(-TIME + 1, TIME):
        np.testing.assert_allclose(np.diagonal(dot, lag), dot.diagonal(lag)[0], atol=1e-5)
    assert len(np.unique(dot[0].round(4))) == TIME  # and it does depend on it
    np.testing.assert_array_equal(turned_query[:, 0], query[:, 0])  # position 0 is not turned


def test_bfloat16_computes_roughly_the_same_and_keeps_float32_where_it_must(per_head: Case) -> None:
    config = small("bfloat16")
    rough, exact = Case(config, per_head.parameters).run(observe=True), per_head.run(observe=True)
    assert {x.dtype for x in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    difference = reference.rms(np.asarray(rough.logits) - np.asarray(exact.logits)) / reference.rms(exact.logits)
    # A rounding is 2^-9 = 2e-3 of a value; no difference at all would mean that nothing was computed in bfloat16.
    assert 1e-4 < difference < 0.03
    assert float(rough.losses.cross_entropy) == pytest.approx(float(exact.losses.cross_entropy), rel=0.02)
    for name, value in exact.seen.items():
        np.testing.assert_allclose(rough.seen[name], value, rtol=0.1, atol=0.05, err_msg=name)


def test_bfloat16_state_is_float32_after_a_step() -> None:
    leaves = to_leaves(small("bfloat16"))
    state, metrics, _ = jax.eval_shape(step, leaves, jax.eval_shape(initial_state, leaves), TOKENS, np.bool_(True))
    assert {x.dtype for x in jax.tree.leaves(state.parameters)} == {jnp.dtype("float32")}
    moments = [x.dtype for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert set(moments) == {jnp.dtype("float32")}
    assert metrics.loss.dtype == metrics.cross_entropy.dtype == jnp.float32


# Initialisation

WIDTH, WIDE_VOCABULARY = 64, 256
ROLE_OF = {
    "embedding": "embedding",
    "attention/query": "query",
    "attention/key": "key",
    "attention/value": "value",
    "attention/out": "attention_output",
    "mlp/inner": "mlp_in",
    "mlp/outer": "mlp_out",
    "head": "head",
}


class Fresh(NamedTuple):
    config: RunConfig
    draw: Any
    """seed -> flattened parameters."""


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    config = dataclasses.replace(
        small(),
        model=ModelConfig(width=WIDTH, depth=1, head_dim=32),
        data=dataclasses.replace(small().data, vocabulary_size=WIDE_VOCABULARY),
    )
    program = jax.jit(initialise, compiler_options=QUICKLY)

    def draw(seed: int) -> dict[str, np.ndarray]:
        return reference.flatten(jax.device_get(program(to_leaves(dataclasses.replace(config, seed=seed)))))

    return Fresh(config, draw)


def test_every_tensor_has_its_role(fresh: Fresh) -> None:
    for path, kind in reference.flatten(parameter_kinds(fresh.config)).items():
        place = reference.metric_name(path).removeprefix("block_00/")
        assert kind.role == ("gain" if path.endswith("gain") else ROLE_OF[place])


def test_matrices_start_with_their_standard_deviation_and_gains_at_one(fresh: Fresh) -> None:
    """1/sqrt(fan-in), the embedding's 1/sqrt(width); n draws scatter it by std/sqrt(2n), the mean by std/sqrt(n)."""
    for path, value in fresh.draw(0).items():
        if path.endswith("gain"):
            np.testing.assert_array_equal(value, 1.0)
            continue
        std = (WIDTH if path == "embedding" else value.shape[0]) ** -0.5
        assert value.std() == pytest.approx(std, rel=5 / np.sqrt(2 * value.size)), path
        assert abs(value.mean()) < 5 * std / np.sqrt(value.size), path


def test_all_matrices_but_the_embedding_are_cut_at_two_sigma(fresh: Fresh) -> None:
    """Two sigma of the normal before the cut: the correction makes that 2 / 0.8796 = 2.27 of the std after it."""
    for path, value in fresh.draw(0).items():
        if path.endswith("gain"):
            continue
        largest = np.max(np.abs(value)) / (WIDTH if path == "embedding" else value.shape[0]) ** -0.5
        bound = 2 / TRUNCATED_NORMAL_STD
        # Of thousands of draws the largest comes close to the bound; without it, it would lie near 3.5.
        assert largest > 3 if path == "embedding" else 0.98 * bound < largest <= bound * (1 + 1e-6), path


def test_correction_is_the_standard_deviation_of_the_cut_normal() -> None:
    z = np.linspace(-2, 2, 200_001)
    density = np.exp(-(z**2) / 2)
    assert pytest.approx(np.sqrt(np.sum(z**2 * density) / np.sum(density)), rel=1e-4) == TRUNCATED_NORMAL_STD


def test_a_seed_gives_one_initialisation_and_tensors_of_one_shape_differ(fresh: Fresh) -> None:
    first, again, other = fresh.draw(0), fresh.draw(0), fresh.draw(1)
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        assert path.endswith("gain") or np.mean(value == other[path]) < 0.01, path
    attention = [value for path, value in first.items() if "attention" in path and path.endswith("kernel")]
    correlations = np.corrcoef([value.ravel() for value in attention])
    assert np.max(np.abs(correlations - np.eye(len(attention)))) < 5 / np.sqrt(attention[0].size)


def test_initial_loss_is_log_vocabulary_and_half_a_nat(fresh: Fresh) -> None:
    """The head reads a stream of RMS 1 with weights of variance 1/width: logits are near N(0, 1) and independent of the
    target, so loss = E log sum exp(logits) = log V + 1/2 for a large V. 256 targets scatter by 1/sqrt(256) = 0.06, the
    logits' variance by some percent; 0.25 is four times that."""
    tokens = np.random.default_rng(5).integers(0, WIDE_VOCABULARY, (8, 33))
    logits = reference.forward(fresh.config.model, reference.unflatten(fresh.draw(0)), tokens[:, :-1]).logits
    cross_entropy = reference.losses(logits, tokens[:, 1:], 0.0)[1]
    assert cross_entropy == pytest.approx(np.log(WIDE_VOCABULARY) + 0.5, abs=0.25)


@pytest.mark.parametrize("changes", [{}, {"width": 48, "head_dim": 16, "depth": 3}, {"mlp_ratio": 2}])
def test_n_params_counts_all_matrices_but_embedding_and_head(changes: dict[str, int]) -> None:
    model = dataclasses.replace(small().model, **changes)
    shapes = jax.eval_shape(initialise, to_leaves(dataclasses.replace(small(), model=model)))
    matrices = [v.size for path, v in reference.flatten(shapes).items() if len(v.shape) == 2 and "blocks/" in path]
    assert model.n_params == sum(matrices)


@pytest.mark.parametrize(
    ("width", "depth", "published"),
    [
        (256, 3, 2.4e6),
        (512, 3, 9.4e6),
        (512, 6, 1.9e7),
        (768, 6, 4.2e7),
        (768, 12, 8.5e7),
        (1024, 12, 1.5e8),
        (1024, 24, 3.0e8),
        (2048, 24, 1.2e9),
        (4096, 24, 4.8e9),
    ],
)
def test_n_params_is_the_paper_s_n(width: int, depth: int, published: float) -> None:
    """N of arXiv 2309.14322, to two digits; its widths and depths are partly inferred."""
    assert ModelConfig(width=width, depth=depth, head_dim=64).n_params == pytest.approx(published, rel=0.02)
