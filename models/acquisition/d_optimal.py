"""D-optimal design: query pairs in the directions that the evaluator knows least."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat
from typing_extensions import override

from models.acquisition.base import Needs, Pool, SelectedRows
from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature
from models.core.arrays import FloatArray


class DOptimal(PairAcquisition):
    """argmax √w ‖δφ‖_{V⁻¹}, V = λI + Σ w δφ δφᵀ over what is labelled or picked (2402.10500; 2503.01076).

    Each pick is the one that raises log det V most: √w ‖δφ‖_{V⁻¹} is largest. w = 1, or p̄(1 − p̄) with `bernoulli`: an
    outcome that is certain trains nothing. Labels of earlier rounds' pools are not in V. V⁻¹ is updated by
    Sherman–Morrison after each pick, O(C d) for C candidates.
    """

    kind: Literal["d_optimal"] = "d_optimal"
    weight: Literal["one", "bernoulli"] = Field(
        "one", description="w, the weight of a pair's information: 1, or p̄(1 − p̄)."
    )
    ridge: PositiveFloat = Field(1.0, description="λ, the ridge of the information matrix.")
    temperature: Temperature = 1.0

    @property
    @override
    def needs(self) -> Needs:
        return Needs(view="evaluation", scores=self.weight == "bernoulli" or self.pairs.needs_scores)

    @override
    def rank(self, pairs: Pairs, queries: int, rng: np.random.Generator) -> SelectedRows:
        count = min(queries, len(pairs))
        direction = pairs.direction
        weight = self._weight(pairs)
        inverse = np.linalg.inv(self.ridge * np.eye(direction.shape[1]) + self._known(pairs.pool))
        width = np.einsum("cd,de,ce->c", direction, inverse, direction, optimize=True)
        tie, free = rng.random(len(pairs)), np.ones(len(pairs), dtype=bool)
        rows, utilities = np.empty(count, dtype=np.int64), np.empty(count)
        for place in range(count):
            gain = weight * width
            widest = np.flatnonzero(free & (gain == gain[free].max()))
            pick = widest[tie[widest].argmax()]
            rows[place], utilities[place], free[pick] = pick, np.sqrt(max(gain[pick], 0.0)), False
            update = inverse @ direction[pick]
            scale = weight[pick] / (1.0 + weight[pick] * width[pick])
            inverse -= scale * np.outer(update, update)
            width = np.maximum(width - scale * (direction @ update) ** 2, 0.0)
        return SelectedRows(rows, utilities, {"width": utilities, "weight": weight[rows]})

    def _weight(self, pairs: Pairs) -> FloatArray:
        if self.weight == "one":
            return np.ones(len(pairs))
        preference = pairs.preference(self.temperature).mean(axis=0)
        return np.asarray(preference * (1.0 - preference))

    def _known(self, pool: Pool) -> FloatArray:
        """Return Σ w δφ δφᵀ over neighbouring labelled responses of the same prompt, shape (d, d)."""
        rows = np.flatnonzero(pool.labelled)
        rows = rows[np.argsort(pool.prompt[rows], kind="stable")]
        same = pool.prompt[rows[1:]] == pool.prompt[rows[:-1]]
        known = Pairs(pool, rows[1:][same], rows[:-1][same])
        return np.asarray((known.direction * self._weight(known)[:, None]).T @ known.direction)
