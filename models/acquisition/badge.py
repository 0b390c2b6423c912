"""BADGE: query pairs with large and diverse loss gradients."""

from typing import ClassVar, Literal

import numpy as np
from typing_extensions import override

from models.acquisition.base import Needs, SelectedRows
from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature


class Badge(PairAcquisition):
    """k-means++ on g = (p̄ − 1[p̄ > ½]) δφ, the Bradley–Terry gradient at the likelier outcome (1906.03671, adapted).

    The first pick is the largest gradient; each next one is drawn with probability proportional to its squared distance
    to the nearest gradient picked.
    """

    ranks_by: ClassVar[Needs] = Needs(view="evaluation", scores=True)

    kind: Literal["badge"] = "badge"
    temperature: Temperature = 1.0

    @override
    def rank(self, pairs: Pairs, queries: int, rng: np.random.Generator) -> SelectedRows:
        count = min(queries, len(pairs))
        if not len(pairs):
            return SelectedRows(np.array([], dtype=np.int64), np.array([]))
        preference = pairs.preference(self.temperature).mean(axis=0)
        gradient = (preference - (preference > 0.5))[:, None] * pairs.direction
        squares = np.einsum("cd,cd->c", gradient, gradient)
        nearest, free = squares.copy(), np.ones(len(pairs), dtype=bool)
        rows, utilities = np.empty(count, dtype=np.int64), np.empty(count)
        for place in range(count):
            weight = np.where(free, nearest, 0.0)
            if place == 0:
                pick = int(weight.argmax())
            else:
                uniform = free / free.sum()
                pick = int(rng.choice(len(pairs), p=weight / weight.sum() if weight.sum() > 0 else uniform))
            rows[place], utilities[place], free[pick] = pick, nearest[pick], False
            distance = squares + squares[pick] - 2.0 * (gradient @ gradient[pick])
            nearest = np.maximum(np.minimum(nearest, distance), 0.0)
        components = {"gradient": np.sqrt(squares[rows]), "preference": preference[rows]}
        return SelectedRows(rows, utilities, components)
