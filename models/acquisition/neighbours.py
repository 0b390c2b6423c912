"""Nearest neighbours and clusters of vectors by FAISS, in memory linear in the number of rows."""

from typing import NamedTuple

import numpy as np

from models.core.arrays import Float32Array, FloatArray, IntArray

_ITERATIONS = 20


class Neighbours(NamedTuple):
    """Euclidean distances and row numbers of each query's nearest rows, nearest first; both of shape (queries, k)."""

    distances: FloatArray
    rows: IntArray


def nearest(queries: Float32Array, rows: Float32Array, k: int) -> Neighbours:
    """Return the k exact nearest `rows` of each query."""
    import faiss

    squared, found = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(rows), k)
    return Neighbours(np.sqrt(np.maximum(squared, 0.0, dtype=np.float64)), np.asarray(found, dtype=np.int64))


def neighbour_distances(rows: Float32Array, k: int) -> FloatArray:
    """Return each row's distances to its k nearest other rows, shape (N, k); needs k < N."""
    # The row itself comes first, up to rounding; of exact duplicates one stands for it.
    return nearest(rows, rows, k + 1).distances[:, 1:]


def clusters(rows: Float32Array, count: int, rng: np.random.Generator) -> IntArray:
    """Return the k-means cluster of each row, 0 … count − 1; needs count ≤ N. Empty clusters may remain."""
    import faiss

    means = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=_ITERATIONS,
        seed=int(rng.integers(2**31 - 1)),
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, len(rows) // count + 1),
    )
    means.train(np.ascontiguousarray(rows))
    return nearest(rows, np.asarray(means.centroids), 1).rows[:, 0]
