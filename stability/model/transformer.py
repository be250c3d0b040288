"""The decoder-only Transformer of arXiv 2309.14322, Section 2.1, in Flax NNX used functionally.

The module tree is built once for each structure, when a program is traced; parameters travel as a plain nested dict of
arrays, and no NNX type leaves this file.
Shapes: B batch, T time, S = B x T positions, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from stability.config import RunConfig
from stability.model.axes import cut_by_rows
from stability.model.kernels import chosen_kernel
from stability.model.layers import ATTENTIONS, MLPS, Dense, LayerNorm
from stability.model.observation import Observations, rms, when
from stability.model.operations import ready
from stability.model.parameterization import kinds, matrix

Parameters = dict[str, Any]
"""Nested names -> float32 arrays, as `initialise` returns them."""


class Block(nnx.Module):
    """Pre-LayerNorm attention and MLP, each added to the stream; one that the config leaves out is not there."""

    def __init__(self, config: RunConfig, rngs: nnx.Rngs) -> None:
        model = config.model
        attention, mlp = ATTENTIONS[model.attention], MLPS[model.mlp]
        self.attention_norm = None if attention is None else LayerNorm(model.width)
        self.attention = None if attention is None else attention(model, rngs)
        self.mlp_norm = None if mlp is None else LayerNorm(model.width)
        self.mlp = None if mlp is None else mlp(model, rngs)

    def __call__(
        self, x_SxD: Float[Array, "S D"], config: RunConfig, time: int, observe: Bool[Array, ""]
    ) -> tuple[Float[Array, "S D"], Observations]:
        """The stream after the block, and the block's observations (zeros if not asked)."""
        eps = config.model.layernorm_eps
        seen: tuple[Array, ...] = ()
        streams: dict[str, Float[Array, "S D"]] = {}
        if self.attention is not None and self.attention_norm is not None:
            mixed, seen = self.attention(self.attention_norm(x_SxD, eps), config, time)
            x_SxD = x_SxD + mixed
            streams["attention_output/rms"] = mixed
        if self.mlp is not None and self.mlp_norm is not None:
            thought = self.mlp(self.mlp_norm(x_SxD, eps))
            x_SxD = x_SxD + thought
            streams["mlp_output/rms"] = thought
        x_SxD = cut_by_rows(x_SxD)
        streams["block_output/rms"] = x_SxD
        return x_SxD, when(observe, partial(self.observe, config, time), seen, streams)

    def observe(
        self, config: RunConfig, time: int, seen: tuple[Array, ...], streams: dict[str, Float[Array, "S D"]]
    ) -> Observations:
        """What attention shows of itself, and the RMS of what it and the MLP add to the stream, and of the result.

        One branch of a program for all: a GPU waits for the host at each.
        """
        of_attention = {} if self.attention is None else self.attention.observe(config.model, time, *seen)
        return of_attention | {name: rms(stream) for name, stream in streams.items()}


class Transformer(nnx.Module):
    """Embedding, blocks, final norm, untied head."""

    def __init__(self, config: RunConfig, rngs: nnx.Rngs) -> None:
        model, vocabulary = config.model, config.data.vocabulary_size
        assert vocabulary is not None, "resolve(config) fills in the vocabulary before a model is built"
        self.embedding = matrix(model, "embedding", rngs.params(), (vocabulary, model.width), fan_in=model.width)
        self.blocks = nnx.Dict({f"block_{i:02d}": Block(config, rngs) for i in range(model.depth)})
        self.final_norm = LayerNorm(model.width)
        self.head = Dense(model, "head", model.width, vocabulary, rngs)

    def stream(
        self, tokens_BxT: Int[Array, "B T"], config: RunConfig, observe: Bool[Array, ""]
    ) -> tuple[Float[Array, "S D"], Observations]:
        """See `final_stream`."""
        time = tokens_BxT.shape[1]
        # A token outside the vocabulary makes NaN, which is seen; plain indexing would read another token's row.
        rows = self.embedding[...].at[tokens_BxT.reshape(-1)]
        x_SxD = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(config.training.precision)
        x_SxD = cut_by_rows(x_SxD)
        observations: Observations = {}
        in_turn = _scanned if scans_blocks(config) else _unrolled
        x_SxD, seen = in_turn(list(self.blocks.values()), x_SxD, config, time, observe)
        for name, of_block in zip(self.blocks, seen, strict=True):
            observations |= {f"{quantity}/{name}": value for quantity, value in of_block.items()}
        x_SxD = self.final_norm(x_SxD, config.model.layernorm_eps)
        observations["final_stream/rms"] = when(observe, rms, x_SxD)
        return x_SxD, observations


SCANNED_FROM = 48
"""Blocks from which on `auto` scans them on accelerators. What is kept for backpropagation is copied into stacks, which
took a quarter of a step of 12 blocks on an H100: a program must be long to be worth that."""


def scans_blocks(config: RunConfig) -> bool:
    """Whether a loop goes through the blocks."""
    asked = config.compute.blocks
    return asked == "scanned" or (
        asked == "auto" and config.model.depth >= SCANNED_FROM and jax.default_backend() != "cpu"
    )


def as_computed(config: RunConfig) -> RunConfig:
    """The config with what is done here in the place of `auto`, for the record."""
    compute = replace(config.compute, attention=chosen_kernel(config))
    return replace(config, compute=replace(compute, blocks="scanned" if scans_blocks(config) else "unrolled"))


def _unrolled(
    blocks: Sequence[Block], x_SxD: Array, config: RunConfig, time: int, observe: Array
) -> tuple[Array, list[Observations]]:
    """The stream after all blocks, and what each observed."""
    seen = []
    for block in blocks:
        x_SxD, of_block = _rematerialised(block, config, time)(x_SxD, observe)
        seen.append(of_block)
    return x_SxD, seen


