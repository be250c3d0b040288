"""What a command asks for beside the runs' own configs: sweep, ladder, tracking, where and how to execute."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

from stability.formats import FORMATS, Format
from stability.tracking.console import Progress
from stability.typed import Bytes, Count, Positive, Text

S = TypeVar("S")


def settings(cls: type[S]) -> type[S]:
    """A frozen dataclass that refuses unknown keys when it is read from a mapping."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return cls


@settings
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who follows the runs beside their own files. `mode: auto` is online where W&B has a key, offline elsewhere.

    `name`: `wandb`, `files`, or `MODULE:NAME` of one's own (`stability.tracking.trackers`).
    """

    name: Text = "wandb"
    project: Text = "stability"
    entity: Text | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    per_head: bool = False


@settings
@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Named sizes, and all that must scale with them, so that one sweep file serves every ladder.

    Sweep files read it by interpolation: `scale: ${ladder.series.main}`.

    Attributes:
        scales: scale -> the keys that it sets.
        series: named lists of scales, smallest first.
        learning_rates: named grids.
        steps: length of a run, which `training.steps` takes over.
        batch_size: sequences in a batch, which `training.batch_size` takes over.
        settings: what else a sweep reads here: steps at which to look, windows, lengths of special runs.
    """

    name: str = "none"
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, list[str]] = field(default_factory=dict)
    learning_rates: dict[str, list[Positive]] = field(default_factory=dict)
    steps: Count | None = None
    batch_size: Count | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@settings
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A union of grids, the question that it asks, and what to test on its records.

    Attributes:
        question: one sentence that ends in a question mark.
        source: the paper, section and figure that the question is from.
        grids: each maps keys, or groups of configs, to lists of values.
        quantities: name -> what to read from each run's metrics (`stability.analysis.quantities`).
        claims: name -> a statement to test (`stability.analysis.claims`).
        forecasts: name -> a quantity to forecast over N and LR (`stability.analysis.forecast`).
        expect: ladder -> what an honest reader should expect there.
    """

    question: str = ""
    source: str = ""
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantities: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    forecasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    expect: dict[str, str] = field(default_factory=dict)


LanesChoice = Literal["auto", "sequential", "vmap", "sharded"]


@settings
@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Devices that share the work of one lane (`stability.training.mesh`).

    Attributes:
        data: among which a run's batch is divided.
        fsdp: among which its parameters and optimizer state are divided too.
    """

    data: Count = 1
    fsdp: Count = 1


@settings
@dataclass(frozen=True, kw_only=True)
class Host:
    """What a host file says of its machine, beside how to compute there (`stability.launching.host`).

    Attributes:
        name: the file's.
        platform: what JAX must run on; None is whatever it finds.
        devices: how many there must be, over all processes; None is any number.
        xla_flags: for XLA, where the environment's XLA_FLAGS do not say otherwise.
        compilation_cache: the folder of compiled programs; None is the user's cache folder.
    """

    name: Text = "auto"
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    devices: Count | None = None
    xla_flags: tuple[Text, ...] = ()
    compilation_cache: Text | None = None


@settings
@dataclass(frozen=True, kw_only=True)
class Execution:
    """How and where to run, and what to show; none of it changes what a run is.

    Attributes:
        lanes: how runs of one structure share their program (`stability.training.lanes`).
        mesh: devices that share the work of one lane.
        host: the kind of machine.
        output_dir: where the results go; None is results/SWEEP.
        reuse_from: where finished runs may be copied from.
        dry_run: print the plan and stop.
        memory_limit: bytes that programs may take on each device; None is what there is (`launching/memory`).
        calibrate: measure this machine first, for estimates of time (`launching/calibration`).
        progress: what the terminal shows while runs train (`stability.tracking.console`).
        report: write report.html.
        figures: the formats of figure files.
        tracking: who follows the runs beside their own files.
    """

    lanes: LanesChoice = "auto"
    mesh: MeshSettings = field(default_factory=MeshSettings)
    host: Host = field(default_factory=Host)
    output_dir: Text | None = None
    reuse_from: Text | None = None
    dry_run: bool = False
    memory_limit: Bytes | None = None
    calibrate: bool = False
    progress: Progress = "auto"
    report: bool = True
    figures: tuple[Format, ...] = FORMATS
    tracking: Tracking = field(default_factory=Tracking)


@settings
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which sizes and grids the runs are made of."""

    scale: str | None = None
    ladder: Ladder = field(default_factory=Ladder)
    sweep: Sweep = field(default_factory=Sweep)
