"""InfoGain: a likely best response against the one with the widest preference interval."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import (
    Beta,
    CandidateScores,
    PairIndices,
    PairRule,
    at,
    best,
    preference_interval_width,
    without,
)


class InfoGain(PairRule):
    """i by Thompson sampling; j = argmax_{j≠i} σ(u_i − l_j) − σ(l_i − u_j)."""

    kind: Literal["infogain"] = "infogain"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, reach = grid.mean, self.beta * grid.std
        first = best(grid.thompson_sample(rng), grid.present, rng)
        interval = preference_interval_width(at(mean, first) - mean, at(reach, first) + reach)
        return PairIndices(first, best(interval, without(grid.present, first), rng))
