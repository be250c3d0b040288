"""How a device computes a step: every choice of `compute` against the plain path, observations included."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick import QUICKLY, compile_quickly

from benchmarks.program_text import collectives
from stability.config import RunConfig, fingerprint, largest_divisor, to_leaves
from stability.errors import InputError
from stability.launching.memory import compiled_bytes, state_bytes
from stability.model import kernels, layers
from stability.model.kernels import chosen_kernel, refuse_kernel
from stability.model.observation import combined, dealt
from stability.model.transformer import as_computed, initialise
from stability.training import loss
from stability.training.lanes import STEPS_PER_DISPATCH, compile_program
from stability.training.mesh import lane_mesh
from stability.training.step import batch_gradients, evaluate, initial_state, step
from stability.typed import from_mapping

pytestmark = pytest.mark.usefixtures("strict_numerics")

BATCH, TIME, VOCABULARY = 6, 8, 48
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME + 1), dtype=np.int32)


def run(compute: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    given = {
        "model": {"width": 16, "depth": 1, "head_dim": 8} | model,
        "training": {"steps": 20, "batch_size": BATCH, "sequence_length": TIME},
        "schedule": {"warmup_steps": 0},
        "loss": {"z_loss": 0.05},
        "data": {"vocabulary_size": VOCABULARY},
        "compute": compute or {},
    }
    return from_mapping(RunConfig, given)


@partial(jax.jit, compiler_options=QUICKLY)
def measured(config: RunConfig, parameters: Any, observe: Any) -> Any:
    """Gradients, losses and observations of a batch, and the validation loss of two."""
    return batch_gradients(config, parameters, TOKENS, observe), evaluate(config, parameters, np.stack([TOKENS] * 2))


@partial(jax.jit, compiler_options=QUICKLY)
def spread(config: RunConfig) -> Any:
    """Parameters with which attention is far from uniform."""
    return jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, initialise(config))


def assert_same(one: Any, other: Any, rtol: float = 2e-4) -> None:
    """Equal but for rounding: each array within `rtol` of its largest number."""
    (gradients, losses, seen), validation = one
    (others, other_losses, other_seen), other_validation = other
    assert seen.keys() == other_seen.keys()
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(np.max(np.abs(b))))
    np.testing.assert_allclose(losses, other_losses, rtol=rtol)
    np.testing.assert_allclose(validation, other_validation, rtol=rtol)
    for name, value in other_seen.items():
        np.testing.assert_allclose(seen[name], value, rtol=rtol, atol=1e-6, err_msg=name)


CHOICES: dict[str, dict[str, Any]] = {
    "blockwise": {"attention": "blockwise"},
    "chunked head": {"head_chunk": 16},
    "chunks of one position": {"head_chunk": 1},
    "scanned": {"blocks": "scanned"},
    "rematerialised": {"rematerialise": "blocks"},
    "products kept": {"rematerialise": "all_but_products"},
    "accumulated": {"micro_batch": 2},
    "everything": {
        "attention": "blockwise",
        "head_chunk": 8,
        "blocks": "scanned",
        "rematerialise": "blocks",
        "micro_batch": 3,
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "squared relu, whole width": {"attention": "squared_relu", "qk_layernorm": "whole_width"},
    "mup, scaled": {"parameterization": "mup_full", "attention_scale_exponent": 0.7, "kappa": 4.0},
    "bigram": {"attention": "none", "mlp": "none"},
    "three blocks": {"depth": 3},
}
CASES = [(choice, "softmax") for choice in CHOICES] + [("everything", model) for model in MODELS if model != "softmax"]
"""Each choice alone, and all together with each model."""


@pytest.mark.parametrize(("choice", "model"), CASES, ids=[f"{choice}-{model}" for choice, model in CASES])
def test_every_choice_computes_what_the_plain_path_does(
    choice: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 4)  # so that eight queries are two blocks
    plain, chosen = run({"attention": "plain"}, **MODELS[model]), run(CHOICES[choice], **MODELS[model])
    parameters = spread(to_leaves(plain))
    for observe in (True, False):
        here = measured(to_leaves(chosen), parameters, np.bool_(observe))
        assert_same(here, measured(to_leaves(plain), parameters, np.bool_(observe)))
    if model == "softmax":
        texts = [measured.lower(to_leaves(c), parameters, np.bool_(True)).as_text() for c in (plain, chosen)]
        assert len(texts[0]) != len(texts[1]), "a choice that changes no program is none"


def test_lanes_and_later_steps_agree_too() -> None:
    plain, chosen = run({"attention": "plain"}), run({"head_chunk": 16, "micro_batch": 2, "rematerialise": "blocks"})

    @partial(jax.jit, compiler_options=QUICKLY)
    def three_steps(config: RunConfig) -> Any:
        def one(state: Any, _: None) -> Any:
            state, metrics, _ = step(config, state, TOKENS, np.bool_(False))
            return state, metrics.loss

        return jax.lax.scan(one, initial_state(config), None, length=3)[1]

    def lanes(config: RunConfig) -> Any:
        rates = [dataclasses.replace(config.optimizer, learning_rate=rate) for rate in (1e-3, 1e-2)]
        each = [to_leaves(dataclasses.replace(config, optimizer=rate)) for rate in rates]
        return jax.vmap(three_steps)(jax.tree.map(lambda *x: np.stack(x), *each))

    expected = lanes(plain)
    np.testing.assert_allclose(lanes(chosen), expected, rtol=1e-3)
    assert not np.allclose(expected[0], expected[1], rtol=1e-3), "the lanes differ"


def test_devices_that_share_a_run_compute_the_same() -> None:
    """Micro-batches, chunks of the head and blocks of queries on two by two devices, parameters cut among them."""
    chosen = run({"attention": "blockwise", "head_chunk": 4, "rematerialise": "blocks", "micro_batch": 4})
    many = dataclasses.replace(chosen, training=dataclasses.replace(chosen.training, batch_size=8))
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, VOCABULARY, (1, STEPS_PER_DISPATCH, 8, TIME + 1), np.int32)
    validation = rng.integers(0, VOCABULARY, (2, 8, TIME + 1), np.int32)
    outcomes = []
    for one, mesh in (
        (many, lane_mesh(jax.devices()[:4], 2, 2)),
        (dataclasses.replace(many, compute=run().compute), None),
    ):
        program = compile_quickly(one, None if mesh is None else 1, validation.shape, mesh)
        config = program.place([one])
        state, metrics, seen = program.step(config, program.start(config), tokens, 2, True)
        first = jax.tree.map(lambda x, whole=mesh is None: x if whole else x[0], jax.device_get((metrics, seen)))
        outcomes.append((*first, program.loss(config, state, validation)))
    for a, b in zip(jax.tree.leaves(outcomes[0]), jax.tree.leaves(outcomes[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.slow
def test_the_paper_s_largest_model_is_cut_among_eight_devices() -> None:
    """4.8e9 parameters with the paper's batch and vocabulary, compiled and not executed: about 90 s and 2 GB."""
    compute = {"attention": "blockwise", "rematerialise": "blocks", "blocks": "scanned", "micro_batch": 8}
    given = {
        "model": {"width": 4096, "depth": 24, "head_dim": 64},
        "training": {"batch_size": 256, "sequence_length": 512, "precision": "bfloat16"},
        "data": {"vocabulary_size": 32_101},
        "compute": compute,
    }
    config = from_mapping(RunConfig, given)
    program = compile_program(config, 1, (1, 256, 513), lane_mesh(jax.devices()[:8], fsdp=8))
    advance = program.advance.memory_analysis()
    assert advance.argument_size_in_bytes < 1.01 * state_bytes(config) / 8
    assert (compiled_bytes(program) or math.inf) < 25e9, "each held 74 GB when every device summed whole gradients"


