"""Synthetic sweeps whose truth is known: what the statistics must find again.

With x = ln LR, n = ln(N / N_REFERENCE) and every `..._exponent` a power of N, a run of an arm ends at

    loss = bowl + (plateau - bowl) * sigmoid((x - ln edge) / edge_width) + noise,
    bowl = min(floor + curvature * (x - ln best)^2, plateau),        plateau = floor + jump,

a parabola around the best LR that gives way to a plateau above the edge of stability. The edge moves from seed to seed,
by a normal deviation in ln LR. A run above `diverged_above` times its edge ends with a non-finite loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import expit

from stability.analysis import UNSTABLE_EXCESS, Cell, sensitivity_of
from stability.analysis.load import COLUMNS

N_REFERENCE = 1e5
LEARNING_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
N_PARAMS = (25_000, 100_000, 400_000, 1_600_000)


@dataclass(frozen=True)
class Arm:
    """The truth about one arm. Losses in nats per token; `best` and `edge` are LRs at N_REFERENCE parameters.

    Attributes:
        floor: least loss; floor_exponent: its power of N.
        best: bottom of the bowl; curvature: nats per squared unit of ln LR.
        edge: where the loss is half way up to the plateau; edge_width: of that rise, in ln LR; edge_jitter: standard
            deviation over seeds of ln edge.
        jump: height of the plateau above the floor; jump_exponent: its power of N.
        diverged_above: multiple of the edge beyond which runs diverge.
        loss_initial: l0; None leaves it unknown.
        logit: ln of the max attention logit at N_REFERENCE and LR 1, and its slopes in ln N and ln LR.
        logit_noise: standard deviation of that logarithm.
    """

    floor: float = 1.8
    floor_exponent: float = -0.05
    best: float = 0.01
    best_exponent: float = 0.0
    curvature: float = 0.04
    edge: float = 0.2
    edge_exponent: float = -0.5
    edge_width: float = 0.1
    edge_jitter: float = 0.1
    jump: float = 1.0
    jump_exponent: float = 0.0
    diverged_above: float = np.inf
    loss_initial: float | None = 6.0
    logit: float = 10.0
    logit_slope_n_params: float = 0.8
    logit_slope_learning_rate: float = 1.2
    logit_noise: float = 0.15


def noise_free_loss(
    arm: Arm,
    learning_rates: Float[np.ndarray, "*runs"],
    n_params: float | Float[np.ndarray, "*runs"],
    log_shift: float | Float[np.ndarray, "*runs"] = 0.0,
) -> Float[np.ndarray, "*runs"]:
    """The loss of an arm without noise, and with its edge moved by `log_shift` in ln LR."""
    x, size = np.log(learning_rates), np.asarray(n_params, float) / N_REFERENCE
    floor = arm.floor * size**arm.floor_exponent
    plateau = floor + arm.jump * size**arm.jump_exponent
    bowl = np.minimum(floor + arm.curvature * (x - np.log(arm.best * size**arm.best_exponent)) ** 2, plateau)
    above = expit((x - np.log(arm.edge * size**arm.edge_exponent) - log_shift) / arm.edge_width)
    return bowl + (plateau - bowl) * above


def world(
    rng: np.random.Generator,
    *,
    n_params: Sequence[int] = N_PARAMS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seeds: int = 3,
    arms: Mapping[str, Arm] | None = None,
    noise: float = 0.03,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A table of runs and the truth about them.

    Args:
        rng: makes the noise.
        n_params: sizes N; the scales are called s0, s1 and so on.
        learning_rates: the grid, which all arms, scales and seeds share.
        seeds: runs of each cell at each LR.
        arms: by label; one arm `default` when None.
        noise: standard deviation of a run's final loss.

    Returns:
        The table, with the columns of `COLUMNS` and two quantities: `attention_logit_noise_free`, and `output_rms`,
        which the LR sets and N does not: LR^0.3, with 2 % of noise.
        The truth, a row a cell: arm, scale, n_params, the three sensitivities by name (of the noise-free curve on this
        grid), best_learning_rate (the bottom of the noise-free curve), edge, and learning_rate_unstable, where the
        noise-free curve rises UNSTABLE_EXCESS above its bottom (null where it does not below a hundred times the grid).
    """
    arms = {"default": Arm()} if arms is None else arms
    parts = [_runs(rng, name, arm, n_params, learning_rates, seeds, noise) for name, arm in arms.items()]
    table = pl.concat(parts).with_row_index("row").with_columns(fingerprint=pl.format("run{}", "row")).drop("row")
    truths = [
        {"arm": name, "scale": f"s{index}", "n_params": size, **_truth(arm, size, tuple(learning_rates))}
        for name, arm in arms.items()
        for index, size in enumerate(n_params)
    ]
    return table.select(*COLUMNS, pl.exclude(*COLUMNS)), pl.DataFrame(truths)


