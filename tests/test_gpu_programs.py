"""Programs compiled for an H100 without having one: that its compiler makes of them what they were written for.

Left out where JAX's CUDA plug-in is not installed: `pip install -e '.[test,gpu]'`, then
`JAX_PLATFORMS=cpu python -m pytest tests/test_gpu_programs.py -n 0`.
"""

import importlib.util
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from benchmarks.absent_device import absent
from benchmarks.cards import H100
from benchmarks.gpu_programs import FLAGS
from benchmarks.on_device import run_config
from benchmarks.peers.jax_gpt import Shape
from benchmarks.traffic import kernels
from stability.launching.memory import compiled_bytes, state_bytes
from stability.model.kernels import TILE, chosen_kernel
from stability.training.lanes import Program, compile_program

pytestmark = pytest.mark.skipif(
    all(importlib.util.find_spec(f"jax_cuda{version}_plugin") is None for version in (12, 13)),
    reason="JAX's CUDA plug-in, which has the compiler for NVIDIA GPUs, is not installed",
)

SHAPE = Shape(width=128, depth=1, vocabulary=1000, batch=16, length=128, head_dim=64)
CHUNK = 1024


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[int | None, Program]]:
    """The solo program, and that of three lanes."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    with mock.patch.dict(os.environ, XLA_FLAGS=flags), absent("cuda", H100.described()):
        config = run_config(SHAPE, {"head_chunk": CHUNK})
        assert chosen_kernel(config) == "cudnn"
        compiled = {lanes: compile_program(config, lanes, (1, 8, SHAPE.length + 1)) for lanes in (None, 3)}
        for lanes, program in compiled.items():
            assert 2 * state_bytes(config) * (lanes or 1) < (compiled_bytes(program) or 0) < 0.5e9
        yield compiled


@pytest.fixture(params=[None, 3], ids=["solo", "lanes"])
def program(request: pytest.FixtureRequest, programs: dict[int | None, Program]) -> Program:
    return programs[request.param]


def test_lanes_move_no_more_than_as_many_runs(programs: dict[int | None, Program]) -> None:
    """Where what observes chose the layout of queries and keys, they were transposed for it in every step."""
    solo, lanes = (
        sum(kernel.moved for kernel in kernels(program.advance.as_text()) if not kernel.is_product)
        for program in programs.values()
    )
    assert lanes < 1.1 * 3 * solo


def test_quiet_steps_take_no_branch_and_attention_is_fused(program: Program) -> None:
    text = program.advance.as_text()
    assert text.count(" conditional(") == 4  # the block, the final stream, the output logits, the tensors
    assert text.count('custom_call_target="__cudnn$fmhaSoftmax"') == 1
    assert text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"') == 1


def test_output_logits_are_read_three_times(program: Program) -> None:
    """By two reductions (maximum and mean; log Z and variance) and by their gradient, however large the vocabulary."""
    lanes, chunks = program.lanes or 1, SHAPE.batch * SHAPE.length // CHUNK
    logits = 4 * lanes * CHUNK * SHAPE.vocabulary
    in_loop = [kernel for kernel in kernels(program.advance.as_text()) if kernel.times == chunks]
    found = [kernel for kernel in in_loop if not kernel.is_product and kernel.read >= logits]
    assert len(found) == 3
    gradient = 2 * lanes * CHUNK * -(-SHAPE.vocabulary // TILE) * TILE
    assert sorted(kernel.written >= gradient for kernel in found) == [False, False, True]


def test_gelu_is_applied_by_the_product_before_it(program: Program) -> None:
    assert (program.lanes or 1) > 1 or program.advance.as_text().count('"epilogue":"GELU_AUX"') == 1


def test_no_norm_writes_its_input_in_float32(program: Program) -> None:
    lanes = program.lanes or 1
    activations = 4 * lanes * SHAPE.batch * SHAPE.length * SHAPE.width
    norms = [kernel for kernel in kernels(program.advance.as_text()) if "rsqrt" in kernel.source]
    assert all(kernel.written < activations for kernel in norms)