# --- fused kernels ----------------------------------------------------------------------------------------------------


def queries(batch: int, time: int, heads: int, head_dim: int) -> list[jax.Array]:
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(size=(batch, time, heads, head_dim)), jnp.float32) for _ in range(3)]


def softmax(logits: Any) -> Any:
    return jax.nn.softmax(logits, axis=-1)


@pytest.mark.parametrize(("scale", "block"), [(0.125, 128), (np.float32(0.3), 512)])
def test_splash_mixes_as_plain_attention_does(scale: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's TPU kernel in interpret mode: forward and backward, head dims that fill no tile, two blocks and one."""
    monkeypatch.setattr(kernels, "SPLASH_BLOCK", block)
    query, key, value = queries(1, 256, 2, 16)

    def mixed(kernel: Any, *arrays: Any) -> Any:
        return jnp.sum(jnp.sin(kernel(*arrays))), kernel(*arrays)

    fused = partial(kernels.splash, scale=scale, interpret=True)
    exact = partial(kernels.plain, scale=scale, weigh=softmax)
    (got, got_out), got_gradients = jax.value_and_grad(partial(mixed, fused), (0, 1, 2), has_aux=True)(
        query, key, value
    )
    (want, want_out), want_gradients = jax.value_and_grad(partial(mixed, exact), (0, 1, 2), has_aux=True)(
        query, key, value
    )
    np.testing.assert_allclose(got_out, want_out, atol=2e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_cudnn_is_asked_for_causal_softmax_with_our_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call on a CPU, where JAX computes it by its own formula; on a GPU tests/test_gpu.py runs the kernel."""
    real, asked = jax.nn.dot_product_attention, []

    def without_cudnn(*arrays: Any, implementation: str, **how: Any) -> Any:
        asked.append(implementation)
        return real(*arrays, **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    query, key, value = queries(2, 8, 2, 8)
    for scale in (0.25, np.float32(0.3)):
        want = kernels.plain(query, key, value, scale, softmax)
        np.testing.assert_allclose(kernels.cudnn(query, key, value, scale), want, atol=1e-5)
    assert asked == ["cudnn", "cudnn"]


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_fused_kernel_runs_on_each_device_of_a_lane(data: int, fsdp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler cannot divide gets the rows of its device, inside the lanes' own division of the devices.

    No axis is left to the compiler, not even one of a single device: a TPU's refuses a kernel otherwise.
    """
    seen: list[int] = []

    def fused(query: Any, key: Any, value: Any, scale: Any) -> Any:
        seen.append(query.shape[0])
        assert set(jax.sharding.get_abstract_mesh().axis_types) == {AxisType.Manual}
        return kernels.plain(query, key, value, scale, softmax)

    monkeypatch.setitem(kernels.FUSED, "splash", fused)
    arrays = queries(4, 8, 2, 8)
    mesh = lane_mesh(jax.devices()[:4], data, fsdp)

    def lane(*arrays: Any) -> Any:
        return kernels.mix("splash", *arrays, 0.3, softmax)

    whole = PartitionSpec()
    spread_out = jax.shard_map(
        lane, mesh=mesh, in_specs=(whole,) * 3, out_specs=whole, axis_names={"lanes"}, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(spread_out)(*arrays), kernels.plain(*arrays, 0.3, softmax), atol=1e-6)
    assert set(seen) == {4 // (data * fsdp)}, "each device its part of the four rows"


# --- observation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [2 * TIME * TIME, 4 * TIME * TIME, 2 * TIME, 1], ids=str)
def test_attention_observed_by_parts_is_exact(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads: one sequence at a time, two, one query, and less than that, which is one query too."""
    config = run({"attention": "plain"})
    parameters = spread(to_leaves(config))
    whole = measured(to_leaves(config), parameters, np.bool_(True))
    monkeypatch.setattr(layers, "OBSERVED_AT_ONCE", at_once)
    jax.clear_caches()
    assert_same(measured(to_leaves(config), parameters, np.bool_(True)), whole, rtol=1e-5)


def test_devices_observe_their_own_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a batch that devices share are of all devices: none is told the queries of another, in no part."""
    monkeypatch.setattr(layers, "OBSERVED_AT_ONCE", 2 * TIME * TIME)  # a sequence at a time
    model = run().model
    measure = partial(layers.SoftmaxAttention(model, nnx.Rngs(0)).observe_logits, 0.3)
    observe = partial(layers.by_parts, measure)
    query, key, _ = queries(16, TIME, 2, 8)
    mesh = lane_mesh(jax.devices()[:4], 2, 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        program = jax.jit(observe, in_shardings=(rows, rows)).lower(query, key).compile()
    assert set(collectives(program.as_text())) == {"all-reduce"}
    seen = program(*jax.device_put((query, key), rows))
    for name, value in jax.jit(observe)(query, key).items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5)


def test_parts_make_a_whole_or_say_that_they_cannot() -> None:
    values = np.random.default_rng(1).normal(2, 3, (12, 40)).astype(np.float32)
    parts = dealt(jnp.asarray(values), 4)
    seen = {
        "output_logit/max": jnp.max(parts, (1, 2)),
        "output_logit/mean": jnp.mean(parts, (1, 2)),
        "output_logit/std": jnp.std(parts, (1, 2)),
        "final_stream/rms": jnp.sqrt(jnp.mean(jnp.square(parts), (1, 2))),
    }
    whole = combined(seen)
    expected = [values.max(), values.mean(), values.std(), np.sqrt(np.mean(values**2))]
    np.testing.assert_allclose(list(whole.values()), expected, rtol=1e-5)
    np.testing.assert_array_equal(np.sort(np.asarray(parts).ravel()), np.sort(values.ravel()))
    with pytest.raises(ValueError, match="how do parts of it make a whole"):
        combined({"loudness/block_00": jnp.ones(2)})


# --- choosing ---------------------------------------------------------------------------------------------------------


class Device:
    """What a kernel's requirements are read from."""

    def __init__(self, platform: str, capability: str = "9.0", version: str = "cuda 13000") -> None:
        self.platform, self.device_kind, self.compute_capability = platform, f"a {platform}", capability
        self.client = self
        self.platform_version = version


LONG = {"precision": "bfloat16", "sequence_length": 128}
CHOSEN = [
    (Device("cpu"), {}, {}, "plain"),
    (Device("cpu"), {}, {"sequence_length": 4096}, "blockwise"),
    (Device("gpu"), {}, LONG, "cudnn"),
    (Device("gpu"), {}, LONG | {"precision": "float32"}, "plain"),
    (Device("gpu"), {}, LONG | {"sequence_length": 100}, "plain"),
    (Device("gpu"), {"head_dim": 256, "width": 256}, LONG, "plain"),
    (Device("gpu"), {"attention": "squared_relu"}, LONG, "plain"),
    (Device("gpu", capability="7.5"), {}, LONG, "plain"),
    (Device("gpu", version="rocm 60000"), {}, LONG, "plain"),
    (Device("tpu"), {}, LONG, "splash"),
    (Device("tpu"), {}, LONG | {"precision": "float32"}, "splash"),
    (Device("tpu"), {}, LONG | {"sequence_length": 64}, "plain"),
]


@pytest.mark.parametrize(("device", "model", "training", "kernel"), CHOSEN, ids=range(len(CHOSEN)))
def test_auto_takes_the_fused_kernel_where_it_can_be_used(
    device: Device, model: Any, training: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    given = {"model": {"width": 128, "head_dim": 64} | model, "training": training}
    assert chosen_kernel(from_mapping(RunConfig, given)) == kernel
    for fused in ("cudnn", "splash"):
        asked = from_mapping(RunConfig, {**given, "compute": {"attention": fused}})
        assert chosen_kernel(asked) == fused
        if fused == kernel:
            refuse_kernel(asked)
        else:
            with pytest.raises(InputError, match=r"compute\.attention"):
                refuse_kernel(asked)


def test_deep_models_are_scanned_on_accelerators_and_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    deep, shallow = run(depth=48), run(depth=12)
    assert {as_computed(one).compute.blocks for one in (deep, shallow)} == {"unrolled"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [as_computed(one).compute.blocks for one in (deep, shallow)] == ["scanned", "unrolled"]
    assert as_computed(run({"blocks": "scanned"})).compute.blocks == "scanned"
    assert as_computed(deep).compute.attention == "plain"


def test_how_it_is_computed_is_no_part_of_what_a_run_is() -> None:
    base = run()
    for choice in CHOICES.values():
        assert fingerprint(run(choice)) == fingerprint(base)
        assert jax.tree.structure(run(choice)) != jax.tree.structure(base)


@pytest.mark.parametrize(("number", "most", "divisor"), [(12, 5, 4), (12, 12, 12), (7, 6, 1), (1, 9, 1), (100, 64, 50)])
def test_the_largest_divisor(number: int, most: int, divisor: int) -> None:
    assert largest_divisor(number, most) == divisor


def test_a_head_in_chunks_takes_less_memory() -> None:
    """By XLA's own analysis: a chunk of logits and its gradient instead of all."""
    vocabulary, batch = 2048, 96
    whole = dataclasses.replace(
        run({"head_chunk": batch * TIME}),
        data=dataclasses.replace(run().data, vocabulary_size=vocabulary),
        training=dataclasses.replace(run().training, batch_size=batch),
    )
    in_chunks = dataclasses.replace(whole, compute=dataclasses.replace(whole.compute, head_chunk=32))
    tokens = np.zeros((batch, TIME + 1), np.int32)

    def taken(config: RunConfig) -> int:
        leaves = to_leaves(config)
        gradients = jax.jit(batch_gradients, compiler_options=QUICKLY)
        compiled = gradients.lower(leaves, jax.eval_shape(initialise, leaves), tokens, np.bool_(False)).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert taken(whole) - taken(in_chunks) > 4 * batch * TIME * vocabulary


def test_large_vocabularies_are_read_in_chunks_unasked() -> None:
    config = dataclasses.replace(run(), data=dataclasses.replace(run().data, vocabulary_size=32_101))
    assert loss.chunk_size(config, 512) == 512
    assert loss.chunk_size(config, 131_072) == 4096, "half a gigabyte of float32"
    asked = dataclasses.replace(config, compute=dataclasses.replace(config.compute, head_chunk=100))
    assert loss.chunk_size(asked, 512) == 64
