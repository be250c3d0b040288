"""A run's config: its identity, its leaves and structure, how it is read, and what it refuses."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import is_dataclass
from typing import Any

import jax
import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import SchemaError

from stability import typed
from stability.config import (
    FINGERPRINT_VERSION,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    fingerprint,
    resolve,
    to_leaves,
    to_mapping,
    validate,
)
from stability.errors import InputError
from stability.tracking.record import flatten
from stability.typed import from_mapping

FACTS = {"corpus": "0123456789abcdef", "vocabulary_size": 257}


def dotted(config: Any, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every field that holds a value, by its dotted key."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        found |= dotted(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: f}
    return found


def kind(key: str) -> str:
    return FIELDS[key].metadata.get("kind", "structure")


FIELDS = dotted(RunConfig())
SCIENTIFIC = sorted(key for key in FIELDS if kind(key) in ("leaf", "structure"))
PROVENANCE = sorted(key for key in FIELDS if kind(key) == "provenance")


def read(**groups: Any) -> RunConfig:
    return from_mapping(RunConfig, groups)


def all_given() -> RunConfig:
    """The defaults, resolved, with a number in every leaf that may be null."""
    given = {"model": {"kappa": 10.0, "attention_scale_exponent": 0.7}}
    return resolve(from_mapping(RunConfig, given), **FACTS)


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as the mapping {a: {b: value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast("dict[str, Any]", value)


def replaced(config: Any, key: str, change: Any) -> Any:
    """The config with `change` applied to the value of a dotted key."""
    name, _, rest = key.partition(".")
    value = getattr(config, name)
    return dataclasses.replace(config, **{name: replaced(value, rest, change) if rest else change(value)})


def another(value: Any) -> Any:
    """Some value other than this one, of the same type where it has one."""
    if value is None:
        return 3
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[1:]
    return value + "x" if isinstance(value, str) else value + 1


def allowed(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field's declaration allows, at most 1e30 or 2^31 - 1 where it sets no bound."""
    if hint in (str, bool, type(None)):
        return st.from_type(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(allowed(arguments[0]), unique=True).map(tuple)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([allowed(argument) for argument in arguments])
    assert origin is typing.Annotated, f"no values for {hint}"
    limits = {type(limit): limit for limit in arguments if isinstance(limit, Ge | Gt | Le | Lt)}
    low = limits[Ge].ge if Ge in limits else limits[Gt].gt
    if arguments[0] is int:
        return st.integers(low, limits[Le].le if Le in limits else 2**31 - 1)
    high = limits[Lt].lt if Lt in limits else limits[Le].le if Le in limits else 1e30
    return st.floats(low, high, exclude_min=Gt in limits, exclude_max=Lt in limits)


def any_config(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Configs whose every field has some value that its declaration allows."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(
        cls, **{name: any_config(hint) if is_dataclass(hint) else allowed(hint) for name, hint in hints.items()}
    )


def refused(call: Any, key: str, value: Any) -> InputError:
    """The InputError that `call` raises, which must name the key and show the value."""
    with pytest.raises(InputError) as caught:
        call()
    error = caught.value
    assert error.key == key
    assert f"{key}={value}" in str(error)
    assert error.fix.endswith((".", "?"))
    return error


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_values_however_they_are_written() -> None:
    same = [
        read(optimizer={"learning_rate": 1e-3, "clip_norm": 1.0}, training={"steps": 1000}),
        read(training={"steps": 1e3}, optimizer={"clip_norm": 1, "learning_rate": 0.001}),
        read(optimizer={"learning_rate": "1e-3"}, training={"steps": 1000}, model={}, seed=0),
    ]
    assert len({fingerprint(config) for config in same}) == 1
    assert len(set(same)) == 1


def test_zero_is_one_setting_whatever_its_sign() -> None:
    assert fingerprint(read(optimizer={"weight_decay": -0.0})) == fingerprint(read(optimizer={"weight_decay": 0.0}))


def test_defaults_written_out_are_the_same_run() -> None:
    assert fingerprint(read(**to_mapping(RunConfig()))) == fingerprint(RunConfig())


@pytest.mark.parametrize("key", SCIENTIFIC)
def test_every_scientific_field_changes_the_fingerprint(key: str) -> None:
    assert fingerprint(replaced(RunConfig(), key, another)) != fingerprint(RunConfig())


@pytest.mark.parametrize("key", PROVENANCE)
def test_no_provenance_changes_the_fingerprint_or_reaches_the_program(key: str) -> None:
    default = RunConfig()
    other = replaced(default, key, another)
    assert other != default
    assert fingerprint(other) == fingerprint(default)
    assert jax.tree.structure(other) == jax.tree.structure(default)
    assert jax.tree.map(lambda leaf: leaf, other) == default


def test_the_fingerprint_of_a_known_run_stays_what_it_was() -> None:
    config = read(
        model={
            "width": 64,
            "depth": 2,
            "head_dim": 32,
            "mlp_ratio": 4,
            "attention": "softmax",
            "mlp": "gelu",
            "qk_layernorm": "per_head",
            "parameterization": "standard",
            "base_width": 256,
            "attention_scale_exponent": None,
            "attention_length_exponent": 0.5,
            "kappa": None,
            "layernorm_eps": 1e-6,
            "rotary_base": 1e4,
        },
        optimizer={
            "learning_rate": 1e-2,
            "learning_rate_scaling": "none",
            "weight_decay": 1e-4,
            "weight_decay_coupling": "independent",
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "clip_norm": 1.0,
            "decayed_roles": ["head", "gain"],
        },
        schedule={"warmup_steps": 25, "minimum_learning_rate": 1e-5},
        loss={"z_loss": 1e-4},
        training={
            "steps": 500,
            "batch_size": 16,
            "sequence_length": 64,
            "precision": "float32",
            "validation_sequences": 512,
        },
        data={"name": "kjv", "seed": 3, **FACTS},
        seed=1,
    )
    assert (FINGERPRINT_VERSION, fingerprint(config)) == (1, "7706d51655a1cc90"), (
        "Every run has another identity than before: what is recorded already would be trained again. If it is meant, "
        "raise FINGERPRINT_VERSION in stability/config.py, write both new values here, and say so in the changelog."
    )


# --- leaves and structure ---------------------------------------------------------------------------------------------


def test_leaves_are_what_the_declarations_call_leaves() -> None:
    resolved = all_given()
    paths, _ = jax.tree_util.tree_flatten_with_path(resolved)
    assert {".".join(entry.name for entry in path) for path, _ in paths} == {k for k in FIELDS if kind(k) == "leaf"}


@pytest.mark.parametrize("key", SCIENTIFIC)
def test_only_leaves_keep_the_structure(key: str) -> None:
    resolved = all_given()
    same = jax.tree.structure(replaced(resolved, key, another)) == jax.tree.structure(resolved)
    assert same == (kind(key) == "leaf")


def test_none_in_the_place_of_a_leaf_is_structure() -> None:
    for group, name in (("optimizer", "clip_norm"), ("model", "kappa"), ("model", "attention_scale_exponent")):
        given, free = read(**{group: {name: 1.0}}), read(**{group: {name: None}})
        assert jax.tree.structure(given) != jax.tree.structure(free)


def test_leaves_are_strongly_typed_and_hold_the_same_values() -> None:
    config = dataclasses.replace(all_given(), seed=2**32 - 1)
    leaves = to_leaves(config)
    assert jax.tree.structure(leaves) == jax.tree.structure(config)
    for key, f in FIELDS.items():
        if kind(key) == "leaf":
            array, value = flatten(to_mapping(leaves))[key], flatten(to_mapping(config))[key]
            assert array.shape == ()
            assert array.dtype == f.metadata["dtype"]
            assert array == f.metadata["dtype"](value)


def test_traced_leaves_pass_through_the_config_unlooked_at() -> None:
    config = to_leaves(resolve(RunConfig(), **FACTS))
    doubled = jax.jit(lambda c: jax.tree.map(lambda leaf: leaf + leaf, c))(config)
    assert doubled.optimizer.learning_rate == np.float32(0.02)
    assert doubled.model.width == 64


# --- reading ----------------------------------------------------------------------------------------------------------


@given(any_config(RunConfig))
@settings(deadline=None, max_examples=50)
def test_a_config_survives_json_whatever_the_order_of_its_keys(config: RunConfig) -> None:
    text = json.dumps(to_mapping(config), allow_nan=False, sort_keys=True)
    again = from_mapping(RunConfig, json.loads(text))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


@pytest.mark.parametrize(
    ("key", "value", "suggested"),
    [
        ("learning_rate", 0.1, "optimizer.learning_rate"),
        ("optimizer.learning_rat", 0.1, "optimizer.learning_rate"),
        ("optimizer.width", 64, "model.width"),
        ("sed", 1, "seed"),
        ("model.wdith", 64, "model.width"),
        ("model.foo", 1, "model.qk_layernorm"),
        ("nothing_like_it", 1, "--cfg job"),
    ],
)
def test_an_unknown_key_is_refused_with_what_may_be_meant(key: str, value: Any, suggested: str) -> None:
    error = refused(lambda: read(**nested(key, value)), key, value)
    assert suggested in error.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.learning_rate", 0),
        ("optimizer.learning_rate", -1e-3),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.learning_rate", math.inf),
        ("optimizer.learning_rate", True),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", None),
        ("optimizer.learning_rate", [0.1]),
        ("optimizer.weight_decay", -1e-9),
        ("optimizer.beta1", 1.0),
        ("optimizer.clip_norm", True),
        ("optimizer.clip_norm", math.nan),
        ("optimizer.clip_norm", 0.0),
        ("optimizer.decayed_roles", "head"),
        ("schedule.warmup_steps", 1.5),
        ("schedule.warmup_steps", -1),
        ("schedule.warmup_steps", "soon"),
        ("training.steps", 1.5),
        ("training.steps", 0),
        ("training.steps", True),
        ("training.steps", math.nan),
        ("training.evaluate_every", 0),
        ("training.precision", "float8"),
        ("model", 3),
        ("model.width", None),
        ("model.qk_layernorm", "sometimes"),
        ("model.attention", None),
        ("model.attention", "linear"),
        ("model.parameterization", "mup"),
        ("model.base_width", 0),
        ("model.kappa", 0.0),
        ("model.attention_scale_exponent", -0.5),
        ("optimizer.weight_decay_coupling", True),
        ("data.name", "enwik8"),
        ("data.seed", 2**32),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", False),
    ],
)
def test_a_value_of_a_wrong_type_or_range_is_refused(key: str, value: Any) -> None:
    refused(lambda: read(**nested(key, value)), key, value)


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.eps", 1e-60), ("optimizer.learning_rate", 1e39), ("training.steps", 1e300)]
)
def test_a_number_that_the_program_cannot_hold_is_refused(key: str, value: float) -> None:
    def prepare() -> None:
        config = resolve(read(**nested(key, value)), **FACTS)
        validate(config)

    refused(prepare, key, value)


