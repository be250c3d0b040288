"""On a real GPU: cuDNN's kernel against the plain path, alone, in lanes and in a whole step; and the command itself.

Left out where JAX finds no GPU. `python -m pytest tests/test_gpu.py -n 0` on a machine that has one.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Command

from stability.config import RunConfig, resolve, to_leaves
from stability.model import kernels
from stability.model.kernels import chosen_kernel
from stability.model.transformer import initialise
from stability.tracking.files import read_json
from stability.tracking.record import read_rows, run_folders
from stability.training.lanes import STEPS_PER_DISPATCH, compile_program
from stability.training.step import batch_gradients
from stability.typed import from_mapping

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX finds no GPU here")

BATCH, TIME, VOCABULARY = 4, 128, 512
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME + 1), dtype=np.int32)


def run(kernel: str = "auto", **training: Any) -> RunConfig:
    given = {
        "model": {"width": 128, "depth": 2, "head_dim": 64},
        "training": {"batch_size": BATCH, "sequence_length": TIME, "precision": "bfloat16", "steps": 40} | training,
        "schedule": {"warmup_steps": 0},
        "optimizer": {"learning_rate": 3e-3},
        "compute": {"attention": kernel},
    }
    return resolve(from_mapping(RunConfig, given), corpus="0" * 64, vocabulary_size=VOCABULARY)


def softmax(logits: Any) -> Any:
    return jax.nn.softmax(logits, axis=-1)


@pytest.mark.parametrize("scale", [0.125, np.float32(0.2)])
@pytest.mark.parametrize("lanes", [None, 3])
def test_cudnn_mixes_as_plain_attention_does(scale: Any, lanes: int | None) -> None:
    rng = np.random.default_rng(1)
    shape = (*(() if lanes is None else (lanes,)), BATCH, TIME, 2, 64)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3)]

    def outcome(kernel: Any) -> Any:
        def total(*arrays: Any) -> Any:
            mixed = kernel(*arrays)
            return jnp.sum(jnp.sin(mixed.astype(jnp.float32))), mixed

        one = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
        return jax.jit(one if lanes is None else jax.vmap(one))(*arrays)

    (_, got), got_gradients = outcome(partial(kernels.cudnn, scale=scale))
    (_, want), want_gradients = outcome(partial(kernels.plain, scale=scale, weigh=softmax))
    for a, b in zip((got, *got_gradients), (want, *want_gradients), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b), "a few roundings to bfloat16"


def test_a_step_by_cudnn_is_a_step_and_the_max_logit_is_exact() -> None:
    assert chosen_kernel(run()) == "cudnn"
    leaves = to_leaves(run())
    parameters = jax.tree.map(lambda x: 2 * x, initialise(leaves))
    measure = jax.jit(batch_gradients)
    fused = measure(leaves, parameters, TOKENS, np.bool_(True))
    plain = measure(to_leaves(run("plain")), parameters, TOKENS, np.bool_(True))
    for a, b in zip(jax.tree.leaves(fused[0]), jax.tree.leaves(plain[0]), strict=True):
        assert float(jnp.linalg.norm(a - b)) < 0.05 * float(jnp.linalg.norm(b))
    np.testing.assert_allclose(fused[1], plain[1], rtol=2e-3)
    # The first block's queries and keys come before any attention: their logits are the same numbers.
    for name in ("attention_logit/max/block_00", "attention_logit/abs_max/block_00", "attention_entropy/block_00"):
        np.testing.assert_allclose(fused[2][name], plain[2][name], rtol=1e-5)
    np.testing.assert_allclose(
        fused[2]["attention_logit/max/block_01"], plain[2]["attention_logit/max/block_01"], rtol=0.03
    )


def test_lanes_train_as_the_solo_program_does() -> None:
    configs = [run(), dataclasses.replace(run(), seed=1)]
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, STEPS_PER_DISPATCH, BATCH, TIME + 1), np.int32)
    validation = (1, BATCH, TIME + 1)
    together, alone = compile_program(configs[0], 2, validation), compile_program(configs[0], None, validation)
    config = together.place(configs)
    _, metrics, _ = together.step(config, together.start(config), tokens, STEPS_PER_DISPATCH, True)
    for i, one in enumerate(configs):
        config = alone.place([one])
        _, expected, _ = alone.step(config, alone.start(config), tokens[i : i + 1], STEPS_PER_DISPATCH, True)
        np.testing.assert_allclose(metrics.cross_entropy[i], expected.cross_entropy, rtol=5e-3)


def test_float32_is_float32_on_a_gpu() -> None:
    """TensorFloat-32 has ten bits: its products would differ from the processor's by 1e-3."""
    config = run("plain", precision="float32")
    leaves = to_leaves(config)
    parameters = jax.tree.map(np.asarray, initialise(leaves))
    with jax.default_matmul_precision("highest"):
        here = jax.jit(batch_gradients)(leaves, parameters, TOKENS, np.bool_(True))
        with jax.default_device(jax.devices("cpu")[0]):
            there = jax.jit(batch_gradients)(leaves, parameters, TOKENS, np.bool_(True))
    np.testing.assert_allclose(here[1], there[1], rtol=1e-5)
    for name, value in there[2].items():
        np.testing.assert_allclose(here[2][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_command_trains_lanes_on_the_gpu(command: Command, tmp_path: Path) -> None:
    words = ["model.width=128", "model.head_dim=64", "training.sequence_length=64", "training.precision=bfloat16"]
    done = command(*TINY, *words, "host=gpu", "optimizer.learning_rate=0.001,0.01,0.1", "output_dir=here")
    assert done.code == 0, done.err
    for folder in run_folders(tmp_path / "here"):
        (start,) = read_json(folder.path / "provenance.json")["starts"]
        assert (start["backend"], start["lanes"]) == ("gpu", "vmap")
        assert start["settings"]["compute"]["attention"] == "cudnn"
        assert read_rows(folder.metrics)[-1]["loss/validation"] is not None
