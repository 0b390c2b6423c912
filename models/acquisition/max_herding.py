"""MaxHerding: query responses that, with the labelled ones, cover most of the pool by a kernel."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.core.arrays import Float32Array, FloatArray, IntArray

_WORKING_SET = 256
_CHUNK = 1024


class MaxHerding(Acquisition):
    """argmax_x Σ_x' max(k(x, x') − max_{s∈S} k(s, x'), 0), k the Gaussian kernel (2407.12212, eq. 4).

    x' runs over `reference` tuples of the pool drawn at random (all of them in a smaller pool). The bandwidth is the median
    distance among a sample, times `width`.
    """

    kind: Literal["max_herding"] = "max_herding"
    width: PositiveFloat = Field(1.0, description="Bandwidth of the kernel, as a multiple of the median distance.")
    reference: PositiveInt = Field(4096, description="Responses drawn to estimate the coverage.")

    @property
    @override
    def needs(self) -> Needs:
        return Needs(view="evaluation")

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        everything, labelled = pool.with_anchors()
        vectors, known = np.asarray(everything[: len(pool.ids)]), everything[labelled]
        sample = np.sort(rng.permutation(len(vectors))[: self.reference])
        kernel = _Kernel(np.ascontiguousarray(vectors[sample]), self.width)
        covered = np.zeros(len(sample), dtype=np.float32)
        for begin in range(0, len(known), _CHUNK):
            covered = np.maximum(covered, kernel(known[begin : begin + _CHUNK]).max(axis=0))
        rows, gains = _lazy_greedy(vectors, np.flatnonzero(~pool.unavailable), kernel, covered, count)
        return SelectedRows(rows, gains, {"covered": gains / len(sample)})


class _Kernel:
    """k(x, x') = exp(−‖x − x'‖² / 2h²) against fixed reference rows."""

    def __init__(self, reference: Float32Array, width: float) -> None:
        self.reference = reference
        self.squares = np.einsum("nd,nd->n", reference, reference)
        some = reference[:512]
        distances = np.sqrt(self._squared(some))
        positive = distances[distances > 1e-6]
        self.bandwidth = width * float(np.median(positive)) if len(positive) else 1.0

    def __call__(self, rows: Float32Array) -> Float32Array:
        return np.asarray(np.exp(self._squared(rows) / (-2.0 * self.bandwidth**2)), dtype=np.float32)

    def _squared(self, rows: Float32Array) -> Float32Array:
        squares = np.einsum("nd,nd->n", rows, rows)
        return np.asarray(np.maximum(squares[:, None] + self.squares - 2.0 * rows @ self.reference.T, 0.0))


def _lazy_greedy(
    vectors: Float32Array, free: IntArray, kernel: _Kernel, covered: Float32Array, count: int
) -> tuple[IntArray, FloatArray]:
    """Greedy maximisation; the gain only falls as picks are added, so that a stale one is an upper bound."""
    bound = np.concatenate(
        [
            np.maximum(kernel(vectors[free[begin : begin + _CHUNK]]) - covered, 0.0).sum(axis=1, dtype=np.float64)
            for begin in range(0, len(free), _CHUNK)
        ]
    )
    rows, gains = np.empty(count, dtype=np.int64), np.empty(count)
    place = 0
    while place < count:
        inside = np.sort(np.argsort(-bound, kind="stable")[:_WORKING_SET])
        outside = np.delete(bound, inside).max(initial=-1.0)
        block = kernel(vectors[free[inside]])
        live = bound[inside] >= 0
        while place < count:
            gain = np.where(live, np.maximum(block - covered, 0.0).sum(axis=1, dtype=np.float64), -1.0)
            best = int(gain.argmax())
            if gain[best] < outside or not live.any():
                break
            rows[place], gains[place] = free[inside[best]], gain[best]
            covered = np.maximum(covered, block[best])
            live[best] = False
            place += 1
        bound[inside] = np.where(live, np.maximum(block - covered, 0.0).sum(axis=1, dtype=np.float64), -1.0)
    return rows, gains