def _scanned(
    blocks: Sequence[Block], x_SxD: Array, config: RunConfig, time: int, observe: Array
) -> tuple[Array, list[Observations]]:
    """`_unrolled`, as a loop: blocks have one structure, and their weights are stacked for it."""
    graphs, states = zip(*(nnx.split(block) for block in blocks), strict=True)

    def one(x_SxD: Array, state: Any) -> tuple[Array, Observations]:
        return _rematerialised(nnx.merge(graphs[0], state), config, time)(x_SxD, observe)

    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    x_SxD, seen = jax.lax.scan(one, x_SxD, weights, length=len(blocks))
    return x_SxD, [jax.tree.map(lambda all_, i=i: all_[i], seen) for i in range(len(blocks))]


def _rematerialised(block: Block, config: RunConfig, time: int) -> Callable[..., tuple[Array, Observations]]:
    """A block as a function of stream and `observe`, of whose inside backpropagation keeps what the config says."""

    def whole(x_SxD: Array, observe: Array) -> tuple[Array, Observations]:
        return block(x_SxD, config, time, observe)

    kept = KEPT[config.compute.rematerialise]
    return whole if kept is None else jax.checkpoint(whole, policy=kept)


KEPT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "all_but_products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What of a block is kept for backpropagation, beside the stream that enters it; None is everything."""


def _build(config: RunConfig) -> Transformer:
    return Transformer(config, nnx.Rngs(params=jax.random.key(config.seed)))


@cache
def _abstract_of(structure: Any) -> tuple[Any, Any, Any, Any]:
    """`_abstract` and `_abstract_head` of a config's structure: its leaves are in no shape and in no metadata."""
    config = jax.tree.unflatten(structure, [np.zeros((), np.uint32)] * structure.num_leaves)
    model = nnx.eval_shape(lambda: _build(config))
    return (*nnx.split(model), *nnx.split(model.head))


def _abstract(config: RunConfig) -> tuple[Any, Any]:
    """The module tree's definition and its abstract variables: shapes and metadata, no arrays."""
    graph, state, _, _ = _abstract_of(jax.tree.structure(config))
    return graph, jax.tree.map(lambda leaf: leaf, state)


def _abstract_head(config: RunConfig) -> tuple[Any, Any]:
    """`_abstract` of the head alone."""
    _, _, graph, state = _abstract_of(jax.tree.structure(config))
    return graph, jax.tree.map(lambda leaf: leaf, state)


def initialise(config: RunConfig) -> Parameters:
    """Fresh parameters from the config's seed; traceable, the seed included."""
    parameters: Parameters = nnx.to_pure_dict(nnx.state(_build(config)))
    return parameters


def _merged(config: RunConfig, parameters: Parameters) -> Transformer:
    graph, state = _abstract(config)
    nnx.replace_by_pure_dict(state, parameters)
    merged: Transformer = nnx.merge(graph, state)
    return merged


def final_stream(
    config: RunConfig, parameters: Parameters, tokens_BxT: Int[Array, "B T"], observe: Bool[Array, ""]
) -> tuple[Float[Array, "S D"], Observations]:
    """The stream after the final norm (row b x T + t), and what was observed on the way.

    Args:
        config: its leaves may be tracers.
        parameters: as `initialise` returns them.
        tokens_BxT: token ids.
        observe: whether to measure; where False all observations are zeros.
    """
    return _merged(config, parameters).stream(tokens_BxT, config, observe)


def head_parameters(parameters: Parameters) -> Parameters:
    """The part of the parameters that makes logits of the final stream."""
    head: Parameters = parameters["head"]
    return head


def head_in_tiles(head: Parameters, size: int) -> Parameters:
    """The head with its vocabulary filled up to a multiple of `size` by columns of zeros, whose products are no logits.

    32,101 words, which fill no tile of 128, multiply at a third of the rate of 32,128 on an H100.
    """
    return {name: jnp.pad(leaf, [(0, 0), (0, -leaf.shape[1] % size)]) for name, leaf in head.items()}


def head_ready(head: Parameters, precision: DTypeLike) -> Float[Array, "D V"]:
    """What `output_logits` multiplies by, for who calls it many times: `stability.model.operations.ready`."""
    return ready(head["kernel"], precision)


def output_logits(
    config: RunConfig, head: Parameters, x_SxD: Float[Array, "S D"], ready_DxV: Float[Array, "D V"] | None = None
) -> Float[Array, "S V"]:
    """Logits for the token after each position, float32: products are summed up and stay so in every precision.

    Args:
        config: as for `final_stream`.
        head: `head_parameters`, or `head_in_tiles` of them.
        x_SxD: rows of the final stream.
        ready_DxV: its `head_ready`, if it is there.
    """
    graph, state = _abstract_head(config)
    nnx.replace_by_pure_dict(state, head)
    logits: Array = nnx.merge(graph, state)(x_SxD, jnp.float32, ready_DxV)
    return logits


def apply(
    config: RunConfig, parameters: Parameters, tokens_BxT: Int[Array, "B T"], observe: Bool[Array, ""]
) -> tuple[Float[Array, "S V"], Observations]:
    """`output_logits` of the `final_stream`, all at once, and what was observed on the way."""
    x_SxD, observations = final_stream(config, parameters, tokens_BxT, observe)
    return output_logits(config, head_parameters(parameters), x_SxD), observations


def parameter_kinds(config: RunConfig) -> Any:
    """A tree like the parameters', with each one's `Kind` (role and rule) in its place."""
    _, state = _abstract(config)
    return nnx.to_pure_dict(kinds(config.model, state))
