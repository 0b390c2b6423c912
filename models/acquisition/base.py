"""Contract of acquisition strategies: rank a pool's responses by the expected value of their labels."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from models.core.arrays import BoolArray, Float32Array, FloatArray, IntArray
from models.core.data import Selection
from models.core.errors import ConfigError
from models.core.registry import Plugin
from models.embeddings.base import View


@dataclass(frozen=True)
class Pool:
    """N tuples (x, y) as a strategy sees them; every array has one entry per tuple.

    `prompt` numbers the tuple's prompt; `unavailable` marks tuples that must not be picked (already asked, or the same
    text as an earlier one); `labelled` those whose labels are known. Optional: `vectors` (N, d); `anchors` (m, d), the
    vectors labelled in earlier rounds; `logprob` and `tokens` of the response under the policy, `reference_logprob`
    under its reference; `scores` (E, N), one row per ensemble member of the current evaluator; `cost`, what the query
    may cost, and `money`, what there is to spend, in one unit.
    """

    ids: Sequence[str]
    prompt: IntArray
    unavailable: BoolArray
    labelled: BoolArray
    vectors: Float32Array | None = None
    anchors: Float32Array | None = None
    logprob: FloatArray | None = None
    tokens: IntArray | None = None
    reference_logprob: FloatArray | None = None
    scores: FloatArray | None = None
    cost: FloatArray | None = None
    money: float = math.inf

    def take(self, rows: IntArray) -> "Pool":
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
                ("reference_logprob", self.reference_logprob),
                ("cost", self.cost),
            )
        }
        scores = None if self.scores is None else self.scores[:, rows]
        return replace(self, ids=[self.ids[row] for row in rows], scores=scores, **ordered)  # type: ignore[arg-type]

    def with_anchors(self) -> tuple[Float32Array, IntArray]:
        """Return the vectors, the anchors after them, and the rows of all that is labelled, anchors included."""
        assert self.vectors is not None  # noqa: S101 - select() has checked it
        known = np.flatnonzero(self.labelled)
        if self.anchors is None or not len(self.anchors):
            return self.vectors, known
        vectors = np.concatenate([self.vectors, self.anchors])
        return vectors, np.concatenate([known, np.arange(len(self.ids), len(vectors))])


class SelectedRows(NamedTuple):
    """Row numbers in the order picked, and the utility of each when it was picked.

    `components` are what the utility was made of, by name: one value per pick.
    """

    rows: IntArray
    utilities: FloatArray
    components: Mapping[str, FloatArray] = MappingProxyType({})

    def explain(self, place: int) -> str:
        """Return the components of one pick as a JSON object; null for what is not finite."""
        values = {name: float(column[place]) for name, column in self.components.items()}
        return json.dumps({name: float(f"{v:.6g}") if math.isfinite(v) else None for name, v in values.items()})


class Needs(NamedTuple):
    """What a strategy ranks by: vectors of a view, an evaluator's scores, log-probabilities (and those under the
    reference), prices.

    A strategy that needs scores cannot make the first batch: nothing has trained an evaluator yet.
    """

    view: View | None = None
    scores: bool = False
    logprob: bool = False
    reference: bool = False
    cost: bool = False


class Acquisition(Plugin):
    """A query strategy. Concrete strategies declare `kind` and implement `utility`, or `choose` to pick as a batch."""

    @property
    def needs(self) -> Needs:
        """What the strategy ranks by."""
        return Needs()

    def select(self, pool: Pool, budget: int, rng: np.random.Generator) -> list[Selection]:
        """Return min(budget, available) distinct picks, best first.

        The order in which the pool is given does not matter: it is sorted by id first. Raises ConfigError naming the
        tuple when an input is not finite.
        """
        ordered = self._ordered(pool, budget)
        count = min(budget, int((~ordered.unavailable).sum()))
        if count == 0:
            return []
        chosen = self.choose(ordered, count, rng)
        return [
            Selection(
                response_id=ordered.ids[row],
                utility=float(utility),
                components=chosen.explain(place),
            )
            for place, (row, utility) in enumerate(zip(chosen.rows, chosen.utilities, strict=True))
        ]

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        """Return `count` available rows; by default those of highest utility, ties broken at random."""
        utility = np.where(pool.unavailable, -np.inf, self.utility(pool, rng))
        order = np.lexsort((rng.random(len(utility)), -utility))[:count]
        return SelectedRows(order, utility[order])

    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Return how much each tuple's label is wanted, shape (N,)."""
        raise NotImplementedError

    def _ordered(self, pool: Pool, budget: int) -> Pool:
        if budget < 0:
            raise ConfigError(f"budget must not be negative, got {budget}")
        self._check(pool)
        return pool.take(np.array(sorted(range(len(pool.ids)), key=lambda row: pool.ids[row]), dtype=np.int64))

    def _check(self, pool: Pool) -> None:
        for name in ("vectors", "logprob", "reference_logprob", "scores", "cost"):
            values = getattr(pool, name)
            if values is None or np.isfinite(values).all():
                continue
            finite = np.isfinite(values).all(axis=0 if name == "scores" else tuple(range(1, values.ndim)))
            row = int(np.flatnonzero(~finite)[0])
            raise ConfigError(f"{name} of tuple {pool.ids[row]} is not finite: the stage that made it is at fault")
        if self.needs.view and pool.vectors is None:
            raise ConfigError(f"{type(self).__name__} needs vectors of the {self.needs.view} view")
        if self.needs.scores and pool.scores is None:
            raise ConfigError(f"{type(self).__name__} needs the scores of an evaluator trained on earlier labels")
        if self.needs.logprob and (pool.logprob is None or pool.tokens is None):
            raise ConfigError(f"{type(self).__name__} needs log-probabilities, which this generator does not report")
        if self.needs.reference and pool.reference_logprob is None:
            raise ConfigError(f"{type(self).__name__} needs log-probabilities under the policy and under its reference")
        for name in ("vectors", "logprob", "reference_logprob", "tokens", "cost", "prompt", "unavailable", "labelled"):
            values = getattr(pool, name)
            if values is not None and len(values) != len(pool.ids):
                raise ConfigError(f"{name} has {len(values)} rows for {len(pool.ids)} tuples: the views do not match")
        if self.needs.cost and pool.cost is None:
            raise ConfigError(f"{type(self).__name__} needs what each query may cost")
        if pool.cost is not None and (pool.cost < 0).any():
            raise ConfigError(f"cost of tuple {pool.ids[int(pool.cost.argmin())]} is negative: {pool.cost.min():g}")
        if pool.scores is not None and pool.scores.shape[1:] != (len(pool.ids),):
            raise ConfigError(
                f"scores has shape {pool.scores.shape} for {len(pool.ids)} tuples: expected (members, tuples)"
            )
