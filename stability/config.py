"""The config of one run: a pytree whose leaves flow through the program and whose structure shapes it.

Four kinds of field, said once, where the field is declared:

`leaf`        a number that is traced: runs that differ only in leaves share one compiled program, as its lanes.
(no mark)     structure: what shapes the program (widths, names, counts of steps). `None` in a leaf's place is structure
              too: `clip_norm: null` is another program than any number.
`execution`   how a device computes it: shapes the program too, but changes rounding only, so it is no part of a run's
              identity, and is recorded beside the results.
`provenance`  recorded beside the results but no part of a run's identity, and invisible to the program: it is dropped
              when JAX flattens the config.

The dataclasses below are the one source of defaults: the recipe of arXiv 2309.14322, Section 2.1, at a size that two
CPU cores train in seconds. Leaves and structure together are *scientific*: they make the fingerprint.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, dataclass_transform, get_args

import jax
import numpy as np
from pydantic import ConfigDict

from stability.arms import WARMUP_FRACTION
from stability.errors import InputError
from stability.typed import Count, Fraction, NonNegative, Positive, Seed, Steps

FINGERPRINT_VERSION = 1

Role = Literal["embedding", "query", "key", "value", "attention_output", "mlp_in", "mlp_out", "head", "gain"]
"""What a parameter is for. Initialisation, optimizer and sharding read roles and never match names."""
ROLES: tuple[Role, ...] = get_args(Role)


def leaf(default: float | int | None, dtype: type[np.generic] = np.float32) -> Any:
    """Declare a traced number of the given dtype."""
    return field(default=default, metadata={"kind": "leaf", "dtype": dtype})


def execution(default: Any) -> Any:
    """Declare a setting that shapes the program and changes nothing but rounding: outside the fingerprint."""
    return field(default=default, metadata={"kind": "execution"})


def provenance(default: Any) -> Any:
    """Declare a setting that changes no result: outside the fingerprint, unseen by the program."""
    return field(default=default, metadata={"kind": "provenance"})


def group(cls: type[Any]) -> Any:
    """Declare a nested config."""
    return field(default_factory=cls, metadata={"kind": "group"})


Scalar = float | jax.Array
"""A leaf as the program sees it: a Python number on the host, a traced array inside."""

C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(leaf, execution, provenance, group))
def config_class(cls: type[C]) -> type[C]:
    """A frozen keyword-only dataclass, registered as a pytree by the kinds of its fields."""
    cls = dataclass(frozen=True, kw_only=True)(cls)
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=False)  # type: ignore[attr-defined]
    kinds = {f.name: f.metadata.get("kind", "structure") for f in fields(cls)}  # type: ignore[arg-type]
    jax.tree_util.register_dataclass(
        cls,
        data_fields=[name for name, kind in kinds.items() if kind in ("leaf", "group")],
        meta_fields=[name for name, kind in kinds.items() if kind in ("structure", "execution")],
        drop_fields=[name for name, kind in kinds.items() if kind == "provenance"],
    )
    return cls


@config_class
class ModelConfig:
    """A decoder-only Transformer: pre-LayerNorm, rotary positions, no biases.

    attention                   how logits become weights; `none` leaves the sublayer out, its norm included
    mlp                         `none` leaves the sublayer out; without attention either, a bigram model remains
    qk_layernorm                LayerNorm of queries and keys: not at all, in each head, or over all heads together
    parameterization            how initialisation and learning rates follow the width, from `base_width` on
    attention_scale_exponent    logits are q.k x head_dim^-exponent; null is what the parameterization says
    attention_length_exponent   squared_relu's weights are relu(logit)^2 x sequence_length^-exponent
    kappa                       queries and keys rescaled to sqrt(kappa) z / rms(z) in each head; null is not at all
    """

    width: Count = 64
    depth: Count = 2
    head_dim: Count = 32
    mlp_ratio: Count = 4
    attention: Literal["softmax", "squared_relu", "none"] = "softmax"
    mlp: Literal["gelu", "none"] = "gelu"
    qk_layernorm: Literal["none", "per_head", "whole_width"] = "per_head"
    parameterization: Literal["standard", "mup_simple", "mup_intermediate", "mup_full"] = "standard"
    base_width: Count = 256
    attention_scale_exponent: NonNegative | None = leaf(None)
    attention_length_exponent: NonNegative = leaf(0.5)
    kappa: Positive | None = leaf(None)
    layernorm_eps: Positive = leaf(1e-6)
    rotary_base: Positive = leaf(1e4)

    @property
    def heads(self) -> int:
        """Number of attention heads, width / head_dim."""
        return self.width // self.head_dim

    @property
    def n_params(self) -> int:
        """N: parameters without embedding, head and gains; 12 x depth x width^2 at mlp_ratio 4.

        It names the scale, so it is that of the whole model also where `attention` or `mlp` is none: what is taken out
        of a model is compared with its siblings at the same N.
        """
        return self.depth * (4 + 2 * self.mlp_ratio) * self.width**2


@config_class
class OptimizerConfig:
    """AdamW: theta <- theta - s_t (lr D + wd theta), s_t the schedule as a fraction of its peak.

    weight_decay_coupling   `coupled` multiplies the decay by the learning rate too: s_t lr (D + wd theta)
    learning_rate_scaling   `tensor_rms` multiplies each tensor's learning rate by max(its RMS, 1e-3)
    """

    learning_rate: Positive = leaf(1e-2)
    learning_rate_scaling: Literal["none", "tensor_rms"] = "none"
    weight_decay: NonNegative = leaf(1e-4)
    weight_decay_coupling: Literal["independent", "coupled"] = "independent"
    beta1: Fraction = leaf(0.9)
    beta2: Fraction = leaf(0.95)
    eps: Positive = leaf(1e-8)
    clip_norm: Positive | None = leaf(1.0)
    decayed_roles: tuple[Role, ...] = ROLES


@config_class
class ScheduleConfig:
    """Linear warm-up, then cosine to the minimum learning rate. `warmup_steps: null` is 5 % of the steps."""

    warmup_steps: Steps | None = leaf(None, np.int32)
    minimum_learning_rate: NonNegative = leaf(1e-5)


@config_class
class LossConfig:
    """What is added to the cross-entropy: z_loss x mean(log^2 Z)."""

    z_loss: NonNegative = leaf(1e-4)


@config_class
class TrainingConfig:
    """How long, on how much, how exactly; and how often to look, and to save.

    keep_checkpoint   the state after the last step stays on disk
    """

    steps: Count = 500
    batch_size: Count = 16
    sequence_length: Count = 64
    precision: Literal["float32", "bfloat16"] = "float32"
    validation_sequences: Count = 512
    observe_every: Count = provenance(10)
    evaluate_every: Count | None = provenance(None)
    checkpoint_every: Count = provenance(500)
    keep_checkpoint: bool = provenance(False)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one batch."""
        return self.batch_size * self.sequence_length


