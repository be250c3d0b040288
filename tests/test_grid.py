"""From a composed config and a command line to runs: unions of grids, precedence, refusals. No Hydra here."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from stability.config import RunConfig, to_mapping
from stability.errors import InputError
from stability.launching.grid import CommandLine, Request, build_request

SCALES = {
    "small": {"model.width": 32, "model.depth": 1, "model.head_dim": 16},
    "large": {"model.width": 64, "model.depth": 2, "model.head_dim": 16},
}
INTERVENTIONS: dict[str, tuple[str, str, Any]] = {
    "z_loss_none": ("loss", "z_loss", 0.0),
    "no_norm": ("model", "qk_layernorm", "none"),
}
GROUPS = ("data", "intervention", "ladder", "sweep", "tracking")


class Composer:
    """Stands for Hydra: a composed config for each choice of groups, and a note of every call."""

    def __init__(self, **base: Any) -> None:
        self.base = to_mapping(RunConfig()) | {
            "scale": None,
            "ladder": {"name": "tiny", "scales": SCALES},
            "lanes": "auto",
            "output_dir": None,
            "dry_run": False,
            "tracking": {"name": "files"},
            **base,
        }
        self.calls: list[dict[str, Any]] = []

    def __call__(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append(dict(chosen))
        config = copy.deepcopy(self.base)
        names = chosen.get("intervention", [])
        for name in [names] if isinstance(names, str) else names:
            group, key, value = INTERVENTIONS[name]
            config[group][key] = value
        return config


def request(
    grids: Mapping[str, Any] | None = None,
    axes: Mapping[str, list[Any]] | None = None,
    fixed: Mapping[str, Any] | None = None,
    composer: Composer | None = None,
) -> Request:
    """The request for grids of a sweep file, axes and fixed keys of a command line (as Hydra would compose them)."""
    composer = composer or Composer()
    if grids is not None:
        composer.base["sweep"] = {"question": "Why?", "grids": grids}
    for key, value in (fixed or {}).items():
        node: Any = composer.base
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    command = CommandLine(dict(axes or {}), frozenset(fixed or {}))
    return build_request("study", composer.base, command, GROUPS, composer, "python -m stability.run")


def rates(found: Request) -> list[float]:
    return [config.optimizer.learning_rate for config in found.configs]


def refused(key: str, value: Any, **arguments: Any) -> InputError:
    """The InputError that the request raises, which must name the key and show the value."""
    with pytest.raises(InputError) as caught:
        request(**arguments)
    assert caught.value.key == key
    assert f"{key}={value}" in str(caught.value)
    return caught.value


# --- grids ------------------------------------------------------------------------------------------------------------


def test_nothing_asked_is_one_run_with_the_defaults() -> None:
    found = request()
    assert found.configs == (RunConfig(),)
    assert (found.sweep, found.question) == ("study", "")


def test_a_grid_is_the_product_of_its_axes_in_their_order() -> None:
    found = request({"main": {"seed": [0, 1], "optimizer.learning_rate": [0.1, 0.2, 0.3]}})
    assert [(c.seed, c.optimizer.learning_rate) for c in found.configs] == [
        (seed, rate) for seed in (0, 1) for rate in (0.1, 0.2, 0.3)
    ]
    assert found.question == "Why?"


def test_a_sweep_is_the_union_of_its_grids_so_arms_may_have_their_own_learning_rates() -> None:
    found = request(
        {
            "with": {"model.qk_layernorm": ["per_head"], "optimizer.learning_rate": [0.1, 1.0]},
            "without": {"model.qk_layernorm": ["none"], "optimizer.learning_rate": [0.001, 0.1]},
        }
    )
    assert [(c.model.qk_layernorm, c.optimizer.learning_rate) for c in found.configs] == [
        ("per_head", 0.1),
        ("per_head", 1.0),
        ("none", 0.001),
        ("none", 0.1),
    ]


def test_a_single_value_is_a_list_of_one() -> None:
    assert rates(request({"main": {"optimizer.learning_rate": 0.1}})) == [0.1]


def test_a_value_may_be_a_list_itself() -> None:
    found = request({"main": {"optimizer.decayed_roles": [["head"], []]}})
    assert [config.optimizer.decayed_roles for config in found.configs] == [("head",), ()]


def test_a_run_that_several_grids_ask_for_is_trained_once() -> None:
    grids = {"a": {"optimizer.learning_rate": [0.1, 0.2, 1e-1]}, "b": {"optimizer.learning_rate": [0.2, 0.3]}}
    assert rates(request(grids)) == [0.1, 0.2, 0.3]
    assert rates(request({"a": {"optimizer.learning_rate": [1, 1.0]}})) == [1.0]


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands_axes_replace_a_grids_or_join_it() -> None:
    grids = {"main": {"optimizer.learning_rate": [0.1, 0.2], "seed": [0]}}
    assert rates(request(grids, axes={"optimizer.learning_rate": [0.5, 0.6]})) == [0.5, 0.6]
    found = request(grids, axes={"training.steps": [10, 20]})
    assert [(c.optimizer.learning_rate, c.training.steps) for c in found.configs] == [
        (rate, steps) for rate in (0.1, 0.2) for steps in (10, 20)
    ]


def test_the_commands_axes_apply_to_every_grid() -> None:
    grids = {"a": {"model.qk_layernorm": ["none"]}, "b": {"optimizer.learning_rate": [0.5]}}
    assert len(request(grids, axes={"seed": [0, 1, 2]}).configs) == 6


def test_a_fixed_key_ends_the_axis_of_its_name() -> None:
    grids = {"main": {"optimizer.learning_rate": [0.1, 0.2], "seed": [0, 1]}}
    found = request(grids, fixed={"optimizer.learning_rate": 0.7})
    assert [(c.optimizer.learning_rate, c.seed) for c in found.configs] == [(0.7, 0), (0.7, 1)]


# --- scales -----------------------------------------------------------------------------------------------------------


def test_a_scale_sets_its_keys() -> None:
    found = request({"main": {"scale": ["small", "large"]}})
    assert [(c.model.width, c.model.depth, c.model.head_dim) for c in found.configs] == [(32, 1, 16), (64, 2, 16)]


def test_a_fixed_scale_sizes_every_run() -> None:
    found = request({"main": {"scale": ["small", "large"], "seed": [0, 1]}}, fixed={"scale": "large"})
    assert [(c.model.width, c.seed) for c in found.configs] == [(64, 0), (64, 1)]


def test_what_the_command_says_of_size_goes_over_the_scale() -> None:
    found = request({"main": {"scale": ["small", "large"]}}, fixed={"model.width": 128})
    assert [(c.model.width, c.model.depth) for c in found.configs] == [(128, 1), (128, 2)]
    found = request({"main": {"scale": ["large"]}}, axes={"model.width": [16, 48]})
    assert [(c.model.width, c.model.depth) for c in found.configs] == [(16, 2), (48, 2)]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_configs_are_composed_once_for_each_choice_of_groups() -> None:
    composer = Composer()
    grids = {
        "plain": {"optimizer.learning_rate": [0.1, 0.2], "seed": [0, 1]},
        "changed": {
            "optimizer.learning_rate": [0.1, 0.2],
            "intervention": ["z_loss_none", "no_norm"],
            "seed": [0, 1],
        },
        "again": {"intervention": ["no_norm"], "optimizer.learning_rate": [0.3]},
    }
    found = request(grids, composer=composer)
    assert composer.calls == [{"intervention": "z_loss_none"}, {"intervention": "no_norm"}]
    assert len(found.configs) == 4 + 8 + 1
    assert [c.loss.z_loss for c in found.configs[4:8]] == [0.0, 0.0, 1e-4, 1e-4]


def test_interventions_combine_in_a_list() -> None:
    (config,) = request({"main": {"intervention": [["z_loss_none", "no_norm"]]}}).configs
    assert (config.loss.z_loss, config.model.qk_layernorm) == (0.0, "none")


def test_an_axis_goes_over_what_a_group_sets() -> None:
    found = request({"main": {"intervention": ["no_norm"], "model.qk_layernorm": ["whole_width", "per_head"]}})
    assert [config.model.qk_layernorm for config in found.configs] == ["whole_width", "per_head"]


def test_the_composed_configs_stay_as_they_were() -> None:
    composer = Composer()
    before = copy.deepcopy(composer.base)
    request(axes={"scale": ["small", "large"], "optimizer.learning_rate": [0.1]}, composer=composer)
    assert composer.base == before


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_unknown_scale_is_refused_with_those_that_exist() -> None:
    for arguments in ({"grids": {"main": {"scale": ["small", "huge"]}}}, {"fixed": {"scale": "huge"}}):
        assert "small, large" in refused("scale", "huge", **arguments).fix


def test_a_scale_where_no_ladder_is_chosen_is_refused() -> None:
    composer = Composer(ladder={"name": "none", "scales": {}})
    assert "none" in refused("scale", "small", axes={"scale": ["small"]}, composer=composer).fix


@pytest.mark.parametrize("key", ["model.wdith", "learning_rate", "nowhere.learning_rate", "optimizer.adam.beta1"])
@pytest.mark.parametrize("where", ["grid", "command", "scale"])
def test_an_unknown_key_is_refused_wherever_it_stands(key: str, where: str) -> None:
    arguments: dict[str, Any] = {
        "grid": {"grids": {"main": {key: [1, 2]}}},
        "command": {"axes": {key: [1, 2]}},
        "scale": {
            "axes": {"scale": ["odd"]},
            "composer": Composer(ladder={"name": "tiny", "scales": {"odd": {key: 1}}}),
        },
    }[where]
    refused(key, 1, **arguments)


def test_an_unknown_group_of_settings_is_refused() -> None:
    error = refused("optimiser", "{'learning_rate': 0.1}", composer=Composer(optimiser={"learning_rate": 0.1}))
    assert "optimizer" in error.fix or "--cfg" in error.fix
    assert "output_dir" in refused("output_dirs", "x", composer=Composer(output_dirs="x")).fix


@pytest.mark.parametrize(("key", "values"), [("optimizer.learning_rate", [0.1, "fast"]), ("training.steps", [1.5])])
def test_a_value_of_an_axis_is_checked_like_any_other(key: str, values: list[Any]) -> None:
    refused(key, values[-1], grids={"main": {key: values}})
    refused(key, values[-1], axes={key: values})


def test_an_axis_without_values_is_refused() -> None:
    error = refused("sweep.grids.main.seed", [], grids={"main": {"seed": []}})
    assert "leave the axis out" in error.fix


def test_a_grid_that_is_no_mapping_is_refused() -> None:
    refused("sweep.grids.main", None, grids={"main": None})


ONE_OF = {
    "output_dir": ["a", "b"],
    "lanes": ["sequential", "vmap", "sharded"],
    "dry_run": [True, False],
    "tracking": ["files", "wandb"],
    "tracking.mode": ["online", "offline"],
    "sweep": ["a", "b"],
    "data": ["kjv", "text"],
    "data.name": ["kjv", "text"],
    "data.path": ["a", "b"],
    "training.observe_every": [5, 10],
}
"""What a sweep has only one of: where it goes, its text, and what is recorded beside its runs."""


@pytest.mark.parametrize("key", ONE_OF)
def test_what_a_sweep_has_only_one_of_is_no_axis_of_the_command(key: str) -> None:
    refused(key, ",".join(map(str, ONE_OF[key])), axes={key: ONE_OF[key]})


@pytest.mark.parametrize("key", ONE_OF)
def test_what_a_sweep_has_only_one_of_is_no_axis_of_a_grid(key: str) -> None:
    with pytest.raises(InputError, match="cannot differ between the runs of one sweep") as caught:
        request({"main": {key: ONE_OF[key]}})
    assert caught.value.key.endswith(key)


def test_the_data_seed_may_be_an_axis() -> None:
    assert [config.data.seed for config in request(axes={"data.seed": [0, 1]}).configs] == [0, 1]


def test_how_to_execute_is_read_and_checked() -> None:
    found = request(fixed={"output_dir": "somewhere", "lanes": "vmap", "dry_run": True, "tracking.mode": "offline"})
    assert (found.execution.output_dir, found.execution.lanes, found.execution.dry_run) == ("somewhere", "vmap", True)
    assert found.execution.tracking.mode == "offline"
    refused("lanes", "many", fixed={"lanes": "many"})
    refused("tracking.mode", "loud", fixed={"tracking.mode": "loud"})
