"""A likely best response against the one whose preference with it is most open."""

from typing import Literal

import numpy as np

from models.acquisition.pair_rules.base import Grid, Named, PairRule, Reach, at, best, openness, without


class InfoGain(PairRule):
    """i by Thompson sampling; j = argmax_{j≠i} σ(u_i − l_j) − σ(l_i − u_j)."""

    kind: Literal["infogain"] = "infogain"
    beta: Reach = 1.0

    def name(self, grid: Grid, rng: np.random.Generator) -> Named:  # noqa: D102
        mean, reach = grid.mean, self.beta * grid.std
        first = best(grid.drawn(rng), grid.present, rng)
        interval = openness(at(mean, first) - mean, at(reach, first) + reach)
        return Named(first, best(interval, without(grid.present, first), rng))
