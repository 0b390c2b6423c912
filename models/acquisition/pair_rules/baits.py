"""BAITS: a likely best response against the one on which the members disagree most."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import CandidateScores, PairIndices, PairRule, best, without


class Baits(PairRule):
    """i by Thompson sampling; j = argmax_{j≠i} Var_e(D^e_ij)."""

    kind: Literal["baits"] = "baits"

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        first = best(grid.thompson_sample(rng), grid.present, rng)
        rows = np.arange(len(first))
        chosen = grid.scores[:, rows, first]
        variance = (chosen[:, :, None] - grid.scores).var(axis=0)
        return PairIndices(first, best(variance, without(grid.present, first), rng))
