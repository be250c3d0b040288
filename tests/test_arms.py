"""Scales and arms are told apart by the settings themselves: no two settings ever share a curve."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.arms import ONLY_ARM, SIZE_KEYS, arm_labels, scale_name

IDENTITY = ("optimizer.learning_rate", "seed", "data.seed")
SCALES = {
    "small": {"model.width": 32, "model.depth": 1, "model.head_dim": 16},
    "large": {"model.width": 64, "model.depth": 2, "model.head_dim": 16},
}
LADDERS: list[dict[str, dict[str, Any]]] = [
    {},
    SCALES,
    {"half": {"model.width": 32}, "whole": {"model.width": 64}},
    {name: {**keys, "training.batch_size": keys["model.width"]} for name, keys in SCALES.items()},
]

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model.width": st.sampled_from([32, 64]),
    "model.depth": st.integers(1, 2),
    "model.head_dim": st.sampled_from([16, 32]),
    "model.qk_layernorm": st.sampled_from(["none", "per_head"]),
    "model.eps": st.sampled_from([1e-6, 1e-15]),
    "optimizer.learning_rate": st.sampled_from([0.01, 0.1]),
    "optimizer.eps": st.sampled_from([1e-8, 1.0000000000000002e-8, 0.1, 0.1 + 1e-17, 1e22]),
    "optimizer.clip_norm": st.sampled_from([None, 1.0]),
    "optimizer.decayed_roles": st.sampled_from([[], ["head"], ["head", "gain"]]),
    "training.batch_size": st.sampled_from([16, 32, 48, 64]),
    "training.rematerialise": st.booleans(),
    "seed": st.integers(0, 2),
    "data.seed": st.integers(0, 2),
}


@st.composite
def sweeps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The flat configs of runs that differ in a few keys, as those of a sweep do."""
    base = draw(st.fixed_dictionaries(VALUES))
    varied = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    changes = st.fixed_dictionaries({key: VALUES[key] for key in varied})
    return [base | change for change in draw(st.lists(changes, min_size=1, max_size=6))]


def curve(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """All that makes two runs points of different curves."""
    return sorted((key, value) for key, value in config.items() if key not in IDENTITY)


@given(configs=sweeps(), scales=st.sampled_from(LADDERS))
@settings(deadline=None, max_examples=300)
def test_two_runs_share_scale_and_arm_exactly_when_they_share_all_settings(
    configs: list[dict[str, Any]], scales: dict[str, dict[str, Any]]
) -> None:
    places = [
        (scale_name(config, scales), arm) for config, arm in zip(configs, arm_labels(configs, scales), strict=True)
    ]
    for a, place_a in zip(configs, places, strict=True):
        for b, place_b in zip(configs, places, strict=True):
            assert (place_a == place_b) == (curve(a) == curve(b))


@given(configs=sweeps(), data=st.data())
@settings(deadline=None)
def test_labels_depend_on_the_set_of_runs_and_not_on_any_order(
    configs: list[dict[str, Any]], data: st.DataObject
) -> None:
    labels = arm_labels(configs, SCALES)
    order = data.draw(st.permutations(range(len(configs))))
    shuffled = [dict(sorted(configs[i].items(), reverse=True)) for i in order]
    assert arm_labels(shuffled, SCALES) == [labels[i] for i in order]
    assert arm_labels([*configs, *configs], SCALES) == [*labels, *labels]


def test_runs_that_differ_in_learning_rate_scale_and_seed_only_are_one_arm() -> None:
    runs = [
        {**size, "model.qk_layernorm": "none", "optimizer.learning_rate": rate, "seed": seed, "data.seed": seed}
        for size in SCALES.values()
        for rate in (0.1, 1.0)
        for seed in (0, 1)
    ]
    assert set(arm_labels(runs, SCALES)) == {ONLY_ARM}


def test_a_label_names_what_varies_in_short() -> None:
    runs = [{"model.qk_layernorm": name, "loss.z_loss": z, "model.mlp_ratio": 4} for name in "ab" for z in (0.0, 1e-4)]
    assert arm_labels(runs, {}) == [
        "z_loss=0.0, qk_layernorm=a",
        "z_loss=0.0001, qk_layernorm=a",
        "z_loss=0.0, qk_layernorm=b",
        "z_loss=0.0001, qk_layernorm=b",
    ]


def test_keys_whose_last_parts_are_alike_are_written_in_full_where_both_vary() -> None:
    runs = [{"optimizer.eps": 1e-8, "model.eps": 1e-6}, {"optimizer.eps": 1e-6, "model.eps": 1e-5}]
    assert arm_labels(runs, {}) == ["model.eps=1e-06, optimizer.eps=1e-08", "model.eps=1e-05, optimizer.eps=1e-06"]
    assert arm_labels([{**run, "model.eps": 1e-6} for run in runs], {}) == ["eps=1e-08", "eps=1e-06"]


def test_values_read_as_yaml_writes_them() -> None:
    values = [None, True, 1.0, ["head"]]
    assert arm_labels([{"a": value} for value in values], {}) == ["a=null", "a=true", "a=1.0", "a=['head']"]


def test_a_setting_that_an_older_record_lacks_is_null() -> None:
    assert arm_labels([{"a": 1}, {"a": 1, "b": "new"}], {}) == ["b=null", "b=new"]


def test_no_runs_have_no_labels() -> None:
    assert arm_labels([], SCALES) == []


@pytest.mark.parametrize("name", SCALES)
def test_a_size_of_the_ladder_has_its_name(name: str) -> None:
    assert scale_name({**SCALES[name], "seed": 3}, SCALES) == name


def test_any_other_size_is_named_by_its_numbers() -> None:
    sizes = dict(zip(SIZE_KEYS, (48, 2, 16), strict=True))
    assert scale_name(sizes, SCALES) == "w48_d2_h16"
    assert scale_name({**SCALES["small"], "model.depth": 7}, SCALES) == "w32_d7_h16"