@config_class
class DataConfig:
    """Which text. `seed: null` follows the run's seed; corpus (its hash) and vocabulary_size come from the text."""

    name: Literal["kjv", "text", "shards"] = "kjv"
    path: str | None = provenance(None)
    seed: Seed | None = leaf(None, np.uint32)
    corpus: str | None = None
    vocabulary_size: Count | None = None


Kernel = Literal["plain", "blockwise", "cudnn", "splash"]
"""How attention is computed (`stability.model.kernels`)."""


@config_class
class ComputeConfig:
    """How a device computes a step; hosts choose it (conf/host), results depend on it by rounding alone.

    attention       the kernel that mixes values; `auto` is the fastest that device, precision and sizes allow
    head_chunk      positions whose output logits are there at a time; null is all of them while they are small
    blocks          each as code of its own, or one that a loop goes through with each block's weights in turn: a
                    twelfth of the code of twelve to trace and compile; `auto` is that on accelerators from 48 blocks on
    rematerialise   what backpropagation computes again instead of keeping: nothing, all but matrix products, or whole
                    blocks
    micro_batch     sequences in memory at a time, at most, whose gradients are added up to the batch's; null is the
                    whole batch, `auto` as many as the device's memory allows (`stability.launching.memory`)
    """

    attention: Literal["auto", "plain", "blockwise", "cudnn", "splash"] = execution("auto")
    head_chunk: Count | None = execution(None)
    blocks: Literal["auto", "unrolled", "scanned"] = execution("auto")
    rematerialise: Literal["none", "all_but_products", "blocks"] = execution("none")
    micro_batch: Count | Literal["auto"] | None = execution(None)


