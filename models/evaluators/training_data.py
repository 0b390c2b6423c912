"""What an evaluator is taught with, the expert's scores or its comparisons, and how it does on the part it has not seen."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.core.data import Judged, LeftOut, Response
from models.core.registry import Frozen
from models.evaluators.base import Bench, Evaluator, Floats, Tuples
from models.evaluators.ordinal import balanced
from models.metrics.agreement import numbered

Rows = NDArray[np.int64]


class Teaching(Frozen):
    """How labels are put before an evaluator, at random from `seed`.

    `shuffle` permutes the scores, those of the EFT seed too, or turns comparisons round by the toss of a coin: the control,
    which must learn nothing.
    `balance` draws the scores again, with replacement, so that every level of them is as frequent.
    """

    seed: int
    shuffle: bool = False
    balance: bool = False

    def eft_seed(self, rows: Sequence[Judged]) -> Sequence[Judged]:
        """Return the EFT seed as it is taught."""
        if not self.shuffle:
            return rows
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return [replace(row, score=rows[other].score) for row, other in zip(rows, order, strict=True)]


class Lessons(ABC):
    """N labels of the expert, each about one prompt."""

    @abstractmethod
    def asked(self) -> Sequence[Response]:
        """Return the response that each label is about, the first of two."""

    @abstractmethod
    def take(self, rows: Rows) -> "Lessons":
        """Return these rows alone."""

    @abstractmethod
    def teachable(self) -> bool:
        """Whether there is a preference in them at all."""

    @abstractmethod
    def teach(self, evaluator: Evaluator, bench: Bench, teaching: Teaching) -> dict[str, float]:
        """Teach the evaluator, which is saved in the bench's folder, and return facts to log."""

    @abstractmethod
    def judged(self, evaluator: Evaluator, bench: Bench, fold: int) -> list[LeftOut]:
        """Return what the evaluator saved in the bench's folder says of each row, beside what the expert has said."""


@dataclass(frozen=True)
class Scores(Lessons):
    """Tuples and the expert's score of each, shape (N,)."""

    tuples: Tuples
    scores: Floats

    def asked(self) -> Sequence[Response]:  # noqa: D102
        return self.tuples.responses

    def take(self, rows: Rows) -> "Scores":  # noqa: D102
        return Scores(self.tuples.take(rows), self.scores[rows])

    def teachable(self) -> bool:  # noqa: D102
        return len(self.scores) > 1 and bool(np.ptp(self.scores) > 0)

    def teach(self, evaluator: Evaluator, bench: Bench, teaching: Teaching) -> dict[str, float]:  # noqa: D102
        rng, given = np.random.default_rng(teaching.seed), self
        if teaching.shuffle:
            order = rng.permutation(len(self.scores))
            remarks = [self.tuples.remarks[row] for row in order] if self.tuples.remarks else ()
            given = Scores(replace(self.tuples, remarks=remarks), self.scores[order])
        taught = given.take(balanced(given.scores, rng)) if teaching.balance else given
        bench = replace(bench, eft_seed=teaching.eft_seed(bench.eft_seed))
        return {"labels": float(len(self.scores)), **evaluator.fit(taught.tuples, taught.scores, bench)}

    def judged(self, evaluator: Evaluator, bench: Bench, fold: int) -> list[LeftOut]:  # noqa: D102
        logits = _logits(evaluator, self.tuples, bench)
        return [
            LeftOut(r.id, "", r.prompt_id, fold, float(logit), float(score))
            for r, logit, score in zip(self.tuples.responses, logits, self.scores, strict=True)
        ]


@dataclass(frozen=True)
class Comparisons(Lessons):
    """Compared responses, N of each side, and the expert's preference in [−1, 1], shape (N,)."""

    first: Tuples
    second: Tuples
    preference: Floats

    def asked(self) -> Sequence[Response]:  # noqa: D102
        return self.first.responses

    def take(self, rows: Rows) -> "Comparisons":  # noqa: D102
        return Comparisons(self.first.take(rows), self.second.take(rows), self.preference[rows])

    def teachable(self) -> bool:  # noqa: D102
        return bool((self.preference != 0).any())

    def teach(self, evaluator: Evaluator, bench: Bench, teaching: Teaching) -> dict[str, float]:  # noqa: D102
        rng, count = np.random.default_rng(teaching.seed), len(self.preference)
        turn = rng.choice([-1.0, 1.0], size=count) if teaching.shuffle else 1.0
        return {"labels": float(count), **evaluator.fit_pairs(self.first, self.second, self.preference * turn, bench)}

    def judged(self, evaluator: Evaluator, bench: Bench, fold: int) -> list[LeftOut]:  # noqa: D102
        one, other = np.split(_logits(evaluator, self.first.joined(self.second), bench), 2)
        gap = one - other
        sides = zip(self.first.responses, self.second.responses, strict=True)
        return [
            LeftOut(one.id, other.id, one.prompt_id, fold, float(logit), float(preference))
            for (one, other), logit, preference in zip(sides, gap, self.preference, strict=True)
        ]


def cross_fit(evaluator: Evaluator, lessons: Lessons, bench: Bench, teaching: Teaching, folds: int) -> list[LeftOut]:
    """Return what is said of each label by an evaluator that was taught with those of other prompts.

    Nor with what the EFT seed has of its prompt. The prompts are cut into at most `folds` parts of one size, at random from
    the teaching's seed. A part without which nothing can be taught is left out. `bench.folder` is not touched.
    """
    prompt = numbered([r.prompt_id for r in lessons.asked()])
    count = int(prompt.max(initial=-1)) + 1
    fold = (np.random.default_rng([teaching.seed, folds]).permutation(count) % min(folds, max(count, 1)))[prompt]
    found: list[LeftOut] = []
    for number in np.unique(fold):
        taught, left_out = (lessons.take(np.flatnonzero(rows)) for rows in (fold != number, fold == number))
        if not taught.teachable():
            continue
        with tempfile.TemporaryDirectory() as folder:
            unseen = {r.prompt for r in left_out.asked()}
            eft_seed = [row for row in bench.eft_seed if row.prompt not in unseen]
            place = replace(bench, folder=Path(folder), eft_seed=eft_seed)
            taught.teach(evaluator, place, teaching)
            found += left_out.judged(evaluator, place, int(number))
    return found


def _logits(evaluator: Evaluator, tuples: Tuples, bench: Bench) -> Floats:
    return np.asarray(evaluator.members(tuples, bench).mean(axis=0) / evaluator.temperature(bench))
