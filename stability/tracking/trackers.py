"""The one place that knows which trackers there are: `tracking.name` -> what makes the tracker."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stability.errors import InputError
from stability.tracking.tracker import NoTracker, Tracker
from stability.tracking.wandb import Mode, WandbTracker, resolve_mode


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker may be told by the command: the keys of `tracking`, and where the sweep's results are.

    Attributes:
        name: `files`, `wandb`, or `MODULE:NAME` of anyone's own.
        project: what the tracker calls a collection of sweeps.
        entity: user or team; None for the tracker's own default.
        mode: `auto`, `online` or `offline`.
        per_head: whether to send the values of single heads too.
        folder: the sweep's results folder; a tracker may write into a folder of its own there.
    """

    name: str
    project: str
    entity: str | None
    mode: Mode
    per_head: bool
    folder: Path


Factory = Callable[[TrackerSettings], Tracker]


def _files(settings: TrackerSettings) -> Tracker:
    return NoTracker()


def _wandb(settings: TrackerSettings) -> Tracker:
    return WandbTracker(settings.project, settings.entity, settings.mode, settings.folder, per_head=settings.per_head)


TRACKERS: dict[str, Factory] = {"files": _files, "wandb": _wandb}


def find_tracker(name: str, mode: Mode) -> Factory:
    """What makes the tracker of this name, before anything is trained or written.

    Args:
        name: one of `TRACKERS`, or `MODULE:NAME`: a class or function that can be imported and takes a
            `TrackerSettings`.
        mode: as in `TrackerSettings`.

    Raises:
        InputError: there is no such tracker, or it should be online and cannot be.
    """
    if name == "wandb" and mode == "online":
        try:
            resolve_mode(mode)  # refuses to be online without a key
        except InputError:
            raise
        except Exception:
            pass  # W&B itself is broken: the tracker asks it again, says so, and the training goes on
    return TRACKERS[name] if name in TRACKERS else _imported(name)


def _imported(name: str) -> Factory:
    module, separator, attribute = name.partition(":")
    known = ", ".join(TRACKERS)
    if not separator:
        raise InputError("tracking.name", name, "there is no such tracker", f"It is {known}, or MODULE:NAME of yours.")
    try:
        factory: Factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError, TypeError) as error:  # the last two: no such name
        raise InputError(
            "tracking.name", name, f"cannot be imported ({error})", f"Name MODULE:NAME on the Python path, or {known}."
        ) from error
    if not callable(factory):
        raise InputError("tracking.name", name, "is neither a class nor a function", "Name one that makes a tracker.")
    return factory
