"""Made-up worlds in which ln q(N, LR) is known: what `stability.analysis.forecast` must find again."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float

Kind = Literal["linear", "quadratic", "pooled", "saturating"]
KINDS: tuple[Kind, ...] = ("linear", "quadratic", "pooled", "saturating")
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class World:
    """ln q = curve(x, z) + omega d(N) + eta e(N, LR) + noise per seed; a run fails when its ln q passes `threshold`.

    x = ln(N / smallest), z = ln(LR / geometric mean); `slopes` and `curvatures` have one entry for each LR.

    Attributes:
        ceiling: of a saturating world, in ln q above the smallest model's value at the lowest LR; infinite otherwise.
    """

    n_params: tuple[int, ...]
    n_seeds: int
    levels: tuple[float, ...]
    slopes: tuple[float, ...]
    curvatures: tuple[float, ...]
    ceiling: float
    omega: float
    eta: float
    noise: float
    threshold: float

    def curve(self, n_params: float) -> Float[np.ndarray, " K"]:
        """ln q of the mean run at each LR."""
        x = math.log(n_params / self.n_params[0])
        growth = np.array(self.slopes) * x + np.array(self.curvatures) * x**2
        level = np.array(self.levels)
        if math.isinf(self.ceiling):
            return level + growth
        return level + self.ceiling * np.tanh(growth / self.ceiling)

    def one_run(self, generator: np.random.Generator, n_params: float) -> Float[np.ndarray, " K"]:
        """ln q of one further run at each LR of a size that was not trained."""
        cells = self.omega * generator.standard_normal() + self.eta * generator.standard_normal(len(self.levels))
        return self.curve(n_params) + cells + self.noise * generator.standard_normal(len(self.levels))

    def table(self, generator: np.random.Generator) -> pl.DataFrame:
        """The runs, with the quantity `q`; a run that fails ends a nat above the others of its cell."""
        rows = []
        for n in self.n_params:
            common = self.omega * generator.standard_normal() + self.curve(n)
            common = common + self.eta * generator.standard_normal(len(self.levels))
            for seed in range(self.n_seeds):
                values = common + self.noise * generator.standard_normal(len(self.levels))
                for place, (rate, value) in enumerate(zip(LEARNING_RATES, values.tolist(), strict=True)):
                    # Never the lowest LR: a verdict is relative to the best one.
                    failed = place > 0 and value > self.threshold
                    rows.append(
                        {
                            "arm": "default",
                            "scale": f"s{n}",
                            "n_params": n,
                            "learning_rate": rate,
                            "seed": seed,
                            "status": "finished",
                            "loss_initial": 6.0,
                            "loss_validation": 3.0 if failed else 2.0 + 0.01 * place,
                            "q": math.exp(value),
                        }
                    )
        return pl.DataFrame(rows)


def draw_world(generator: np.random.Generator, kind: Kind, scales: int, seeds: int) -> World:
    """Wide ranges: slopes 0 to 1.2 per ln N that grow with LR, noise of a twentieth to four tenths in ln q."""
    ratios = generator.uniform(math.log(2), math.log(4), scales - 1)
    sizes = np.exp(generator.uniform(math.log(5e3), math.log(1e6)) + np.append(0, np.cumsum(ratios)))
    z = np.log(np.array(LEARNING_RATES))
    z = z - z.mean()
    slopes = generator.uniform(0, 1.2) + generator.uniform(0, 0.2) * z
    curvatures = np.zeros(len(z))
    if kind == "quadratic":
        curvatures = generator.uniform(-0.12, 0.12) + generator.uniform(-0.02, 0.02) * z
    if kind == "pooled":
        slopes = slopes + generator.uniform(0.05, 0.25) * generator.standard_normal(len(z))
        curvatures = generator.uniform(-0.08, 0.08) + 0.03 * generator.standard_normal(len(z))
    levels = generator.uniform(0, 2) + generator.uniform(0.2, 1.0) * z + generator.uniform(-0.05, 0.15) * z**2
    world = World(
        n_params=tuple(round(n) for n in sizes),
        n_seeds=seeds,
        levels=tuple(levels.tolist()),
        slopes=tuple(slopes.tolist()),
        curvatures=tuple(curvatures.tolist()),
        ceiling=generator.uniform(2, 5) if kind == "saturating" else math.inf,
        omega=generator.uniform(0, 0.15),
        eta=generator.uniform(0, 0.2),
        noise=generator.uniform(0.05, 0.4),
        threshold=0.0,
    )
    # Somewhere among the values at the largest size, so that some runs fail and some do not.
    largest = np.sort(world.curve(world.n_params[-1]))
    threshold = generator.uniform(largest[1], largest[-1])
    return World(**{**world.__dict__, "threshold": float(threshold)})
