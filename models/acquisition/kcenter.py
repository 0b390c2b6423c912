"""Exact farthest-first traversal (greedy k-center, 1708.00489 Algorithm 1) over vectors on disk or in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.core.arrays import BoolArray, Float32Array, FloatArray, IntArray

_WORKING_SET = 512
_CHUNK = 65_536


def farthest_first(
    vectors: Float32Array,
    k: int,
    *,
    labelled: Sequence[int] = (),
    rng: np.random.Generator,
) -> list[int]:
    """Return k row numbers: each the row farthest from the labelled rows and those picked before it (1708.00489, Alg. 1).

    `vectors` has shape (N, d), float32; it may be a memory map. Without labelled rows the first pick is uniform. The
    radius is at most twice the optimum's. O(N) extra memory. Raises ConfigError if fewer than k rows are free, if a labelled
    row is none of them, or if a vector is not finite.
    """
    centres = np.asarray(labelled, dtype=np.int64)
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    if len(outside := centres[(centres < 0) | (centres >= len(vectors))]):
        raise ValueError(f"labelled row {outside[0]} is outside the pool of {len(vectors)} rows")
    picked = traverse(vectors, k, centres=centres, banned=None, rng=rng)
    return [int(row) for row in picked.rows]


class Traversal(NamedTuple):
    """Rows in the order picked, and the distance of each to its nearest centre when it was picked."""

    rows: IntArray
    distances: FloatArray


def traverse(
    vectors: Float32Array,
    k: int,
    *,
    centres: IntArray,
    banned: BoolArray | None,
    rng: np.random.Generator,
) -> Traversal:
    """Farthest-first traversal from the rows `centres`, never picking a `banned` row.

    Distances to the nearest centre only fall, so a stale one is an upper bound. Each step refreshes the few hundred
    largest bounds against the centres added since (one FAISS search), then picks among those rows alone while their best
    exceeds every bound outside: the picks are those of the naive algorithm, most rows are rarely touched.
    """
    size = len(vectors)
    free = np.ones(size, dtype=bool) if banned is None else ~banned
    free[centres] = False
    if k > free.sum():
        raise ValueError(f"k must be at most the {int(free.sum())} rows that are free, got {k}")
    if k == 0:
        return Traversal(np.array([], dtype=np.int64), np.array([]))
    picked: list[int] = []
    distances: list[float] = []
    if not len(centres):
        first = int(rng.choice(np.flatnonzero(free)))
        picked, distances, free[first] = [first], [float("inf")], False
        centres = np.array([first])
    bounds = _Bounds(vectors, centres, free)
    while len(picked) < k:
        rows, outside = bounds.working_set()
        for row, distance in bounds.pick_within(rows, outside, k - len(picked)):
            picked.append(row)
            distances.append(distance)
    return Traversal(np.array(picked, dtype=np.int64), np.array(distances))


class _Bounds:
    """Per-row upper bounds on the squared distance to the nearest centre; −1 for rows that may not be picked."""

    def __init__(self, vectors: Float32Array, centres: IntArray, free: BoolArray) -> None:
        self.vectors = vectors
        self.centres = np.ascontiguousarray(vectors[centres])
        self.count = len(centres)
        self.fresh = np.full(len(vectors), self.count)  # the bound covers this many centres
        self.bound = np.empty(len(vectors), dtype=np.float32)
        for begin in range(0, len(vectors), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            rows = np.ascontiguousarray(vectors[chunk])
            self.bound[chunk] = _nearest(rows, self.centres)
            squares = np.einsum("nd,nd->n", rows, rows)  # a sum over what is not finite is not finite
            if not np.isfinite(squares).all():
                raise ValueError(f"vector {begin + int(np.flatnonzero(~np.isfinite(squares))[0])} is not finite")
        self.bound[~free] = -1.0

    def working_set(self) -> tuple[IntArray, float]:
        """Return the rows of largest bound, made exact, and the largest bound of all the others."""
        size = min(_WORKING_SET, len(self.bound))
        if size == len(self.bound):
            rows, outside = np.arange(size), -1.0
        else:
            largest = np.argpartition(-self.bound, size)
            rows, outside = np.sort(largest[:size]), float(self.bound[largest[size]])
        rows = rows[self.bound[rows] >= 0]
        stale = rows[self.fresh[rows] < self.count]
        if len(stale):
            since = int(self.fresh[stale].min())
            new = _nearest(np.ascontiguousarray(self.vectors[stale]), self.centres[since : self.count])
            self.bound[stale] = np.minimum(self.bound[stale], new)
            self.fresh[stale] = self.count
        return rows, outside

    def pick_within(self, rows: IntArray, outside: float, most: int) -> list[tuple[int, float]]:
        """Pick greedily among `rows` while the best of them is certainly the best of all."""
        block = np.ascontiguousarray(self.vectors[rows])
        squares = np.einsum("ij,ij->i", block, block)
        bound = self.bound[rows]
        picks: list[tuple[int, float]] = []
        while len(picks) < most:
            best = int(bound.argmax())
            if bound[best] < 0 or bound[best] < outside:
                break
            picks.append((int(rows[best]), float(np.sqrt(bound[best]))))
            distance = squares + squares[best] - 2.0 * (block @ block[best])
            np.minimum(bound, np.maximum(distance, 0.0), out=bound, where=bound >= 0)
            bound[best] = -1.0
            self._add(block[best])
        self.bound[rows] = bound
        self.fresh[rows] = self.count
        return picks

    def _add(self, centre: Float32Array) -> None:
        if self.count == len(self.centres):
            self.centres = np.concatenate(
                [self.centres, np.empty_like(self.centres, shape=(self.count + 64, len(centre)))]
            )
        self.centres[self.count] = centre
        self.count += 1


def _nearest(rows: Float32Array, centres: Float32Array) -> Float32Array:
    """Return the squared distance of each row to its nearest centre."""
    import faiss

    squared, _ = faiss.knn(rows, np.ascontiguousarray(centres), 1)
    return np.asarray(np.maximum(squared[:, 0], 0.0), dtype=np.float32)
