"""DeltaUCB: the pair whose score difference has the largest upper confidence bound."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import Beta, CandidateScores, PairIndices, PairRule, at, best, without


class DeltaUcb(PairRule):
    """argmax_{i≠j} u_i − l_j: the pair whose difference could be largest."""

    kind: Literal["delta_ucb"] = "delta_ucb"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, reach = grid.mean, self.beta * grid.std
        upper, lower = mean + reach, mean - reach
        # The optimum takes the best u or the best −l; where both are one response, the better of the two ways out.
        first, second = best(upper, grid.present, rng), best(-lower, grid.present, rng)
        other_first = best(upper, without(grid.present, second), rng)
        other_second = best(-lower, without(grid.present, first), rng)
        keep_first = at(upper, first) - at(lower, other_second) >= at(upper, other_first) - at(lower, second)
        clash = first == second
        return PairIndices(
            np.where(clash & ~keep_first[:, 0], other_first, first),
            np.where(clash & keep_first[:, 0], other_second, second),
        )
