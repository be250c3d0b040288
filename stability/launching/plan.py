"""Runs to packs and groups: which runs share a program, in which order they train, and how much there is to compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from stability.arms import Scales, arm_labels, scale_name
from stability.config import RunConfig, fingerprint, scientific
from stability.tracking.record import flatten

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


@dataclass(frozen=True)
class Pack:
    """Runs of one structure: lanes of one compiled program."""

    runs: tuple[PlannedRun, ...]

    @property
    def config(self) -> RunConfig:
        """Any of its configs; they differ in leaves only."""
        return self.runs[0].config

    @property
    def structure(self) -> object:
        """What its configs share, and with it their program."""
        return jax.tree.structure(self.config)


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


FULL_ENOUGH = 0.75
"""Groups of one size, and so one program, are worth up to a third more of them: a device so full is busy."""


def group_sizes(runs: int, most: int) -> tuple[int, ...]:
    """How many lanes each group of a pack gets, if at most `most` fit together.

    Another number of lanes is another program, so sizes are as equal as they can be. If a single size divides the runs
    and fills three quarters of what fits, there is one program (35 runs, at most 9: five groups of 7); else as few
    groups as there can be, whose sizes differ by one: two programs at most (10 runs, at most 4: 4 + 3 + 3).

    Args:
        runs: of the pack, at least 1.
        most: lanes that fit, at least 1.
    """
    for size in range(min(runs, most), 0, -1):
        if runs % size == 0 and (size >= FULL_ENOUGH * most or size == runs):
            return (size,) * (runs // size)
    groups = -(-runs // most)
    small, larger = divmod(runs, groups)
    return (small + 1,) * larger + (small,) * (groups - larger)
