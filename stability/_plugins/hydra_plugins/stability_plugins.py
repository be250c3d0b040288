"""Hydra's way in: where configs are found, and the sweeper that turns a composed config into a launch.

Hydra finds plug-ins in the namespace package `hydra_plugins`, which is why this folder has that name and no __init__.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from stability.command_line import config_folders, no_choice, typed_command
from stability.errors import InputError
from stability.launching.grid import MOST_RUNS, CommandLine, build_request

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="stability",
    node={"_target_": "hydra_plugins.stability_plugins.StabilitySweeper"},
    provider="stability",
)


def _share(fraction: float, *, _root_: DictConfig) -> int:
    """A share of the run's steps in whole steps, at least one unless the share is nothing: `${share:0.05}`."""
    steps = OmegaConf.select(_root_, "training.steps", throw_on_missing=True)
    if not _is_number(steps):
        return 0  # the typed config will refuse the steps, by their own name
    if not _is_number(fraction):
        raise ValueError(f"share takes a number, not {fraction!r}")
    return max(1, round(fraction * steps)) if fraction else 0


def _times(value: float, factor: float) -> float:
    """A product, whole where the first factor is: `${times:${ladder.batch_size},2}`."""
    if not _is_number(value):
        return value  # as above
    if not _is_number(factor):
        raise ValueError(f"times takes a number, not {factor!r}")
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


OmegaConf.register_new_resolver("share", _share, replace=True)
OmegaConf.register_new_resolver("times", _times, replace=True)

APPENDED_GROUPS = ("sweep", "intervention")
"""Groups without a default: Hydra wants `+` before them; an intervention goes last, over what the sweep sets."""


PACKAGE_HEADER = "# @package _global_"


class StabilitySource(FileConfigSource):
    """YAML files whose faults are told by file and line, before anything is composed of them."""

    @staticmethod
    def scheme() -> str:
        """How paths of this source begin; called by Hydra."""
        return "stability"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file; called by Hydra.

        Raises:
            InputError: it cannot be read, is no YAML, or is none that could be a config here.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        try:
            found = super().load_config(config_path)
        except yaml.YAMLError as error:
            raise InputError("file", path, f"is not YAML ({_place_of(error)})", "Mend it.") from None
        except UnicodeDecodeError as error:
            raise InputError("file", path, f"is not text in UTF-8 ({error.reason})", "Save it as UTF-8.") from None
        except OSError as error:
            raise InputError("file", path, f"cannot be read ({error.strerror or error})", "Mend it.") from None
        if not isinstance(found.config, DictConfig):
            raise InputError("file", path, "holds no keys at its top", "Write KEY: VALUE.")
        group = config_path.partition("/")[0]
        needs_header = group == "intervention" or (group in ("sweep", "ladder") and group in found.config)
        if needs_header and not found.header.get("package"):
            problem = f"does not begin with {PACKAGE_HEADER}, so its keys would be keys of {group}"
            raise InputError("file", path, problem, f"Make {PACKAGE_HEADER} its first line.")
        return found


def _place_of(error: yaml.YAMLError) -> str:
    """What is wrong with YAML text, and on which line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    said = " ".join(f"{error.context or ''} {error.problem or ''}".split())
    return f"{said}{where}"


class StabilitySearchPath(SearchPathPlugin):
    """Finds sweeps/ and conf/ of the project, and those beside the user's working directory.

    The user's sweeps come before ours, so that a copy may keep its name; our conf comes before theirs, so that another
    Hydra project's folder of that name changes nothing here.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Extend Hydra's search path; called by Hydra."""
        ours, users = config_folders(), Path.cwd()
        search_path.append("stability-user-sweeps", f"stability://{users / 'sweeps'}")
        search_path.append("stability-sweeps", f"stability://{ours.sweeps}")
        search_path.append("stability-user-conf", f"stability://{users / 'conf'}")


class StabilitySweeper(Sweeper):
    """Composes once for each choice of groups, expands the grids over typed configs, and launches them as one sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `sweep` needs; called by Hydra."""
        self._loader, self._task, self._config = hydra_context.config_loader, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Build the request that the command line asks for and hand it to the task function."""
        overrides = OverridesParser.create(config_loader=self._loader).parse_overrides(arguments)
        groups = set(self._loader.list_groups("")) - {"hydra"}
        axes: dict[str, list[Any]] = {}
        fixed: list[Override] = []
        for override in overrides:  # of two for the same key the later holds
            key = override.key_or_group
            axes.pop(key, None)
            if override.is_sweep_override():
                fixed = [other for other in fixed if other.key_or_group != key]
                axes[key] = _sweep_values(override)
            else:
                fixed.append(override)
        names = self._config.hydra.runtime.choices.get("sweep")
        request = build_request(
            "+".join(names) if isinstance(names, list) else names,
            _plain(self._config),
            CommandLine(axes, frozenset(override.key_or_group for override in fixed)),
            sorted(groups),
            lambda chosen: self._compose([str(override.input_line) for override in fixed], chosen),
            typed_command(),
        )
        return self._task(replace(request, arguments=tuple(arguments)))

    def _compose(self, fixed: list[str], chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        picks = [f"{'+' if key in APPENDED_GROUPS else ''}{key}={_choice(key, value)}" for key, value in chosen.items()]
        hydra: list[str] = list(self._config.hydra.overrides.hydra)
        name = self._config.hydra.job.config_name
        return _plain(self._loader.load_configuration(name, [*hydra, *fixed, *picks], RunMode.MULTIRUN))


def _plain(config: DictConfig) -> Mapping[str, Any]:
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    mapping = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def _sweep_values(override: Override) -> list[Any]:
    key, text = override.key_or_group, override.get_value_string()
    try:
        values = list(islice(override.sweep_iterator(), MOST_RUNS + 1))
    except (HydraException, ValueError) as error:
        raise InputError(key, text, "is a sweep without a list of values", "List them: KEY=A,B,C.") from error
    if len(values) > MOST_RUNS:
        raise InputError(key, text, f"is more than {MOST_RUNS:,} values", "Give fewer, or several sweeps.")
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _choice(group: str, value: Any) -> str:
    """The name or names of configs of a group, as a word."""
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            raise no_choice(group, name)
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
