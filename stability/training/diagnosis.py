"""Which number of a failed step went bad first.

A lane that died keeps the state that its bad step started from (`stability.training.step`), so that very step can be
executed once more, observed: the same program makes the same numbers of the same state and batch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from stability.config import RunConfig
from stability.training.lanes import STEPS_PER_DISPATCH, Program
from stability.training.step import TrainState

TOKENS = "tokens"
"""The batch holds a token outside the vocabulary."""
UPDATED_PARAMETERS = "updated_parameters"
"""All that a step measures is finite, and the parameters after its update are not."""

OF_A_BLOCK = (
    "query_rms/before_norm",
    "key_rms/before_norm",
    "query_rms/after_norm",
    "key_rms/after_norm",
    "attention_logit/max",
    "attention_logit/abs_max",
    "query_key_cosine",
    "attention_entropy",
    "attention_output/rms",
    "mlp_output/rms",
    "block_output/rms",
)
AFTER_THE_BLOCKS = (
    "final_stream/rms",
    "output_logit/max",
    "output_logit/mean",
    "output_logit/std",
    "output_logit/log_z_mean",
    "output_logit/log_z_squared_mean",
    "loss/train",
    "loss/train_with_z_loss",
)
TENSORS_OF_A_BLOCK = (
    "attention_norm/gain",
    "attention/query",
    "attention/key",
    "attention/query_norm/gain",
    "attention/key_norm/gain",
    "attention/value",
    "attention/out",
    "mlp_norm/gain",
    "mlp/inner",
    "mlp/outer",
)


def order_of_computation(depth: int) -> list[str]:
    """Every number of an observed step that others are computed from, in the order in which a step computes them.

    Parameters as the step found them, the forward pass block by block, the losses, gradients from the head back to the
    embedding, update directions. A config that leaves something out has fewer. `gradient/rms_over_eps` is not among
    them: it is a ratio for readers.

    Args:
        depth: number of blocks.
    """
    blocks = [f"block_{i:02d}" for i in range(depth)]
    inside = [f"{block}/{tensor}" for block in blocks for tensor in TENSORS_OF_A_BLOCK]
    tensors = ["embedding", *inside, "final_norm/gain", "head"]
    return [
        *(f"parameter/rms/{tensor}" for tensor in tensors),
        *(f"{quantity}/{block}" for block in blocks for quantity in OF_A_BLOCK),
        *AFTER_THE_BLOCKS,
        *(f"gradient/rms/{tensor}" for tensor in reversed(tensors)),
        "optimizer/gradient_norm",
        *(f"update/rms/{tensor}" for tensor in tensors),
    ]


def first_bad(depth: int, numbers: Mapping[str, Any]) -> str:
    """The first name, in the order of computation, with a value that is not finite.

    Args:
        depth: number of blocks.
        numbers: what a bad step measured: scalars, or one value a head.
    """
    names = (name for name in order_of_computation(depth) if name in numbers)
    return next((name for name in names if not np.all(np.isfinite(numbers[name]))), UPDATED_PARAMETERS)


def first_bad_observations(
    program: Program,
    config: RunConfig,
    state: TrainState,
    batches: Mapping[int, Int[np.ndarray, "B T+1"]],
    is_needed: bool,
) -> tuple[TrainState, dict[int, str | None]]:
    """What went bad first in each of some dead lanes, by executing their bad steps again.

    Args:
        program: the one that the lanes trained with.
        config: of all lanes, as the program takes it.
        state: of all lanes.
        batches: dead lane -> the batch of its bad step.
        is_needed: whether other lanes still train. They are left alone: what is executed is a copy of the state.

    Returns:
        The state, to be used instead of the one passed in, and lane -> name. None where there is no memory for a copy.
    """
    sample = next(iter(batches.values()))
    tokens = np.zeros((program.lanes or 1, STEPS_PER_DISPATCH, *sample.shape), np.int32)
    for lane, batch in batches.items():
        tokens[lane, 0] = batch
    if is_needed:
        try:
            _, numbers = _observed(program, config, program.copy(state), tokens)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return state, dict.fromkeys(batches)
    else:
        state, numbers = _observed(program, config, state, tokens)  # a dead state comes back as it was
    depth, vocabulary = config.model.depth, config.data.vocabulary_size
    assert vocabulary is not None, "resolve(config) fills in the vocabulary before anything trains"
    outside = {lane for lane, batch in batches.items() if np.any((batch < 0) | (batch >= vocabulary))}
    return state, {
        lane: TOKENS if lane in outside else first_bad(depth, program.lane(numbers, lane)) for lane in batches
    }


def _observed(
    program: Program, config: RunConfig, state: TrainState, tokens: Int[np.ndarray, "L C B T+1"]
) -> tuple[TrainState, dict[str, Any]]:
    """All that one step measures, by the names of a run's rows; the state is given up for the one returned."""
    batches = program.tokens([partial(_rows, its_tokens) for its_tokens in tokens])
    state, metrics, observations = program.step(config, state, batches, 1, True)
    metrics, observations = jax.device_get((metrics, observations))
    return state, {
        **observations,
        "loss/train": metrics.cross_entropy[..., 0],
        "loss/train_with_z_loss": metrics.loss[..., 0],
        "optimizer/gradient_norm": metrics.gradient_norm[..., 0],
    }


def _rows(tokens_CxBxT1: Int[np.ndarray, "C B T+1"], rows: slice) -> Int[np.ndarray, "C rows T+1"]:
    return tokens_CxBxT1[:, rows]