def cell_of(
    rng: np.random.Generator,
    arm: Arm,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    n_params: int = int(N_REFERENCE),
    seeds: int = 3,
    noise: float = 0.03,
) -> Cell:
    """One cell of such a world without the detour by a table, for thousands of repetitions. No run of it diverges."""
    rates = np.asarray(learning_rates, float)
    shift = arm.edge_jitter * rng.normal(size=(seeds, 1))
    losses = noise_free_loss(arm, rates[None], n_params, shift) + noise * rng.normal(size=(seeds, len(rates)))
    initial = np.nan if arm.loss_initial is None else arm.loss_initial
    return Cell(
        arm="default",
        scale="s0",
        n_params=n_params,
        learning_rates=rates,
        losses=losses,
        diverged=np.zeros(losses.shape, bool),
        losses_initial=np.full(seeds, initial),
        left_out=(),
        seeds=tuple((seed, seed) for seed in range(seeds)),
    )


def _runs(
    rng: np.random.Generator,
    name: str,
    arm: Arm,
    n_params: Sequence[int],
    learning_rates: Sequence[float],
    seeds: int,
    noise: float,
) -> pl.DataFrame:
    shape = (len(n_params), seeds, len(learning_rates))
    index, seed, rate_index = (axis.ravel() for axis in np.indices(shape))
    rate, size = np.asarray(learning_rates, float)[rate_index], np.asarray(n_params)[index]
    shift = arm.edge_jitter * np.repeat(rng.normal(size=shape[:2]), shape[2])
    loss = noise_free_loss(arm, rate, size, shift) + noise * rng.normal(size=rate.size)
    edge = arm.edge * (size / N_REFERENCE) ** arm.edge_exponent * np.exp(shift)
    blown = rate > arm.diverged_above * edge
    slopes = arm.logit_slope_n_params * np.log(size / N_REFERENCE) + arm.logit_slope_learning_rate * np.log(rate)
    logit = np.exp(arm.logit + slopes)
    logit_observed = logit * np.exp(arm.logit_noise * rng.normal(size=rate.size))
    diverged = blown | (loss > (np.inf if arm.loss_initial is None else arm.loss_initial))
    columns = {
        "fingerprint": pl.Series([""] * rate.size),
        "folder": pl.Series([None] * rate.size, dtype=pl.String),
        "scale": pl.Series([f"s{i}" for i in index.tolist()]),
        "n_params": pl.Series(size, dtype=pl.Int64),
        "arm": pl.Series([name] * rate.size),
        "learning_rate": pl.Series(rate),
        "seed": pl.Series(seed, dtype=pl.Int64),
        "data_seed": pl.Series(seed, dtype=pl.Int64),
        "status": pl.Series(np.where(diverged, "diverged", "finished")),
        "steps": pl.Series([1000] * rate.size, dtype=pl.Int64),
        "loss_initial": pl.Series([arm.loss_initial] * rate.size, dtype=pl.Float64),
        "loss_validation": pl.Series(np.where(blown, np.nan, loss)).fill_nan(None),
        "attention_logit_max": pl.Series(logit_observed),
        "attention_logit_max_final": pl.Series(logit_observed),
        "attention_logit_noise_free": pl.Series(logit),
        "output_rms": pl.Series(rate**0.3 * np.exp(0.02 * rng.normal(size=rate.size))),
    }
    return pl.DataFrame(columns)


@lru_cache
def _truth(arm: Arm, size: int, rates: tuple[float, ...]) -> dict[str, float | None]:
    learning_rates = np.asarray(rates, float)
    edge = arm.edge * (size / N_REFERENCE) ** arm.edge_exponent
    losses = noise_free_loss(arm, learning_rates, size)
    losses = np.where(learning_rates > arm.diverged_above * edge, np.nan, losses)
    fine = np.geomspace(learning_rates.min() / 100, learning_rates.max() * 100, 20_001)
    curve = noise_free_loss(arm, fine, size)
    best = int(curve.argmin())
    unstable = best + np.flatnonzero(curve[best:] > curve[best] + UNSTABLE_EXCESS)
    return {
        **sensitivity_of(learning_rates, losses, arm.loss_initial),
        "best_learning_rate": float(fine[best]),
        "edge": edge,
        "learning_rate_unstable": float(fine[unstable[0]]) if len(unstable) else None,
    }
