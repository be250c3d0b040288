"""Runs to packs: which runs share a program, in which order they train, and what that will cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from stability.arms import Scales, arm_labels, scale_name
from stability.config import RunConfig, fingerprint, scientific, to_leaves
from stability.tracking.console import counted
from stability.tracking.record import flatten
from stability.training.step import initial_state

STEP_OVERHEAD_FLOPS = 4e8
"""What a step costs beside its FLOPs, as many FLOPs take the same time: fitted to widths 32 to 128 on two CPU cores."""


@dataclass(frozen=True)
class PlannedRun:
    """A run with its identity and its place in the sweep."""

    config: RunConfig
    fingerprint: str
    scale: str
    arm: str

    @property
    def folder_name(self) -> str:
        """Sorts and completes well, and is the same whatever sweep the run is part of."""
        model, rate, seed = self.config.model, self.config.optimizer.learning_rate, self.config.seed
        return f"w{model.width}_d{model.depth}-lr{rate:g}-seed{seed}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """One line for people: arm, scale, learning rate, seed."""
        return f"{self.arm} {self.scale} lr {self.config.optimizer.learning_rate:g} seed {self.config.seed}"

    @property
    def flops(self) -> float:
        """Floating-point operations of the training, estimated: see `flops_per_token`."""
        return self.config.tokens * flops_per_token(self.config)

    @property
    def cost(self) -> float:
        """Time that the training takes, in units of a FLOP's: its FLOPs and what each step costs beside them."""
        return self.flops + STEP_OVERHEAD_FLOPS * self.config.training.steps


def flops_per_token(config: RunConfig) -> float:
    """6 (N + head) + 12 depth x width x sequence length: forward and backward, attention's two products included.

    A sublayer that the model leaves out costs nothing. Source: PaLM (arXiv 2204.02311), Appendix B, without
    rematerialisation.
    """
    model, training = config.model, config.training
    attention, mlp = model.attention != "none", model.mlp != "none"
    matrices = model.depth * model.width**2 * (4 * attention + 2 * model.mlp_ratio * mlp)
    head = model.width * (config.data.vocabulary_size or 0)
    products = model.depth * model.width * training.sequence_length * attention
    return 6.0 * (matrices + head) + 12.0 * products


def state_bytes(config: RunConfig) -> int:
    """Bytes that a run's parameters and optimizer state take, by abstract evaluation: nothing is allocated.

    Args:
        config: resolved.
    """
    shapes = jax.eval_shape(initial_state, to_leaves(config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


@dataclass(frozen=True)
class Pack:
    """Runs of one structure: lanes of one compiled program."""

    runs: tuple[PlannedRun, ...]

    @property
    def config(self) -> RunConfig:
        """Any of its configs; they differ in leaves only."""
        return self.runs[0].config


def plan_runs(configs: Sequence[RunConfig], scales: Scales) -> tuple[PlannedRun, ...]:
    """Name every run (configs resolved): fingerprint, scale and arm, smallest scale first."""
    flat = [flatten(scientific(config)) for config in configs]
    arms = arm_labels(flat, scales)
    runs = [
        PlannedRun(config, fingerprint(config), scale_name(values, scales), arm)
        for config, values, arm in zip(configs, flat, arms, strict=True)
    ]
    return tuple(sorted(runs, key=lambda run: (run.config.model.n_params, run.arm, *_order(run.config))))


def _order(config: RunConfig) -> tuple[float, int]:
    return config.optimizer.learning_rate, config.seed


def pack_runs(runs: Sequence[PlannedRun]) -> tuple[Pack, ...]:
    """Group runs by the structure of their configs, in the order in which the structures first appear."""
    packs: dict[object, list[PlannedRun]] = {}
    for run in runs:
        packs.setdefault(jax.tree.structure(run.config), []).append(run)
    return tuple(Pack(tuple(members)) for members in packs.values())


def describe(runs: Sequence[PlannedRun]) -> str:
    """The plan as a table: for each scale and arm its size, runs and cost, and what parameters and optimizer take."""
    packs = pack_runs(runs)
    state = {run.fingerprint: size for pack in packs for size in [state_bytes(pack.config)] for run in pack.runs}
    cells: dict[tuple[str, str, int], list[PlannedRun]] = {}
    for run in runs:
        cells.setdefault((run.scale, run.arm, run.config.training.steps), []).append(run)
    wide = max(30, *(len(run.arm) for run in runs)) + 2
    columns = f"{'N':>14}{'runs':>6}{'steps':>8}{'tokens each':>16}{'FLOPs each':>12}{'state each':>12}"
    lines = [f"{'scale':<14}{'arm':<{wide}}{columns}"]
    for (scale, arm, steps), members in cells.items():
        first = members[0]
        lines.append(
            f"{scale:<14}{arm:<{wide}}{first.config.model.n_params:>14,}{len(members):>6}{steps:>8}"
            f"{first.config.tokens:>16,}{first.flops:>12.2e}{_bytes(state[first.fingerprint]):>12}"
        )
    total = sum(run.flops for run in runs)
    tokens = sum(run.config.tokens for run in runs)
    parts = [counted(len(runs), "run"), counted(len(packs), "program"), f"{tokens:,} tokens", f"{total:.2e} FLOPs"]
    lines.append(", ".join(parts))
    return "\n".join(lines)


def _bytes(count: float) -> str:
    """A number of bytes to three digits: 1.18 MB, 58.1 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
