"""What a command asks for beside the runs' own configs: sweep, ladder, tracking, where and how to execute."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

S = TypeVar("S")


def settings(cls: type[S]) -> type[S]:
    """A frozen dataclass that refuses unknown keys when it is read from a mapping."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return cls


@settings
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who follows the runs beside their own files. `mode: auto` is online where W&B has a key, offline elsewhere."""

    name: Literal["wandb", "files"] = "wandb"
    project: str = "stability"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    per_head: bool = False


@settings
@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Named sizes: scale -> the keys that it sets."""

    name: str = "none"
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)


@settings
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A union of grids and the question that it asks. Each grid maps keys, or groups of configs, to lists of values."""

    question: str = ""
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)


@settings
@dataclass(frozen=True, kw_only=True)
class Execution:
    """How and where to run; none of it changes what a run is."""

    lanes: Literal["auto", "sequential", "vmap"] = "auto"
    output_dir: str | None = None
    dry_run: bool = False
    tracking: Tracking = field(default_factory=Tracking)


@settings
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which sizes and grids the runs are made of."""

    scale: str | None = None
    ladder: Ladder = field(default_factory=Ladder)
    sweep: Sweep = field(default_factory=Sweep)
