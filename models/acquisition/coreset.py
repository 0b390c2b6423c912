"""Coreset strategies: k-center coverage of the pool in the instruction or the evaluation view (2407.02119)."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.kcenter import traverse
from models.core.arrays import BoolArray


def cover(pool: Pool, banned: BoolArray, count: int, rng: np.random.Generator) -> SelectedRows:
    """Return `count` rows, none of them banned, by k-center from everything labelled, earlier rounds included."""
    vectors, centres = pool.with_anchors()
    banned = np.concatenate([banned, np.zeros(len(vectors) - len(pool.ids), dtype=bool)])
    found = traverse(np.ascontiguousarray(vectors), count, centres=centres, banned=banned, rng=rng)
    return SelectedRows(found.rows, found.distances, {"distance": found.distances})


class CoresetIFT(Acquisition):
    """Cover the instructions: k-center in the space of x (2407.02119)."""

    kind: Literal["coreset_ift"] = "coreset_ift"

    @property
    @override
    def needs(self) -> Needs:
        return Needs(view="instruction")

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        return cover(pool, pool.unavailable, count, rng)


class CoresetEFT(Acquisition):
    """Cover what the evaluator will be asked: k-center in the space of rubric + x + y (2407.02119)."""

    kind: Literal["coreset_eft"] = "coreset_eft"

    @property
    @override
    def needs(self) -> Needs:
        return Needs(view="evaluation")

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        return cover(pool, pool.unavailable, count, rng)
