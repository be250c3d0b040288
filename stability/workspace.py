"""`python -m stability.workspace project=ENTITY/PROJECT sweep=NAME`: a W&B workspace with a sweep's panels. No JAX."""

import sys
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from stability.command_line import Parser, key_values, report
from stability.errors import InputError
from stability.untrusted.printable import tell

EPILOG = """\
keys
  project=ENTITY/PROJECT    where the sweep's runs are on W&B
  sweep=NAME                the sweep's name, which W&B shows as their group

example
  python -m stability.workspace project=my-team/stability sweep=quickstart

It needs a W&B API key (`wandb login`), and pip install 'stability[workspace]'. The runs may be sent later.
"""


@dataclass(frozen=True, kw_only=True)
class WorkspaceSettings:
    """The keys of the command line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    project: str
    sweep: str


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    parser = Parser("workspace", "Save a W&B workspace that shows one sweep.", EPILOG)
    try:
        tell(_save(_settings(key_values(parser, arguments, first="project"))))
    except InputError as error:
        return report(error)
    return 0


def _settings(given: dict[str, str]) -> WorkspaceSettings:
    from stability.typed import from_mapping, refuse_unknown

    refuse_unknown(WorkspaceSettings, given)
    for key in ("project", "sweep"):
        if not given.get(key):
            raise InputError(key, "", "is missing", "Write project=ENTITY/PROJECT sweep=NAME.")
    entity, _, project = given["project"].partition("/")
    if not entity or not project or "/" in project:
        raise InputError("project", given["project"], "names no entity", "Write project=ENTITY/PROJECT.")
    return from_mapping(WorkspaceSettings, given)


def _save(settings: WorkspaceSettings) -> str:
    """Save the workspace and return its address."""
    from stability.tracking.wandb_key import has_key

    try:
        from stability.tracking.workspace import sweep_workspace
    except ModuleNotFoundError as error:
        raise InputError(
            "workspace", settings.sweep, f"needs {error.name}", "pip install 'stability[workspace]'"
        ) from error
    if not has_key():
        raise InputError(
            "project", settings.project, "needs a W&B API key, and none is configured", "Run `wandb login`."
        )
    entity, project = settings.project.split("/")
    try:
        workspace: Any = sweep_workspace(entity, project, settings.sweep)
        return str(workspace.save().url)
    except Exception as error:  # W&B has many kinds, and none that names key and fix
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            "project", settings.project, f"cannot be written on W&B ({problem})", "Check that it exists and is yours."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
