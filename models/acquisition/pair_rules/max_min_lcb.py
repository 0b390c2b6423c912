"""MaxMinLCB: the response with the best worst-case lower bound, against its strongest rival."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import Beta, CandidateScores, PairIndices, PairRule, at, best, without


class MaxMinLcb(PairRule):
    """i = argmax_i min_{j≠i} (μ_i − μ_j) − β(s_i + s_j), j the minimiser."""

    kind: Literal["max_min_lcb"] = "max_min_lcb"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, reach = grid.mean, self.beta * grid.std
        upper, lower = mean + reach, mean - reach
        # min_j (l_i − u_j) is reached at the largest u_j: the best of all, or the second best for that one itself.
        top = best(upper, grid.present, rng)
        runner_up = best(upper, without(grid.present, top), rng)
        rival = np.where(np.arange(mean.shape[1]) == top[:, None], at(upper, runner_up), at(upper, top))
        first = best(lower - rival, grid.present, rng)
        return PairIndices(first, np.where(first == top, runner_up, top))