@config_class
class RunConfig:
    """One run, whole: what `step` takes, once its leaves are arrays."""

    model: ModelConfig = group(ModelConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    loss: LossConfig = group(LossConfig)
    training: TrainingConfig = group(TrainingConfig)
    data: DataConfig = group(DataConfig)
    compute: ComputeConfig = group(ComputeConfig)
    seed: Seed = leaf(0, np.uint32)

    @property
    def tokens(self) -> int:
        """Tokens that the whole training reads."""
        return self.training.steps * self.training.tokens_per_step

    @property
    def micro_batch(self) -> int:
        """Sequences that a step has in memory at a time: the largest divisor of the batch that may be."""
        most = self.compute.micro_batch
        return largest_divisor(self.training.batch_size, most if isinstance(most, int) else self.training.batch_size)


BESIDE_IDENTITY = ("execution", "provenance")
"""The kinds of field that are recorded for each start of a run instead of in its fingerprint."""


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`; both are at least 1."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def to_mapping(config: Any, kinds: tuple[str, ...] = ("leaf", "structure", *BESIDE_IDENTITY)) -> dict[str, Any]:
    """A config as plain nested values that JSON and YAML can hold: fields of the given kinds, groups that have any."""
    mapping: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            if nested := to_mapping(value, kinds):
                mapping[f.name] = nested
        elif f.metadata.get("kind", "structure") in kinds:
            mapping[f.name] = list(value) if isinstance(value, tuple) else value
    return mapping


def scientific(config: RunConfig) -> dict[str, Any]:
    """What makes the run what it is, defaults included: leaves and structure."""
    return to_mapping(config, ("leaf", "structure"))


def fingerprint(config: RunConfig) -> str:
    """The run's identity: 16 hex digits of SHA-256 over canonical JSON of its scientific values."""
    content = {"fingerprint_version": FINGERPRINT_VERSION, **scientific(config)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(config: RunConfig, *, corpus: str, vocabulary_size: int) -> RunConfig:
    """Fill in what follows from other values: warm-up from the steps, data seed from the seed, the corpus's facts."""
    warmup, data_seed = config.schedule.warmup_steps, config.data.seed
    if warmup is None:
        warmup = round(WARMUP_FRACTION * config.training.steps)
    if data_seed is None:
        data_seed = config.seed
    replace = dataclasses.replace
    data = replace(config.data, seed=data_seed, corpus=corpus, vocabulary_size=vocabulary_size)
    return replace(config, data=data, schedule=replace(config.schedule, warmup_steps=warmup))


def validate(config: RunConfig) -> None:
    """Refuse what no single field can: settings that contradict each other. Call it before anything compiles.

    Raises:
        InputError: names the key, its value, the one it contradicts, and the fix.
    """
    schedule, steps = config.schedule, config.training.steps
    if config.model.attention == "none":
        _refuse_settings_of_attention(config.model)
    else:
        _refuse_heads_that_do_not_fit(config.model)
    if schedule.warmup_steps is not None and schedule.warmup_steps >= steps:
        raise InputError(
            "schedule.warmup_steps",
            schedule.warmup_steps,
            f"is not shorter than the run (training.steps={steps})",
            "Warm up for fewer steps (null is 5 % of them) or train for more.",
        )
    if config.optimizer.learning_rate < schedule.minimum_learning_rate:
        raise InputError(
            "optimizer.learning_rate",
            config.optimizer.learning_rate,
            f"is below schedule.minimum_learning_rate={schedule.minimum_learning_rate}, to which the schedule decays",
            "Raise it, or lower schedule.minimum_learning_rate.",
        )


def _refuse_heads_that_do_not_fit(model: ModelConfig) -> None:
    if model.head_dim % 2:
        raise InputError("model.head_dim", model.head_dim, "is odd, and rotary positions turn pairs", "Make it even.")
    if model.width % model.head_dim:
        nearest = max(1, round(model.width / model.head_dim)) * model.head_dim
        raise InputError(
            "model.width",
            model.width,
            f"is not a multiple of model.head_dim={model.head_dim}, so heads do not divide the width",
            f"Use a width of {nearest}, or another model.head_dim.",
        )


def _refuse_settings_of_attention(model: ModelConfig) -> None:
    """Where there is no attention: what is null unless someone asks for it. Settings with a default say nothing."""
    for name in ("kappa", "attention_scale_exponent"):
        if (value := getattr(model, name)) is not None:
            raise InputError(
                f"model.{name}",
                value,
                "acts on attention, and model.attention=none leaves that out",
                f"Leave model.{name} at null, or choose an attention.",
            )


def to_leaves(config: RunConfig) -> RunConfig:
    """The same config with every leaf a strongly typed NumPy scalar array: the only form that `step` takes.

    Mixed Python and NumPy scalars would trace once for each mix; strong types trace once.
    """
    changes: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            changes[f.name] = to_leaves(value)  # type: ignore[arg-type]
        elif f.metadata.get("kind") == "leaf" and value is not None:
            changes[f.name] = np.asarray(value, f.metadata["dtype"])
    return dataclasses.replace(config, **changes)
