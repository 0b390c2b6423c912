"""What every query strategy does: rank the tuples of a pool by how much an expert's label would teach."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.embedding import View
from models.plugins import Plugin
from models.preference import Pick

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """N tuples (x, y) as a strategy sees them; every array has one entry per tuple.

    `prompt` numbers the tuple's prompt; `unavailable` marks tuples that must not be picked (already asked, or the same
    text as an earlier one); `labelled` those whose labels are known. Optional: `vectors` (N, d); `anchors` (m, d), the
    vectors labelled in earlier rounds; `logprob` and `tokens` of the response under the policy; `scores` (E, N), one
    row per ensemble member of the current evaluator.
    """

    ids: Sequence[str]
    prompt: Rows
    unavailable: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    vectors: NDArray[np.float32] | None = None
    anchors: NDArray[np.float32] | None = None
    logprob: Floats | None = None
    tokens: Rows | None = None
    scores: Floats | None = None

    def take(self, rows: Rows) -> "Pool":
        """Return the pool with only these rows, in this order."""
        ordered = {
            name: None if value is None else value[rows]
            for name, value in (
                ("prompt", self.prompt),
                ("unavailable", self.unavailable),
                ("labelled", self.labelled),
                ("vectors", self.vectors),
                ("logprob", self.logprob),
                ("tokens", self.tokens),
            )
        }
        scores = None if self.scores is None else self.scores[:, rows]
        return replace(self, ids=[self.ids[row] for row in rows], scores=scores, **ordered)  # type: ignore[arg-type]


class Chosen(NamedTuple):
    """Row numbers in the order picked, and the utility of each when it was picked."""

    rows: Rows
    utilities: Floats


class Acquisition(Plugin):
    """A query strategy. Concrete strategies declare `kind` and implement `utility`, or `choose` to pick as a batch."""

    vector_view: ClassVar[View | None] = None
    needs_scores: ClassVar[bool] = False

    def select(self, pool: Pool, budget: int, rng: np.random.Generator) -> list[Pick]:
        """Return min(budget, available) distinct picks, best first.

        The order in which the pool is given does not matter: it is sorted by id first. Raises ValueError naming the
        tuple when an input is not finite.
        """
        if budget < 0:
            raise ValueError(f"budget must not be negative, got {budget}")
        self._check(pool)
        ordered = pool.take(np.array(sorted(range(len(pool.ids)), key=lambda row: pool.ids[row]), dtype=np.int64))
        count = min(budget, int((~ordered.unavailable).sum()))
        if count == 0:
            return []
        chosen = self.choose(ordered, count, rng)
        return [
            Pick(response_id=ordered.ids[row], utility=float(utility))
            for row, utility in zip(chosen.rows, chosen.utilities, strict=True)
        ]

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> Chosen:
        """Return `count` available rows; by default those of highest utility, ties broken at random."""
        utility = np.where(pool.unavailable, -np.inf, self.utility(pool, rng))
        order = np.lexsort((rng.random(len(utility)), -utility))[:count]
        return Chosen(order, utility[order])

    def utility(self, pool: Pool, rng: np.random.Generator) -> Floats:
        """Return how much each tuple's label is wanted, shape (N,)."""
        raise NotImplementedError

    def _check(self, pool: Pool) -> None:
        for name in ("vectors", "logprob", "scores"):
            values = getattr(pool, name)
            if values is None or np.isfinite(values).all():
                continue
            finite = np.isfinite(values).all(axis=0 if name == "scores" else tuple(range(1, values.ndim)))
            row = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"{name} of tuple {pool.ids[row]} is not finite: the stage that made it is at fault")
        if self.vector_view and pool.vectors is None:
            raise ValueError(f"{type(self).__name__} needs vectors of the {self.vector_view} view")
        if self.needs_scores and pool.scores is None:
            raise ValueError(f"{type(self).__name__} needs the scores of an evaluator trained on earlier labels")
