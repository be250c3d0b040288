"""Which curve a run belongs to: its scale and its arm, derived from the configs themselves. Imports no JAX.

Here a config is its *flat scientific mapping* (dotted key -> value). A scale is named by its size, an arm by every
scientific difference between the runs at hand other than learning rate, scale and seed, so two different settings never
merge into one curve, whatever they were called.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Flat = Mapping[str, Any]
Scales = Mapping[str, Flat]
"""The named sizes of a ladder: name -> the keys that the scale sets."""

SIZE_KEYS = ("model.width", "model.depth", "model.head_dim")
REPLICATE_KEYS = frozenset({"optimizer.learning_rate", "seed", "data.seed"})
NOT_ARM_KEYS = REPLICATE_KEYS.union(SIZE_KEYS)
ONLY_ARM = "default"
"""What the arm is called when nothing tells runs apart but learning rate, scale and seed."""

WARMUP_FRACTION = 0.05
"""Share of the steps that warm-up takes where `schedule.warmup_steps` is null: 5e3 of 1e5 in the paper."""


def as_given(config: Flat) -> Flat:
    """The config with a warm-up of 5 % written as null again, so that other steps alone make no other warm-up."""
    steps, warmup = config.get("training.steps"), config.get("schedule.warmup_steps")
    follows = steps is not None and warmup == round(WARMUP_FRACTION * steps)
    return {**config, "schedule.warmup_steps": None} if follows else config


def scale_name(config: Flat, scales: Scales) -> str:
    """The ladder's name for this size, or one made of its numbers (`w48_d2_h16`) where the ladder has none."""
    for name, settings in scales.items():
        if all(config.get(key) == value for key, value in settings.items()):
            return name
    return "_".join(f"{letter}{config.get(key)}" for letter, key in zip("wdh", SIZE_KEYS, strict=True))


def arm_labels(configs: Sequence[Flat], scales: Scales) -> list[str]:
    """One label a config: what sets its arm apart from the others, as `key=value, key=value`.

    A key is shortened to its last part where that stays unambiguous (`model.qk_layernorm=none` is
    `qk_layernorm=none`). What sets a scale's size belongs to the scale, and makes an arm only where
    runs of one scale's name differ in it.
    """
    sizes = [scale_name(config, scales) for config in configs]
    sized = set(SIZE_KEYS).union(*(settings.keys() for settings in scales.values()))
    if len({config.get("training.steps") for config in configs}) > 1:
        configs = [as_given(config) for config in configs]

    def varies(key: str) -> bool:
        if key not in sized:
            return len({_text(config.get(key)) for config in configs}) > 1
        seen = {(size, _text(config.get(key))) for size, config in zip(sizes, configs, strict=True)}
        return len(seen) > len(set(sizes))

    varying = [key for key in sorted({key for config in configs for key in config} - REPLICATE_KEYS) if varies(key)]
    short = [key.rsplit(".", 1)[-1] for key in varying]
    names = [s if short.count(s) == 1 else key for key, s in zip(varying, short, strict=True)]
    return [
        ", ".join(f"{name}={_text(config.get(key))}" for key, name in zip(varying, names, strict=True)) or ONLY_ARM
        for config in configs
    ]


def _text(value: Any) -> str:
    """A value as YAML writes it. Floats in full: two settings that differ never read the same."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
