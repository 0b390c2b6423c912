"""Two responses drawn uniformly: the control."""

from typing import ClassVar, Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import CandidateScores, PairIndices, PairRule, best, without


class RandomPair(PairRule):
    """i ≠ j uniform."""

    needs_scores: ClassVar[bool] = False

    kind: Literal["random"] = "random"

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        draw = rng.random(grid.present.shape)
        first = best(draw, grid.present, rng)
        return PairIndices(first, best(draw, without(grid.present, first), rng))
