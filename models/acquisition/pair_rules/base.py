"""Contract of pair rules: propose two responses of each prompt."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat

from models.core.arrays import BoolArray, FloatArray, IntArray
from models.core.errors import ConfigError
from models.core.registry import Plugin

Beta = Annotated[PositiveFloat, Field(description="β: bounds lie β standard deviations of the ensemble from its mean.")]


class PairIndices(NamedTuple):
    """The columns of the first and the second response, one entry per prompt; never the same."""

    first: IntArray
    second: IntArray


@dataclass(frozen=True)
class CandidateScores:
    """The responses of P prompts, padded to M columns: `present` (P, M), at least two per prompt; `members` (E, P, M).

    `members` are the scores of an evaluator's ensemble, None where there is none; what they say of an absent response
    means nothing.
    """

    present: BoolArray
    members: FloatArray | None = None

    @property
    def mean(self) -> FloatArray:
        """Return μ, shape (P, M)."""
        return np.asarray(self.scores.mean(axis=0))

    @property
    def std(self) -> FloatArray:
        """Return s, the standard deviation over members, shape (P, M)."""
        return np.asarray(self.scores.std(axis=0))

    @property
    def scores(self) -> FloatArray:
        """Return the members; raise ConfigError if there is no evaluator yet."""
        if self.members is None:
            raise ConfigError("this pair rule needs the scores of an evaluator trained on earlier labels")
        return self.members

    def thompson_sample(self, rng: np.random.Generator) -> FloatArray:
        """Return the scores by one member per prompt, drawn at random (Thompson sampling), shape (P, M)."""
        member = rng.integers(len(self.scores), size=len(self.present))
        return self.scores[member, np.arange(len(self.present))]


class PairRule(Plugin):
    """A rule. Concrete rules declare `kind` and implement `name`."""

    needs_scores: ClassVar[bool] = True

    def propose(self, grid: CandidateScores, rng: np.random.Generator) -> PairIndices:
        """Return two distinct present columns for every prompt."""
        raise NotImplementedError


def best(values: FloatArray, present: BoolArray, rng: np.random.Generator) -> IntArray:
    """Return the present column of the largest value in each row, ties broken at random."""
    masked = np.where(present, values, -np.inf)
    top = masked == masked.max(axis=1, keepdims=True)
    tied = np.flatnonzero((top & present).sum(axis=1) > 1)
    found = masked.argmax(axis=1)
    found[tied] = np.where(top[tied] & present[tied], rng.random((len(tied), values.shape[1])), -1.0).argmax(axis=1)
    return np.asarray(found, dtype=np.int64)


def without(present: BoolArray, column: IntArray) -> BoolArray:
    """Return `present` with one column of each row taken out."""
    left = present.copy()
    left[np.arange(len(left)), column] = False
    return left


def at(values: FloatArray, column: IntArray) -> FloatArray:
    """Return one column of each row, shape (P, 1)."""
    return values[np.arange(len(values)), column][:, None]


def preference_interval_width(gap: FloatArray, width: FloatArray) -> FloatArray:
    """Return σ(u_i − l_j) − σ(l_i − u_j), the interval of a preference's probability.

    `gap` is μ_i − μ_j and `width` the sum of the bounds' reaches β(s_i + s_j); both of any one shape.
    """
    from scipy.special import expit

    return np.asarray(expit(gap + width) - expit(gap - width))
