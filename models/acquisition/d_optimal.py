"""Optimal design: ask about the pairs in whose direction the evaluator knows least."""

from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from models.acquisition.base import Chosen, Floats, Needs
from models.acquisition.pairwise import PairAcquisition, Pairs


class DOptimal(PairAcquisition):
    """argmax ‖δφ‖_{V⁻¹}, V = λI + Σ w δφ δφᵀ over what is labelled or picked (2402.10500; 2503.01076).

    With w = 1 each pick is the one that raises log det V most. `bernoulli` weighs a pair by p̄(1 − p̄): an outcome that
    is certain teaches nothing. V⁻¹ is updated by Sherman–Morrison after each pick, O(C d) for C candidates.
    """

    kind: Literal["d_optimal"] = "d_optimal"
    weight: Literal["one", "bernoulli"] = "one"
    ridge: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0

    @property
    def needs(self) -> Needs:  # noqa: D102
        return Needs(view="evaluation", scores=self.weight == "bernoulli" or self.pairs.needs_scores)

    def rank(self, pairs: Pairs, count: int, rng: np.random.Generator) -> Chosen:  # noqa: D102
        direction = pairs.direction
        weight = self._weight(pairs)
        inverse = np.linalg.inv(self.ridge * np.eye(direction.shape[1]) + _known(pairs))
        width = np.einsum("cd,de,ce->c", direction, inverse, direction, optimize=True)
        tie, free = rng.random(len(pairs)), np.ones(len(pairs), dtype=bool)
        rows, utilities = np.empty(count, dtype=np.int64), np.empty(count)
        for place in range(count):
            widest = np.flatnonzero(free & (width == width[free].max()))
            pick = widest[tie[widest].argmax()]
            rows[place], utilities[place], free[pick] = pick, np.sqrt(max(width[pick], 0.0)), False
            update = inverse @ direction[pick]
            scale = weight[pick] / (1.0 + weight[pick] * width[pick])
            inverse -= scale * np.outer(update, update)
            width = np.maximum(width - scale * (direction @ update) ** 2, 0.0)
        return Chosen(rows, utilities, {"width": utilities, "weight": weight[rows]})

    def _weight(self, pairs: Pairs) -> Floats:
        if self.weight == "one":
            return np.ones(len(pairs))
        preference = pairs.preference(self.temperature).mean(axis=0)
        return np.asarray(preference * (1.0 - preference))


def _known(pairs: Pairs) -> Floats:
    """Return Σ δφ δφᵀ over neighbouring labelled responses of the same prompt, shape (d, d)."""
    pool = pairs.pool
    assert pool.vectors is not None  # noqa: S101 - select() has checked it
    rows = np.flatnonzero(pool.labelled)
    rows = rows[np.argsort(pool.prompt[rows], kind="stable")]
    same = pool.prompt[rows[1:]] == pool.prompt[rows[:-1]]
    known = np.asarray(pool.vectors[rows[1:][same]] - pool.vectors[rows[:-1][same]], dtype=np.float64)
    return np.asarray(known.T @ known)
