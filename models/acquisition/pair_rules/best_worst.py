"""The best against the worst response by the evaluator's mean."""

from typing import Literal

import numpy as np

from models.acquisition.pair_rules.base import Grid, Named, PairRule, best, without


class BestWorst(PairRule):
    """i = argmax μ, j = argmin μ."""

    kind: Literal["best_worst"] = "best_worst"

    def name(self, grid: Grid, rng: np.random.Generator) -> Named:  # noqa: D102
        first = best(grid.mean, grid.present, rng)
        return Named(first, best(-grid.mean, without(grid.present, first), rng))
