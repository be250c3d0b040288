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
NOT_ARM_KEYS = frozenset({"optimizer.learning_rate", "seed", "data.seed", *SIZE_KEYS})
ONLY_ARM = "default"
"""What the arm is called when nothing tells runs apart but learning rate, scale and seed."""


def scale_name(config: Flat, scales: Scales) -> str:
    """The ladder's name for this size, or one made of its numbers (`w48_d2_h16`) where the ladder has none."""
    for name, settings in scales.items():
        if all(config.get(key) == value for key, value in settings.items()):
            return name
    width, depth, head_dim = (config[key] for key in SIZE_KEYS)
    return f"w{width}_d{depth}_h{head_dim}"


def arm_labels(configs: Sequence[Flat], scales: Scales) -> list[str]:
    """One label a config: what sets its arm apart from the others, as `key=value, key=value`.

    A key is shortened to its last part where that stays unambiguous (`model.qk_layernorm=none` is
    `qk_layernorm=none`). Keys that a scale of the ladder sets belong to the scale and never make an arm.
    """
    not_arm = NOT_ARM_KEYS.union(*(settings.keys() for settings in scales.values()))
    keys = sorted({key for config in configs for key in config} - not_arm)
    varying = [key for key in keys if len({_text(config.get(key)) for config in configs}) > 1]
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
