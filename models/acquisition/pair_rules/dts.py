"""Double Thompson sampling: two responses that may each be the best."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pair_rules.base import Beta, CandidateScores, PairIndices, PairRule, best, without

_TRIES = 30


class DoubleThompson(PairRule):
    """i = argmax μ + βzs, z ~ U(−1, 1) per response; the second draw is repeated until j ≠ i, at most 30 times.

    After 30 tries j is uniform among the others (Wu and Liu 2016, in the bounded form of the peers).
    """

    kind: Literal["dts"] = "dts"
    beta: Beta = 1.0

    @override
    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        mean, std = grid.mean, self.beta * grid.std
        first = best(mean + rng.uniform(-1.0, 1.0, mean.shape) * std, grid.present, rng)
        second = best(rng.random(mean.shape), without(grid.present, first), rng)
        left = np.arange(len(mean))
        for _ in range(_TRIES):
            z = rng.uniform(-1.0, 1.0, (len(left), mean.shape[1]))
            draw = best(mean[left] + z * std[left], grid.present[left], rng)
            other = draw != first[left]
            second[left[other]] = draw[other]
            left = left[~other]
            if not len(left):
                break
        return PairIndices(first, second)
