"""BAL-PM: query pairs of high epistemic uncertainty at prompts far from those already labelled."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt
from typing_extensions import override

from models.acquisition.bald import information
from models.acquisition.base import Needs, Pool, SelectedRows
from models.acquisition.neighbours import neighbour_distances
from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature
from models.core.arrays import Float32Array, FloatArray, IntArray


class BalPm(PairAcquisition):
    """bald + β Ĥ(x), Ĥ = log(2 D_k(x)) − ψ(n + 1)/d, updated after each pick (2406.10023, eq. 7).

    D_k is the distance from prompt x to its k-th neighbour in the pool, n the number of prompts labelled or picked within
    that distance, d the dimension: where many were asked about already, another one improves less.
    """

    ranks_by: ClassVar[Needs] = Needs(view="instruction", scores=True)

    kind: Literal["bal_pm"] = "bal_pm"
    beta: NonNegativeFloat = Field(1.0, description="β, the weight of the entropy of prompts.")
    neighbours: PositiveInt = Field(13, description="k, the neighbours that a prompt's density is estimated from.")
    temperature: Temperature = 1.0

    @override
    def rank(self, pairs: Pairs, queries: int, rng: np.random.Generator) -> SelectedRows:
        from scipy.special import digamma

        count = min(queries, len(pairs))
        if not len(pairs):
            return SelectedRows(np.array([], dtype=np.int64), np.array([]))
        parts = information(pairs, self.temperature)
        pool = pairs.pool
        assert pool.vectors is not None  # noqa: S101 - select() has checked it
        prompts, reach = _reach(pool, self.neighbours)
        dimensions = pool.vectors.shape[1]
        own = np.searchsorted(prompts, pool.prompt[pairs.first])
        x, reach = np.asarray(pool.vectors[pairs.first]), reach[own]
        near = np.zeros(len(pairs))
        for known in _known(pool):
            near += _within(x, known, reach)
        log_reach = np.log(2.0 * np.maximum(reach, np.finfo(np.float32).tiny))
        tie, free = rng.random(len(pairs)), np.ones(len(pairs), dtype=bool)
        rows, utilities, bonus = np.empty(count, dtype=np.int64), np.empty(count), np.empty(count)
        for place in range(count):
            spread = log_reach - digamma(near + 1.0) / dimensions
            utility = np.where(free, parts["information"] + self.beta * spread, -np.inf)
            top = np.flatnonzero(utility == utility.max())
            pick = top[tie[top].argmax()]
            rows[place], utilities[place], bonus[place], free[pick] = pick, utility[pick], spread[pick], False
            near += _within(x, x[pick], reach)
        return SelectedRows(rows, utilities, {"information": parts["information"][rows], "spread": bonus})


def _reach(pool: Pool, neighbours: int) -> tuple[IntArray, FloatArray]:
    """Return the distinct prompts in order, and D_k of each."""
    assert pool.vectors is not None  # noqa: S101 - select() has checked it
    prompts, first = np.unique(pool.prompt, return_index=True)
    if len(prompts) == 1:
        return prompts, np.ones(1)
    k = min(neighbours, len(prompts) - 1)
    return prompts, neighbour_distances(np.asarray(pool.vectors[first]), k)[:, -1]


def _known(pool: Pool) -> Float32Array:
    """Return one vector per labelled prompt, earlier rounds included."""
    assert pool.vectors is not None  # noqa: S101 - select() has checked it
    labelled = np.flatnonzero(pool.labelled)
    _, first = np.unique(pool.prompt[labelled], return_index=True)
    known = np.asarray(pool.vectors[labelled[first]])
    return known if pool.anchors is None else np.unique(np.concatenate([known, pool.anchors]), axis=0)


def _within(x: Float32Array, point: Float32Array, reach: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(x - point, axis=1) <= reach, dtype=np.float64)
