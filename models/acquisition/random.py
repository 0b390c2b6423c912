"""Uniform sampling of responses: the baseline."""

from typing import Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from models.acquisition.base import Acquisition, Pool
from models.core.arrays import FloatArray


class Random(Acquisition):
    """Ask about tuples drawn uniformly without replacement; `stratified` takes one of each prompt first."""

    kind: Literal["random"] = "random"
    stratified: bool = Field(False, description="Whether one response of each prompt comes first.")

    @override
    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        draw = rng.random(len(pool.ids))
        if not self.stratified:
            return draw
        utility = np.empty(len(pool.ids))
        for prompt in np.unique(pool.prompt):
            rows = np.flatnonzero((pool.prompt == prompt) & ~pool.unavailable)
            turn = np.argsort(np.argsort(-draw[rows]))  # 0 for the prompt's first tuple, 1 for its second, …
            utility[rows] = draw[rows] - turn
        return np.where(pool.unavailable, -np.inf, utility)
