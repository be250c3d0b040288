"""Programs compiled for TPUs without having one: what XLA and Mosaic would refuse there, they refuse here.

Left out where libtpu is not installed: `pip install -e '.[test,tpu]'`, then
`python -m pytest tests/test_tpu_programs.py -n 0`.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.absent_device import absent
from benchmarks.on_device import run_config
from benchmarks.peers.jax_gpt import Shape
from benchmarks.program_text import branches_left, collectives
from stability.launching.memory import compiled_bytes, state_bytes
from stability.model import kernels
from stability.model.kernels import chosen_kernel
from stability.training.lanes import Program, compile_program
from stability.training.mesh import lane_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which has the compiler for TPUs, is not installed"
)

VALIDATION = (1, 8, 129)


@pytest.fixture(scope="module")
def chips() -> Iterator[list[jax.Device]]:
    """Four chips of a v5e."""
    with absent("tpu", "v5e:2x2") as devices:
        yield devices


def small(**compute: Any) -> Any:
    """A block of attention and few words: what there is least of to compile."""
    config = run_config(Shape(128, 1, 256, 8, 128, 64), compute)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mlp="none"))


def on_mesh(lanes: int, chips: list[jax.Device], data: int, fsdp: int, config: Any) -> Program:
    with jax.default_device(None):
        return compile_program(config, lanes, VALIDATION, lane_mesh(chips, data, fsdp))


@pytest.mark.parametrize(
    ("time", "head_dim", "precision", "lanes"),
    [
        (128, 16, "bfloat16", None),
        (512, 64, "bfloat16", 3),
        (1152, 128, "bfloat16", None),
        (2048, 64, "float32", None),
        (2048, 256, "float32", None),
    ],
)
def test_splash_is_taken_forward_and_backward(
    time: int, head_dim: int, precision: str, lanes: int | None, chips: list[jax.Device]
) -> None:
    def total(query: Any, key: Any, value: Any) -> Any:
        return jnp.sum(kernels.splash(query, key, value, 0.3).astype(jnp.float32))

    gradient = jax.grad(total, (0, 1, 2))
    shape = (2, time, 2, head_dim) if lanes is None else (lanes, 2, time, 2, head_dim)
    array = jax.ShapeDtypeStruct(shape, precision)  # type: ignore[no-untyped-call]
    with jax.default_matmul_precision("highest" if precision == "float32" else None):
        program = jax.jit(gradient if lanes is None else jax.vmap(gradient)).lower(array, array, array).compile()
    assert program.as_text().count('"tpu_custom_call"') == 3, (
        "one forward, one for the queries, one for keys and values"
    )


def test_a_run_s_program_keeps_observation_behind_its_branches(chips: list[jax.Device]) -> None:
    config = small()
    assert chosen_kernel(config) == "splash"
    program = compile_program(config, None, VALIDATION)
    assert branches_left(program.advance.as_text()) == 4, "the block, the final stream, the output logits, the tensors"
    assert 2 * state_bytes(config) < (compiled_bytes(program) or 0) < 0.1e9


@pytest.mark.parametrize(
    ("lanes", "data", "fsdp"), [(4, 1, 1), (8, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2), (2, 1, 2), (4, 2, 1)]
)
def test_lanes_lie_on_chips_in_every_way(
    lanes: int, data: int, fsdp: int, chips: list[jax.Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowered only, where a kernel is refused that is left to the compiler to divide."""
    lowered: list[Any] = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda program: lowered.append(program))
    on_mesh(lanes, chips, data, fsdp, small())
    assert len(lowered) == 3, "the start, the steps and the evaluation"


def test_parameters_are_cut_among_chips_and_lanes_tell_each_other_nothing(chips: list[jax.Device]) -> None:
    config = small()
    apart = on_mesh(4, chips, 1, 1, config).advance
    assert collectives(apart.as_text()) == {}
    cut = on_mesh(1, chips, 1, 4, config).advance
    told = collectives(cut.as_text())
    assert told["all-gather"]["count"] > 0, "weights, where they are used"
    assert cut.memory_analysis().argument_size_in_bytes < apart.memory_analysis().argument_size_in_bytes / 2
