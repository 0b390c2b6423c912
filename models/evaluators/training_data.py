"""Training data for evaluators (pointwise or pairwise), and cross-fitted held-out predictions."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from typing_extensions import override

from models.core.arrays import FloatArray, IntArray
from models.core.data import HeldOutPrediction, Response, ScoredExample
from models.core.registry import Frozen
from models.evaluators.base import Evaluator, Examples, FitContext
from models.evaluators.ordinal import balanced
from models.metrics.agreement import group_ids


class FitOptions(Frozen):
    """How labels are put before an evaluator, at random from `seed`.

    `shuffle` permutes the scores, those of the EFT examples too, or turns comparisons round by the toss of a coin: the
    control, which must learn nothing.
    `balance` draws the scores again, with replacement, so that every level of them is as frequent.
    """

    seed: int
    shuffle: bool = False
    balance: bool = False

    def eft_examples(self, rows: Sequence[ScoredExample]) -> Sequence[ScoredExample]:
        """Return the EFT examples as it is trained."""
        if not self.shuffle:
            return rows
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return [replace(row, score=rows[other].score) for row, other in zip(rows, order, strict=True)]


class TrainingData(ABC):
    """N labels of the oracle, each about one prompt."""

    @abstractmethod
    def queried(self) -> Sequence[Response]:
        """Return the response that each label is about, the first of two."""

    @abstractmethod
    def take(self, rows: IntArray) -> "TrainingData":
        """Return these rows alone."""

    @abstractmethod
    def learnable(self) -> bool:
        """Whether there is a preference in them at all."""

    @abstractmethod
    def fit(self, evaluator: Evaluator, context: FitContext, options: FitOptions) -> dict[str, float]:
        """Train the evaluator, which is saved in the context's folder, and return facts to log."""

    @abstractmethod
    def predict_held_out(self, evaluator: Evaluator, context: FitContext, fold: int) -> list[HeldOutPrediction]:
        """Return what the evaluator saved in the context's folder says of each row, beside what the oracle has said."""


@dataclass(frozen=True)
class PointwiseData(TrainingData):
    """Tuples and the oracle's score of each, shape (N,)."""

    tuples: Examples
    scores: FloatArray

    @override
    def queried(self) -> Sequence[Response]:
        return self.tuples.responses

    @override
    def take(self, rows: IntArray) -> "PointwiseData":
        return PointwiseData(self.tuples.take(rows), self.scores[rows])

    @override
    def learnable(self) -> bool:
        return len(self.scores) > 1 and bool(np.ptp(self.scores) > 0)

    @override
    def fit(self, evaluator: Evaluator, context: FitContext, options: FitOptions) -> dict[str, float]:
        rng, given = np.random.default_rng(options.seed), self
        if options.shuffle:
            order = rng.permutation(len(self.scores))
            remarks = [self.tuples.remarks[row] for row in order] if self.tuples.remarks else ()
            given = PointwiseData(replace(self.tuples, remarks=remarks), self.scores[order])
        train = given.take(balanced(given.scores, rng)) if options.balance else given
        context = replace(context, eft_examples=options.eft_examples(context.eft_examples))
        return {"labels": float(len(self.scores)), **evaluator.fit(train.tuples, train.scores, context)}

    @override
    def predict_held_out(self, evaluator: Evaluator, context: FitContext, fold: int) -> list[HeldOutPrediction]:
        logits = _logits(evaluator, self.tuples, context)
        return [
            HeldOutPrediction(r.id, "", r.prompt_id, fold, float(logit), float(score))
            for r, logit, score in zip(self.tuples.responses, logits, self.scores, strict=True)
        ]


@dataclass(frozen=True)
class PairwiseData(TrainingData):
    """Compared responses, N of each side, and the oracle's preference in [−1, 1], shape (N,)."""

    first: Examples
    second: Examples
    preference: FloatArray

    @override
    def queried(self) -> Sequence[Response]:
        return self.first.responses

    @override
    def take(self, rows: IntArray) -> "PairwiseData":
        return PairwiseData(self.first.take(rows), self.second.take(rows), self.preference[rows])

    @override
    def learnable(self) -> bool:
        return bool((self.preference != 0).any())

    @override
    def fit(self, evaluator: Evaluator, context: FitContext, options: FitOptions) -> dict[str, float]:
        rng, count = np.random.default_rng(options.seed), len(self.preference)
        turn = rng.choice([-1.0, 1.0], size=count) if options.shuffle else 1.0
        return {"labels": float(count), **evaluator.fit_pairs(self.first, self.second, self.preference * turn, context)}

    @override
    def predict_held_out(self, evaluator: Evaluator, context: FitContext, fold: int) -> list[HeldOutPrediction]:
        one, other = np.split(_logits(evaluator, self.first.joined(self.second), context), 2)
        gap = one - other
        sides = zip(self.first.responses, self.second.responses, strict=True)
        return [
            HeldOutPrediction(one.id, other.id, one.prompt_id, fold, float(logit), float(preference))
            for (one, other), logit, preference in zip(sides, gap, self.preference, strict=True)
        ]


def cross_fit(
    evaluator: Evaluator, data: TrainingData, context: FitContext, options: FitOptions, folds: int
) -> list[HeldOutPrediction]:
    """Return what is said of each label by an evaluator that was trained on those of other prompts.

    Nor on EFT examples of its prompt. The prompts are cut into at most `folds` parts of one size, at random from the
    options' seed. A part without which nothing can be trained is left out. `context.folder` is not touched.
    """
    prompt = group_ids([r.prompt_id for r in data.queried()])
    count = int(prompt.max(initial=-1)) + 1
    fold = (np.random.default_rng([options.seed, folds]).permutation(count) % min(folds, max(count, 1)))[prompt]
    found: list[HeldOutPrediction] = []
    for number in np.unique(fold):
        train, held_out = (data.take(np.flatnonzero(rows)) for rows in (fold != number, fold == number))
        if not train.learnable():
            continue
        with tempfile.TemporaryDirectory() as folder:
            unseen = {r.prompt for r in held_out.queried()}
            eft_examples = [row for row in context.eft_examples if row.prompt not in unseen]
            place = replace(context, folder=Path(folder), eft_examples=eft_examples)
            train.fit(evaluator, place, options)
            found += held_out.predict_held_out(evaluator, place, int(number))
    return found


def _logits(evaluator: Evaluator, tuples: Examples, context: FitContext) -> FloatArray:
    return np.asarray(evaluator.predict(tuples, context).mean(axis=0) / evaluator.temperature(context))
