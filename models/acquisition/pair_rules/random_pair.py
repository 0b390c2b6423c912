"""Two responses drawn uniformly: the control."""

from typing import ClassVar, Literal

import numpy as np

from models.acquisition.pair_rules.base import Grid, Named, PairRule, best, without


class RandomPair(PairRule):
    """i ≠ j uniform."""

    needs_scores: ClassVar[bool] = False

    kind: Literal["random"] = "random"

    def name(self, grid: Grid, rng: np.random.Generator) -> Named:  # noqa: D102
        draw = rng.random(grid.present.shape)
        first = best(draw, grid.present, rng)
        return Named(first, best(draw, without(grid.present, first), rng))
