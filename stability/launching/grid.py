"""A sweep's union of grids, with what the command line says, becomes typed configs. Knows nothing of Hydra.

An axis is a dotted key of the run's config (`optimizer.learning_rate`), the word `scale`, or a group of configs
(`intervention`). The text of a config is composed once for each distinct choice of groups; all other axes are values
set in its mapping before it is read into a typed config.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from stability.arms import REPLICATE_KEYS
from stability.config import BESIDE_IDENTITY, RunConfig
from stability.errors import InputError
from stability.launching.searched import SEARCHED_KEY, searched_points
from stability.launching.settings import Execution, Ladder, Selection, Sweep
from stability.typed import dotted_fields, from_mapping, unknown_key

Axes = dict[str, list[Any]]
RUN_KEYS = tuple(f.name for f in fields(RunConfig))
EXECUTION_KEYS = tuple(f.name for f in fields(Execution))
LIST_KEYS = tuple(f.name for f in fields(Execution) if isinstance(f.default, tuple))
SELECTION_KEYS = tuple(f.name for f in fields(Selection))
OTHER_KEYS = tuple(
    dict.fromkeys([*EXECUTION_KEYS, *SELECTION_KEYS, *(k for c in (Execution, Selection) for k, _ in dotted_fields(c))])
)
"""All keys beside a run's own, groups among them."""
SAME_FOR_ALL = frozenset(key for key, f in dotted_fields(RunConfig) if f.metadata.get("kind") in BESIDE_IDENTITY)
"""Keys of a run that are no part of its identity, so that two runs cannot differ by them."""


@dataclass(frozen=True)
class Request:
    """All that a launch needs, typed: what to run and how.

    `searched` are the configs that stand for points of a searched axis only: trained when the search asks for them.
    `as_written`: the command leaves the arms and scales of the sweep's file as they are there.
    """

    sweep: str | None
    definition: Sweep
    ladder: Ladder
    configs: tuple[RunConfig, ...]
    execution: Execution
    command: str
    searched: frozenset[RunConfig] = frozenset()
    as_written: bool = False

    @property
    def question(self) -> str:
        """What the sweep asks; empty for an ad-hoc command."""
        return self.definition.question


@dataclass(frozen=True)
class Grid:
    """Axes and their values, those of a searched axis being all of its points."""

    axes: Axes
    is_searched: bool


@dataclass(frozen=True)
class CommandLine:
    """What the user overrode: axes (`seed=0,1`) and fixed keys (`training.steps=50`); both end a grid's own axis."""

    axes: Axes
    fixed: frozenset[str]


def build_request(
    sweep: str | None,
    base: Mapping[str, Any],
    command: CommandLine,
    groups: Sequence[str],
    compose: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    text: str,
) -> Request:
    """Expand a composed config into the runs that it asks for, in the order of its grids, each distinct run once.

    Args:
        sweep: the sweep's name, None for an ad-hoc command.
        base: the composed config, plain nested values.
        command: the command line's axes and fixed keys.
        groups: the names of config groups that may be axes.
        compose: composes the config anew for a choice of groups.
        text: the command as typed, for the record.

    Raises:
        InputError: an unknown key, scale or value, named with what is allowed.
    """
    _refuse_unknown(base)
    execution = from_mapping(Execution, _part(base, EXECUTION_KEYS))
    selection = from_mapping(Selection, _part(base, SELECTION_KEYS))
    _refuse_code(execution.tracking.name, command)
    _refuse_programs(execution.host.compilation_cache, command)
    configs: dict[RunConfig, None] = {}
    listed: set[RunConfig] = set()
    composed: dict[str, Mapping[str, Any]] = {"{}": base}
    for grid in _grids(selection.sweep, command, _searched_by(base)):
        _refuse_sweeping(grid.axes)
        for point in _product(grid.axes):
            chosen = {key: value for key, value in point.items() if key in groups}
            if repr(chosen) not in composed:
                composed[repr(chosen)] = compose(chosen)
                _refuse_unknown(composed[repr(chosen)])
            settings = {key: value for key, value in point.items() if key not in chosen}
            config = _config(composed[repr(chosen)], settings, command.fixed)
            configs[config] = None
            if not grid.is_searched:
                listed.add(config)
    searched = frozenset(configs) - listed
    as_written = not any(_makes_arms(key) for key in command.axes.keys() | command.fixed)
    return Request(sweep, selection.sweep, selection.ladder, tuple(configs), execution, text, searched, as_written)


def _makes_arms(key: str) -> bool:
    """Whether a key of the command line may take arms or scales from a sweep, or give it others."""
    return key in ("scale", "intervention") or (key.split(".")[0] in RUN_KEYS and key not in REPLICATE_KEYS)


