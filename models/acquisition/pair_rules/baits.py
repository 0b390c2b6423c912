"""A likely best response against the one about which the members disagree most."""

from typing import Literal

import numpy as np

from models.acquisition.pair_rules.base import Grid, Named, PairRule, best, without


class Baits(PairRule):
    """i by Thompson sampling; j = argmax_{j≠i} Var_e(D^e_ij)."""

    kind: Literal["baits"] = "baits"

    def name(self, grid: Grid, rng: np.random.Generator) -> Named:  # noqa: D102
        first = best(grid.drawn(rng), grid.present, rng)
        rows = np.arange(len(first))
        chosen = grid.scores[:, rows, first]
        variance = (chosen[:, :, None] - grid.scores).var(axis=0)
        return Named(first, best(variance, without(grid.present, first), rng))