@pytest.mark.parametrize(("text", "steps"), [(1e3, 1000), (1000, 1000), (2.0, 2)])
def test_whole_floats_stand_for_integers(text: float, steps: int) -> None:
    config = read(training={"steps": text})
    assert config.training.steps == steps
    assert type(config.training.steps) is int


# --- resolving and validating -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warmup"), [(500, 25), (100_000, 5_000), (20, 1), (1, 0)])
def test_warm_up_is_five_percent_of_the_steps_unless_given(steps: int, warmup: int) -> None:
    assert resolve(read(training={"steps": steps}), **FACTS).schedule.warmup_steps == warmup
    given_ = read(training={"steps": steps}, schedule={"warmup_steps": 0})
    assert resolve(given_, **FACTS).schedule.warmup_steps == 0


def test_the_data_seed_follows_the_seed_unless_given() -> None:
    assert resolve(read(seed=7), **FACTS).data.seed == 7
    assert resolve(read(seed=7, data={"seed": 0}), **FACTS).data.seed == 0


@given(any_config(RunConfig))
@settings(deadline=None, max_examples=50)
def test_resolving_leaves_nothing_open_and_changes_nothing_twice(config: RunConfig) -> None:
    once = resolve(config, **FACTS)
    assert resolve(once, **FACTS) == once
    assert (once.data.corpus, once.data.vocabulary_size) == ("0123456789abcdef", 257)
    assert None not in (once.data.seed, once.schedule.warmup_steps)


