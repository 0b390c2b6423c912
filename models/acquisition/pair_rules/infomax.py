"""InfoMax: the pair with the widest preference interval."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import (
    Beta,
    CandidateScores,
    PairIndices,
    PairRule,
    best,
    preference_interval_width,
)

_CELLS = 4_000_000  # of the P × M × M table at once


class InfoMax(PairRule):
    """argmax_{i≠j} σ(u_i − l_j) − σ(l_i − u_j): the widest interval of a preference's probability."""

    kind: Literal["infomax"] = "infomax"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, reach = grid.mean, self.beta * grid.std
        prompts, columns = mean.shape
        # The term is the same for (i, j) and (j, i): half the table will do.
        first, second = np.triu_indices(columns, k=1)
        found = np.empty(prompts, dtype=np.int64)
        step = max(1, _CELLS // len(first))
        for begin in range(0, prompts, step):
            chunk = slice(begin, begin + step)
            present = grid.present[chunk][:, first] & grid.present[chunk][:, second]
            gap = mean[chunk][:, first] - mean[chunk][:, second]
            width = reach[chunk][:, first] + reach[chunk][:, second]
            found[chunk] = best(preference_interval_width(gap, width), present, rng)
        return PairIndices(first[found], second[found])