def _grids(sweep: Sweep, command: CommandLine, searched: Axes) -> Iterator[Grid]:
    """Each grid: its own axes, without those that the command fixes, replaced or joined by the command's.

    `searched` is the searched axis that stands where a config has its learning rate; a grid's own axis goes before it.
    """
    for name, grid in (sweep.grids or {"command": {}}).items():
        given = {key: values for key, values in grid.items() if key not in command.fixed | command.axes.keys()}
        axes = {key: _values(f"sweep.grids.{name}", key, values) for key, values in given.items()}
        is_searched = isinstance(given.get(SEARCHED_KEY, searched or None), Mapping)
        yield Grid(searched | axes | command.axes, is_searched and SEARCHED_KEY not in command.axes)


def _searched_by(base: Mapping[str, Any]) -> Axes:
    """The searched axis that the config itself holds instead of one learning rate: `KEY={search: ...}` in a command."""
    optimizer = base.get("optimizer")
    value = optimizer.get("learning_rate") if isinstance(optimizer, Mapping) else None
    return {SEARCHED_KEY: searched_points(SEARCHED_KEY, value)} if isinstance(value, Mapping) else {}


def _values(where: str, key: str, values: Any) -> list[Any]:
    if isinstance(values, Mapping) and (key == SEARCHED_KEY or "search" in values):
        return searched_points(f"{where}.{key}", values)
    if not isinstance(values, list):
        return [values]
    if not values:
        raise InputError(f"{where}.{key}", values, "has no values", "List at least one, or leave the axis out.")
    return values


MOST_RUNS = 100_000
"""In one grid: planning so many takes minutes, and no machine trains them; more are a slip."""


def _product(axes: Axes) -> Iterator[dict[str, Any]]:
    count = math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        sizes = ", ".join(f"{key}: {len(values):,} values" for key, values in axes.items() if len(values) > 1)
        fix = f"Give fewer values, or several sweeps of up to {MOST_RUNS:,} runs."
        raise InputError("sweep.grids", sizes, f"makes {count:,} runs", fix)
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _config(base: Mapping[str, Any], settings: Mapping[str, Any], fixed: frozenset[str]) -> RunConfig:
    """One run: the composed config, then its scale's keys, then its place in the grid; the command line over all."""
    selection = from_mapping(Selection, _part(base, SELECTION_KEYS))
    mapping = copy.deepcopy(_part(base, RUN_KEYS))
    scale = settings.get("scale", selection.scale)
    if scale is not None:
        for key, value in _scale(selection.ladder, scale).items():
            if key not in fixed:
                _set(mapping, key, value)
    for key, value in settings.items():
        if key != "scale":
            _set(mapping, key, value)
    return from_mapping(RunConfig, mapping)


def _scale(ladder: Ladder, scale: Any) -> Mapping[str, Any]:
    if not isinstance(scale, str) or scale not in ladder.scales:
        fix = f"Its scales are {', '.join(ladder.scales) or 'none'}."
        raise InputError("scale", scale, f"is not a scale of the ladder {ladder.name}", fix)
    return ladder.scales[scale]


def _set(mapping: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = mapping
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise unknown_key(RunConfig, dotted, value)
    node[last] = value


def _part(mapping: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: mapping[key] for key in keys if key in mapping}


def _refuse_unknown(mapping: Mapping[str, Any]) -> None:
    for key, value in mapping.items():
        if key not in (*RUN_KEYS, *EXECUTION_KEYS, *SELECTION_KEYS):
            raise unknown_key(RunConfig, key, value, also=OTHER_KEYS)


def _refuse_code(tracker: str, command: CommandLine) -> None:
    """A tracker of one's own is code, so whoever runs the command has to ask for it: no sweep file may."""
    if ":" in tracker and not command.fixed & {"tracking", "tracking.name"}:
        problem = "is a class to import, and a config file asks for it, not the command"
        raise InputError("tracking.name", tracker, problem, f"If you trust it, add tracking.name={tracker}.")


def _refuse_programs(cache: str | None, command: CommandLine) -> None:
    """A folder of compiled programs is code too."""
    if cache is not None and "host.compilation_cache" not in command.fixed:
        problem = "is a folder of programs to execute, and a config file names it, not the command"
        raise InputError(
            "host.compilation_cache", cache, problem, f"If you trust it, add host.compilation_cache={cache}."
        )


def _refuse_sweeping(axes: Axes) -> None:
    for key, values in axes.items():
        of_the_sweep = key.split(".")[0] in (*EXECUTION_KEYS, "sweep", "ladder", "data") and key != "data.seed"
        if of_the_sweep or key in SAME_FOR_ALL:
            text = ",".join(map(str, values))
            fix = f"Write {key}=[{text}]." if key in LIST_KEYS else "Give one value."
            raise InputError(key, text, "cannot differ between the runs of one sweep", fix)
