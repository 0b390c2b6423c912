"""Ask where the evaluator cannot tell a prompt's best and worst responses apart."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveFloat
from scipy.special import expit

from models.acquisition.base import Acquisition, Floats, Pool

# Below every margin's utility (which is at least −½): picked only once every best and worst response is labelled.
_NOT_OF_THE_PAIR = -1.0


class Margin(Acquisition):
    """−|p̄ − ½| of the pair (best, worst) by mean score, p̄ = mean_e σ(D^e / temperature) over ensemble members e."""

    needs_scores: ClassVar[bool] = True

    kind: Literal["margin"] = "margin"
    temperature: PositiveFloat = 1.0

    def utility(self, pool: Pool, rng: np.random.Generator) -> Floats:  # noqa: D102
        assert pool.scores is not None  # noqa: S101 - select() has checked it
        mean = pool.scores.mean(axis=0)
        utility = np.full(len(pool.ids), _NOT_OF_THE_PAIR)
        by_prompt = np.lexsort((mean, pool.prompt))
        starts = np.flatnonzero(np.diff(pool.prompt[by_prompt], prepend=-1))
        ends = np.append(starts[1:], len(by_prompt)) - 1
        worst, best = by_prompt[starts], by_prompt[ends]
        pair = worst != best
        worst, best = worst[pair], best[pair]
        preference = expit((pool.scores[:, best] - pool.scores[:, worst]) / self.temperature).mean(axis=0)
        utility[best] = utility[worst] = -np.abs(preference - 0.5)
        return utility
