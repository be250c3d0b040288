"""Configs are data: what Hydra would make of one beyond values is refused before it is made.

Hydra calls whatever a composed config names under `_target_`, of callbacks first of all, and any file that a config
chooses may put something there. It also lets a config read the environment. Neither is needed here: a sweep file from
somewhere else can choose values, and nothing more.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stability.errors import InputError
from stability.untrusted.names import refuse_way_out
from stability.untrusted.yaml_text import check_yaml, not_yaml

TARGETS = {
    "hydra.sweeper": "hydra_plugins.stability_plugins.StabilitySweeper",
    "hydra.launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
}
"""What a config may have called, and where it has to stand."""
CALLS = ("_target_", "()")
"""Keys whose value Hydra, or Python's logging, imports and calls."""
ENVIRONMENT = "oc.env"
"""OmegaConf's resolver that reads the environment."""


@contextmanager
def only_values() -> Iterator[None]:
    """While this is open, every config that Hydra composes is checked, and every file before it is read."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from omegaconf import OmegaConf

    loader: Any = ConfigLoaderImpl
    files: Any = FileConfigSource
    compose, load = loader.load_configuration, files.load_config

    def checked_compose(self: Any, *arguments: Any, **more: Any) -> Any:
        config = compose(self, *arguments, **more)
        refuse_code(OmegaConf.to_container(config, resolve=False))
        return config

    def checked_load(self: Any, config_path: str) -> Any:
        path = _check_file(self, config_path)
        try:
            return load(self, config_path)
        except (yaml.YAMLError, RecursionError) as error:
            raise not_yaml("config", path, error) from None

    # Hydra has no place of its own for a check between composing a config and calling what stands in it.
    loader.load_configuration, files.load_config = checked_compose, checked_load
    OmegaConf.register_new_resolver(ENVIRONMENT, _refuse_environment, replace=True)
    try:
        yield
    finally:
        loader.load_configuration, files.load_config = compose, load


def refuse_code(config: Any) -> None:
    """Refuse a composed config that names something to call, or that lets Hydra write by itself.

    Args:
        config: plain nested values, interpolations as they were written.

    Raises:
        InputError: names the key.
    """
    for key, value in _items(config, ""):
        where, _, last = key.rpartition(".")
        if last in CALLS and TARGETS.get(where) != value:
            raise InputError(key, value, "names code to call, and configs are values here", "Leave it out.")
    hydra = config.get("hydra") or {}
    for key, value in (
        ("callbacks", hydra.get("callbacks")),
        *((key, (hydra.get(key) or {}).get("root")) for key in ("job_logging", "hydra_logging")),
    ):
        if value:
            raise InputError(f"hydra.{key}", value, "is not for a config to choose", "Leave it out.")
    for key in ("sweeper", "launcher"):
        if not isinstance(hydra.get(key, {}), Mapping):  # an interpolation, of something that is no `_target_` itself
            raise InputError(f"hydra.{key}", hydra[key], "is not for a config to choose", "Leave it out.")
    if getattr(mode := hydra.get("mode"), "name", mode) == "RUN":
        raise InputError("hydra.mode", "RUN", "is not used here", "Leave it out: one run is a sweep of one.")


def _items(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key of a tree with its value, the inner ones of lists and mappings included."""
    children = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield f"{prefix}{key}", value
        yield from _items(value, f"{prefix}{key}.")


def _check_file(source: Any, config_path: str) -> Path:
    """The file of a config. Refuses a bomb, and a path that leads out of the folder of configs."""
    refuse_way_out("config", config_path)
    path = Path(source.path, source._normalize_file_name(config_path))
    # What is missing or is no UTF-8 is for Hydra to say.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        check_yaml(path.read_text(encoding="utf-8"), "config", path)
    return path


def _refuse_environment(name: str, *_: Any) -> None:
    problem = "reads the environment, whose values would be written into records"
    raise InputError("config", f"${{oc.env:{name}}}", problem, "Give the value on the command line: KEY=$NAME.")
