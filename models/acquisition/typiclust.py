"""TypiClust: query the most typical response of each cluster without a label; for small budgets."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.neighbours import clusters, neighbour_distances
from models.core.arrays import FloatArray, IntArray


class TypiClust(Acquisition):
    """|L| + b clusters; in the largest one with the fewest labels, the tuple of smallest mean kNN distance (2202.02794)."""

    kind: Literal["typiclust"] = "typiclust"
    neighbours: PositiveInt = Field(
        20, description="k, the nearest neighbours whose mean distance says how typical a response is."
    )

    @property
    @override
    def needs(self) -> Needs:
        return Needs(view="evaluation")

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        vectors, known = pool.with_anchors()
        cluster = clusters(vectors, min(len(vectors), len(known) + count), rng)
        typical = _typicality(vectors, cluster, self.neighbours)[: len(pool.ids)]
        sizes = np.bincount(cluster)
        labels = np.bincount(cluster[known], minlength=len(sizes))
        free = np.flatnonzero(~pool.unavailable)
        queues = [free[cluster[free] == number] for number in range(len(sizes))]
        queues = [queue[np.argsort(-typical[queue], kind="stable")] for queue in queues]
        taken = np.zeros(len(sizes), dtype=np.int64)
        left = np.array([len(queue) for queue in queues])
        rows = np.empty(count, dtype=np.int64)
        of = np.empty(count)
        for place in range(count):
            open_ = np.flatnonzero(taken < left)
            best = open_[np.lexsort((-sizes[open_], labels[open_]))[0]]
            rows[place], of[place] = queues[best][taken[best]], sizes[best]
            taken[best] += 1
            labels[best] += 1
        return SelectedRows(rows, typical[rows], {"typicality": typical[rows], "cluster_size": of})


def _typicality(
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]], cluster: IntArray, neighbours: int
) -> FloatArray:
    """Return −(mean distance to the nearest neighbours of the same cluster); 0 for a cluster of one."""
    typical = np.zeros(len(vectors))
    order = np.argsort(cluster, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        if len(rows) > 1:
            typical[rows] = -neighbour_distances(vectors[rows], min(neighbours, len(rows) - 1)).mean(axis=1)
    return typical
