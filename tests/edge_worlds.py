"""Made-up worlds whose highest stable LR is known: what `stability.analysis.edge_fit` must recover."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

HALF_DECADES = tuple(3e-4 * math.sqrt(10) ** i for i in range(7))
"""The grid of arXiv 2309.14322, evenly spaced."""


@dataclass(frozen=True)
class World:
    """ln edge(N, seed) = intercept + slope x + curvature x^2 + noise z, x = ln(N / reference), on a grid of LRs."""

    intercept: float
    slope: float
    curvature: float
    noise: float
    n_params: tuple[int, ...]
    learning_rates: tuple[float, ...]
    n_seeds: int
    scale_noise: float = 0.0

    @property
    def reference(self) -> float:
        return math.exp(float(np.mean(np.log(self.n_params))))

    def centre(self, n_params: float) -> float:
        """ln edge of the mean seed."""
        x = math.log(n_params / self.reference)
        return self.intercept + self.slope * x + self.curvature * x**2

    def one_edge(self, generator: np.random.Generator, n_params: float) -> float:
        """The edge of a further seed at any size, as an LR."""
        spread = math.hypot(self.noise, self.scale_noise)
        return math.exp(self.centre(n_params) + spread * generator.standard_normal())

    def edges(self, generator: np.random.Generator) -> Float[np.ndarray, "scales seeds"]:
        """The edge of every run's seed, as an LR."""
        centres = np.array([self.centre(n) for n in self.n_params])[:, None]
        shared = self.scale_noise * generator.standard_normal(centres.shape)
        own = self.noise * generator.standard_normal((len(self.n_params), self.n_seeds))
        return np.exp(centres + shared + own)


def draw_world(generator: np.random.Generator, scales: int, seeds: int, *, plain: bool = False) -> World:
    """Wide ranges: slopes of both signs, noise from 5 % of a grid step to a whole one, edges in and off the grid.

    A plain world is a straight line whose scales have nothing in common but that. Of the others half are curved, the
    slope changing by up to 0.9 over a factor of 100 in N, and all have scales that lie off the curve.
    """
    step = generator.uniform(math.log(10) / 4, math.log(10) / 2)
    lowest = math.log(3e-4)
    ratios = generator.uniform(math.log(2), math.log(5), scales - 1)
    sizes = np.exp(generator.uniform(math.log(1e4), math.log(1e7)) + np.append(0, np.cumsum(ratios)))
    return World(
        intercept=lowest + step * generator.uniform(1.5, 5),
        slope=generator.uniform(-1.0, 0.5),
        curvature=0.0 if plain or generator.random() < 0.5 else generator.uniform(-0.1, 0.1),
        noise=generator.uniform(0.05, 0.6),
        n_params=tuple(round(n) for n in sizes),
        learning_rates=tuple(np.exp(lowest + step * np.arange(7)).tolist()),
        n_seeds=seeds,
        scale_noise=0.0 if plain else generator.uniform(0, 0.2),
    )


def brackets_of(
    n_params: Sequence[int],
    edges: Float[np.ndarray, "scales seeds"],
    learning_rates: Sequence[float],
    arm: str = "default",
) -> pl.DataFrame:
    """What a grid shows of known edges, as `stable_edge_brackets` returns it."""
    rows = [
        {"arm": arm, "scale": f"s{n}", "n_params": n, "seed": seed, **_bracket(edge, learning_rates)}
        for n, row in zip(n_params, edges.tolist(), strict=True)
        for seed, edge in enumerate(row)
    ]
    return pl.DataFrame(rows, schema_overrides={"lower": pl.Float64, "upper": pl.Float64})


def _bracket(edge: float, learning_rates: Sequence[float]) -> dict[str, float | None]:
    stable = [rate for rate in learning_rates if rate <= edge]
    unstable = [rate for rate in learning_rates if rate > edge]
    return {"lower": max(stable, default=None), "upper": min(unstable, default=None)}


def runs_of(
    n_params: Sequence[int],
    edges: Float[np.ndarray, "scales seeds"],
    learning_rates: Sequence[float],
    arm: str = "default",
    diverge: bool = True,
) -> pl.DataFrame:
    """A table of runs with these edges: below one the loss is a parabola in ln LR, above it the run diverges.

    With `diverge` false it ends a nat above its best loss instead, like a run whose attention has collapsed.
    """
    return pl.DataFrame(
        list(_rows(n_params, edges, learning_rates, arm, diverge)), schema_overrides={"loss_validation": pl.Float64}
    )


def _rows(
    n_params: Sequence[int],
    edges: Float[np.ndarray, "scales seeds"],
    learning_rates: Sequence[float],
    arm: str,
    diverge: bool,
) -> Iterator[dict[str, object]]:
    for n, row in zip(n_params, edges.tolist(), strict=True):
        for seed, edge in enumerate(row):
            for rate in learning_rates:
                unstable = rate > edge
                under_trained = 0.02 * math.log(edge / rate) ** 2
                yield {
                    "arm": arm,
                    "scale": f"s{n}",
                    "n_params": n,
                    "learning_rate": rate,
                    "seed": seed,
                    "status": "diverged" if unstable and diverge else "finished",
                    "loss_validation": (None if diverge else 4.0) if unstable else 2.0 + under_trained,
                    "loss_initial": 6.0,
                }


def table_of(world: World, generator: np.random.Generator, arm: str = "default") -> pl.DataFrame:
    """The runs of one world."""
    return runs_of(world.n_params, world.edges(generator), world.learning_rates, arm)
