"""Gradients that are written out against those of automatic differentiation, and what keeps a quiet step quiet."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.config import RunConfig, resolve, to_leaves
from stability.model.observation import rms, when
from stability.model.operations import gelu, normalise, product, ready
from stability.training.lanes import STEPS_PER_DISPATCH
from stability.training.step import advance, initial_state
from stability.typed import from_mapping

pytestmark = pytest.mark.usefixtures("strict_numerics")

SHAPES = [(5, 8), (2, 3, 2, 8), (4, 1)]
PRECISIONS = [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_formula(x: Any, gain: Any, eps: Any) -> Any:
    centred = x - jnp.mean(x, -1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + eps)
    return normal * gain.reshape((1,) * (x.ndim - 1) + (-1,))


def pulled(function: Callable[..., Any], cotangent: Any, *arguments: Any) -> Any:
    """A function's value and its gradients along a cotangent of its result."""
    value, pull = jax.vjp(function, *arguments)
    return value, pull(cotangent.astype(value.dtype))


def assert_close(found: Any, truth: Any, tolerance: float) -> None:
    """Every array within a share of the truth's largest number."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=tolerance * float(np.max(np.abs(b)) + 1e-6))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_normalising_is_the_formula_and_so_is_its_gradient(
    shape: tuple[int, ...], precision: Any, tolerance: float, scale: float
) -> None:
    x = jnp.asarray(numbers(*shape, scale=scale) + scale).astype(precision)
    gain, cotangent, eps = numbers(shape[-1], seed=1), numbers(*shape, seed=2), jnp.float32(1e-6)
    with jax.enable_x64(True):
        truth = pulled(by_formula, cotangent.astype(np.float64), *(np.asarray(a, np.float64) for a in (x, gain, eps)))
    value, (dx, dgain, deps) = pulled(normalise, cotangent, x, gain, eps)
    assert value.dtype == dx.dtype == precision
    assert dgain.dtype == np.float32
    assert float(deps) == 0  # a constant to training
    if shape[-1] > 1:  # of one number all but the deviation's eps cancels
        assert_close((value, dx, dgain), (truth[0], *truth[1][:2]), 30 * tolerance if scale == 1e6 else 3 * tolerance)
    else:
        assert not np.any(value)


def test_a_row_whose_variance_overflows_is_not_taken_for_zero() -> None:
    """Divided by an infinite deviation it would be, and so would its gradient: a run gone astray would look healthy."""
    x = numbers(3, 8)
    x[1] *= 1e25
    value, (dx, _, _) = pulled(normalise, np.ones_like(x), x, np.ones(8, np.float32), jnp.float32(1e-6))
    np.testing.assert_array_equal(np.isnan(value).all(1), [False, True, False])
    np.testing.assert_array_equal(np.isfinite(value).all(1), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(dx).all(1), [True, False, True])


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS, ids=["float32", "bfloat16"])
def test_gelu_s_gradient_is_that_of_automatic_differentiation(precision: Any, tolerance: float) -> None:
    x = jnp.asarray(np.concatenate([numbers(50, scale=2.0), [-1e4, -20.0, 0.0, 20.0, 1e4]])).astype(precision)
    truth = pulled(partial(jax.nn.gelu, approximate=True), np.ones(x.shape, np.float32), x.astype(jnp.float32))
    found = pulled(gelu, np.ones(x.shape, np.float32), x)
    assert found[1][0].dtype == precision
    assert_close(found[1], truth[1], tolerance)
    assert_close(found[0][:-1], truth[0][:-1], tolerance)  # but for the largest, beside which all others are small


@pytest.mark.parametrize("fan_in", [8, 160], ids=["read as it lies", "transposed on a CPU"])
@pytest.mark.parametrize("precision", [jnp.float32, jnp.bfloat16])
def test_a_weight_made_ready_is_multiplied_as_the_weight_is(fan_in: int, precision: Any) -> None:
    x, kernel = jnp.asarray(numbers(6, fan_in)).astype(precision), jnp.asarray(numbers(fan_in, 5, seed=1))
    cotangent = numbers(6, 5, seed=2)

    def readily(x: Any, kernel: Any) -> Any:
        return product(x, kernel, jnp.float32, ready(kernel, precision))

    found, truth = (
        pulled(function, cotangent, x, kernel) for function in (readily, lambda x, k: product(x, k, np.float32))
    )
    jax.tree.map(np.testing.assert_array_equal, found, truth)
    assert found[0].dtype == found[1][1].dtype == np.float32


def lowered_for_gpus(function: Callable[..., Any], *arguments: Any) -> str:
    text: str = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return text


def test_what_observes_nothing_but_sizes_is_a_branch_that_xla_leaves_one() -> None:
    """XLA for GPUs executes one of elementwise operations and reductions in every step, unless a barrier is in it."""
    text = lowered_for_gpus(lambda observe, x: when(observe, rms, x), np.bool_(False), numbers(4, 4))
    assert text.count("stablehlo.case") == text.count("stablehlo.optimization_barrier") == 1
    assert text.index("stablehlo.case") < text.index("stablehlo.optimization_barrier")


def test_every_branch_of_a_step_has_a_barrier() -> None:
    given = {
        "model": {"width": 16, "depth": 2, "head_dim": 8},
        "training": {"steps": 20, "batch_size": 2, "sequence_length": 8},
        "optimizer": {"learning_rate": 0.01},
        "compute": {"head_chunk": 4, "attention": "plain"},
    }
    config = resolve(from_mapping(RunConfig, given), corpus="none", vocabulary_size=48)
    leaves = to_leaves(config)
    state = jax.eval_shape(initial_state, leaves)
    tokens = np.zeros((STEPS_PER_DISPATCH, 2, 9), np.int32)
    text = lowered_for_gpus(advance, leaves, state, tokens, np.int32(1), np.bool_(False))
    branches = [part.split("stablehlo.return")[1] for part in text.split('"stablehlo.case"')[1:]]
    assert len(branches) == 5  # two blocks, the final stream, the output logits, the tensors
    assert all("optimization_barrier" in branch for branch in branches)


@pytest.mark.parametrize("observe", [False, True])
def test_a_measurement_is_the_same_behind_its_barrier(observe: bool) -> None:
    x = numbers(64, 8)
    seen = jax.jit(lambda observe: when(observe, lambda *arrays: arrays, x, {"negative": -x}))(np.bool_(observe))
    jax.tree.map(np.testing.assert_array_equal, seen, (observe * x, {"negative": -x * observe}))