CONTRADICTIONS = {
    "model.head_dim": (RunConfig(model=ModelConfig(width=63, head_dim=21)), 21),
    "model.width": (RunConfig(model=ModelConfig(width=100, head_dim=32)), 100),
    "schedule.warmup_steps": (
        RunConfig(schedule=ScheduleConfig(warmup_steps=500), training=TrainingConfig(steps=500)),
        500,
    ),
    "optimizer.learning_rate": (RunConfig(optimizer=OptimizerConfig(learning_rate=9e-6)), 9e-6),
    "model.kappa": (RunConfig(model=ModelConfig(attention="none", kappa=10.0)), 10.0),
    "model.attention_scale_exponent": (
        RunConfig(model=ModelConfig(attention="none", attention_scale_exponent=0.5)),
        0.5,
    ),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(key: str) -> None:
    config, value = CONTRADICTIONS[key]
    refused(lambda: validate(config), key, value)


def test_the_width_proposed_divides_into_heads() -> None:
    with pytest.raises(InputError, match="Use a width of 96,"):
        validate(RunConfig(model=ModelConfig(width=100, head_dim=32)))


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(schedule=ScheduleConfig(warmup_steps=499)),
        RunConfig(optimizer=OptimizerConfig(learning_rate=1e-5)),
        RunConfig(training=TrainingConfig(steps=1)),
        # Without attention there are no heads to fit, and settings that other arms share say nothing.
        RunConfig(model=ModelConfig(attention="none", mlp="none", width=33, head_dim=21)),
        RunConfig(model=ModelConfig(attention="none", qk_layernorm="whole_width", attention_length_exponent=1.0)),
    ],
)
def test_settings_at_the_edge_of_what_fits_are_accepted(config: RunConfig) -> None:
    validate(config)
    validate(resolve(config, **FACTS))


@pytest.mark.parametrize(
    ("said", "raised"),
    [('Error building "str" validator:\n  KeyboardInterrupt: ', KeyboardInterrupt), ("a bug", SchemaError)],
)
def test_ctrl_c_stays_one_while_pydantic_builds(
    said: str, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cls: object) -> None:
        raise SchemaError(said)

    monkeypatch.setattr(typed, "TypeAdapter", interrupted)
    with pytest.raises(raised):
        typed.from_mapping(dataclasses.make_dataclass("Fresh", []), {})
