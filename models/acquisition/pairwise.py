"""Contract of pairwise strategies: a pair rule proposes pairs, the strategy ranks them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.pair_rules.base import CandidateScores, PairRule
from models.acquisition.pair_rules.best_worst import BestWorst
from models.core.arrays import BoolArray, FloatArray, IntArray
from models.core.data import Selection
from models.core.errors import ConfigError
from models.core.registry import OneOf

Temperature = Annotated[
    PositiveFloat, Field(description="T of the preference probability p = σ(difference of scores / T).")
]


@dataclass(frozen=True)
class Pairs:
    """C candidate pairs, one per prompt; `first` and `second` are rows of the pool."""

    pool: Pool
    first: IntArray
    second: IntArray

    def __len__(self) -> int:
        return len(self.first)

    @property
    def difference(self) -> FloatArray:
        """Return D^e = r^e(x, y_i) − r^e(x, y_j), shape (E, C)."""
        if self.pool.scores is None:
            raise ConfigError("a pair's difference needs the scores of an evaluator trained on earlier labels")
        return self.pool.scores[:, self.first] - self.pool.scores[:, self.second]

    def preference(self, temperature: float) -> FloatArray:
        """Return p^e = σ(D^e / temperature), shape (E, C)."""
        from scipy.special import expit

        return np.asarray(expit(self.difference / temperature))

    @property
    def direction(self) -> FloatArray:
        """Return δφ = φ(x, y_i) − φ(x, y_j), shape (C, d)."""
        assert self.pool.vectors is not None  # noqa: S101 - select() has checked it
        return np.asarray(self.pool.vectors[self.first] - self.pool.vectors[self.second], dtype=np.float64)

    @property
    def implicit_margin(self) -> FloatArray:
        """Return |r̂(y_i) − r̂(y_j)| / β with r̂ = β log π/π_ref, shape (C,) (2402.08114; β changes no order)."""
        assert self.pool.logprob is not None  # noqa: S101 - select() has checked both
        assert self.pool.reference_logprob is not None  # noqa: S101
        implicit = self.pool.logprob - self.pool.reference_logprob
        return np.abs(implicit[self.first] - implicit[self.second])


class PairAcquisition(Acquisition):
    """A strategy over pairs. Concrete ones declare `kind` and implement `pair_utility`, or `rank` to pick as a batch.

    An oracle that scores single tuples is asked about both responses of a pair; one whose label is known already
    costs nothing. When every prompt's pair is spent the rule names others among the responses left; a response that is
    alone in the end is asked at random, with a utility of −∞.
    """

    ranks_by: ClassVar[Needs] = Needs(scores=True)

    pairs: Annotated[PairRule, OneOf(late=True)] = BestWorst()

    @property
    @override
    def needs(self) -> Needs:
        return self.ranks_by._replace(scores=self.ranks_by.scores or self.pairs.needs_scores)

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        left = ~pool.unavailable
        parts: list[SelectedRows] = []
        among, first_pass = pool.labelled | left, True
        while (wanted := count - sum(len(part.rows) for part in parts)) > 0:
            # what an earlier pass has picked counts as labelled
            known = replace(pool, labelled=pool.labelled | (~pool.unavailable & ~left))
            pairs = candidates(known, self.pairs, rng, among=among)
            part = self._tuples(pairs, left, wanted, rng)
            if not len(part.rows) and first_pass:
                among, first_pass = left, False
                continue
            if not len(part.rows):
                rest = rng.permutation(np.flatnonzero(left))[:wanted]
                parts.append(SelectedRows(rest, np.full(len(rest), -np.inf)))
                break
            parts.append(part)
            left[part.rows] = False
            among, first_pass = left, False
        names = parts[0].components
        return SelectedRows(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.utilities for part in parts]),
            {
                name: np.concatenate([part.components.get(name, np.full(len(part.rows), -np.inf)) for part in parts])
                for name in names
            },
        )

    def select_pairs(self, pool: Pool, budget: int, rng: np.random.Generator) -> list[Selection]:
        """Return at most `budget` pairs, best first, for a pairwise oracle; one query each.

        A response takes part in one comparison at most: a prompt with k free responses has ⌊k/2⌋ pairs, and they are
        all used before the budget is left over. Order of the pool and errors as in `select`.
        """
        pool = self._ordered(pool, budget)
        left, picks = ~pool.unavailable, list[Selection]()
        while len(picks) < budget:
            known = replace(pool, labelled=pool.labelled | (~pool.unavailable & ~left))
            pairs = candidates(known, self.pairs, rng, among=left)
            if not len(pairs):
                break
            ranked = self.rank(pairs, min(budget - len(picks), len(pairs)), rng)
            for place, number in enumerate(ranked.rows):
                first, second = int(pairs.first[number]), int(pairs.second[number])
                utility, components = float(ranked.utilities[place]), ranked.explain(place)
                picks.append(Selection(pool.ids[first], utility, components, against=pool.ids[second]))
                left[[first, second]] = False
        return picks

    def _tuples(self, pairs: Pairs, left: BoolArray, wanted: int, rng: np.random.Generator) -> SelectedRows:
        """Return the open responses of the pairs, best pair first, at most `wanted` of them."""
        ranked = self.rank(pairs, wanted, rng)
        rows = np.stack([pairs.first[ranked.rows], pairs.second[ranked.rows]], axis=1).reshape(-1)
        source = np.repeat(np.arange(len(ranked.rows)), 2)[left[rows]][:wanted]
        components = {name: values[source] for name, values in ranked.components.items()}
        return SelectedRows(rows[left[rows]][:wanted], ranked.utilities[source], components)

    def rank(self, pairs: Pairs, queries: int, rng: np.random.Generator) -> SelectedRows:
        """Return min(queries, C) pairs by number, best first; by default by utility, ties broken at random.

        A pair takes two queries, or one where a response is labelled already: not all that are returned are asked.
        """
        components = self.pair_components(pairs)
        utility = next(iter(components.values()))
        order = np.lexsort((rng.random(len(utility)), -utility))[:queries]
        return SelectedRows(order, utility[order], {name: values[order] for name, values in components.items()})

    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        """Return what is known of each pair, by name, each of shape (C,); the first component is its utility."""
        raise NotImplementedError


def candidates(pool: Pool, rule: PairRule, rng: np.random.Generator, *, among: BoolArray) -> Pairs:
    """Return the pair that the rule names for every prompt with two responses `among` these, not both of them labelled."""
    rows = np.flatnonzero(among)
    rows = rows[np.argsort(pool.prompt[rows], kind="stable")]
    _, begins, counts = np.unique(pool.prompt[rows], return_index=True, return_counts=True)
    begins, counts = begins[counts > 1], counts[counts > 1]
    if not len(begins):
        return Pairs(pool, np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    column = np.arange(counts.max())
    present: BoolArray = column < counts[:, None]
    table = rows[np.where(present, begins[:, None] + column, 0)]
    named = rule.propose(CandidateScores(present, None if pool.scores is None else pool.scores[:, table]), rng)
    prompts = np.arange(len(table))
    first, second = table[prompts, named.first], table[prompts, named.second]
    open_ = ~(pool.labelled[first] & pool.labelled[second])
    return Pairs(pool, first[open_], second[open_])


def entropy(probability: FloatArray) -> FloatArray:
    """Return h(p) = −p ln p − (1 − p) ln(1 − p), in nats."""
    from scipy.special import xlogy

    return np.asarray(-xlogy(probability, probability) - xlogy(1 - probability, 1 - probability))
