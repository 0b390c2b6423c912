"""The best against the worst response by the evaluator's mean."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import CandidateScores, PairIndices, PairRule, best, without


class BestWorst(PairRule):
    """i = argmax μ, j = argmin μ."""

    kind: Literal["best_worst"] = "best_worst"

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        first = best(grid.mean, grid.present, rng)
        return PairIndices(first, best(-grid.mean, without(grid.present, first), rng))
