"""Double reversed Thompson sampling: a response that may be the best against one that may be the worst."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import Beta, CandidateScores, PairIndices, PairRule, best, without


class DoubleReversedThompson(PairRule):
    """i as in `dts`; j = argmax −μ + βzs, j ≠ i."""

    kind: Literal["drts"] = "drts"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, std = grid.mean, self.beta * grid.std
        first = best(mean + rng.uniform(-1.0, 1.0, mean.shape) * std, grid.present, rng)
        return PairIndices(
            first, best(-mean + rng.uniform(-1.0, 1.0, mean.shape) * std, without(grid.present, first), rng)
        )
