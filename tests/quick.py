"""Programs for tests that compile much and run little."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.config import RunConfig
from stability.training import lanes
from stability.training.step import StepMetrics, TrainState, step


def accepted(options: dict[str, bool | int]) -> dict[str, bool | int]:
    """Those of the options that the installed XLA knows."""
    return {name: value for name, value in options.items() if _compiles({name: value})}


def _compiles(option: dict[str, bool | int]) -> bool:
    try:
        jax.jit(jnp.negative, compiler_options=option).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


QUICKLY = accepted({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
"""Compile in a third of the time a program that is slower and rounds otherwise, which a few tiny steps do not mind."""


def quiet_step(config: RunConfig, state: TrainState, tokens_BxT1: Any) -> tuple[TrainState, StepMetrics]:
    """A step that observes nothing, so that no observation is compiled."""
    state, metrics, _ = step(config, state, tokens_BxT1, np.bool_(False))
    return state, metrics


_compile_program = lanes.compile_program


def compile_quickly(config: RunConfig, count: int | None, *where: Any) -> lanes.Program:
    """`stability.training.lanes.compile_program` in a hurry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICKLY))
        return _compile_program(config, count, *where)
