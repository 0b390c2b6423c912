"""Learning curves on recorded labels: an evaluator's agreement after each budget, by strategy."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.acquisition.base import Acquisition, Pool
from models.acquisition.random import Random
from models.core.arrays import BoolArray, Float32Array, FloatArray, IntArray
from models.core.data import Response
from models.core.randomness import seed_of, stream
from models.core.rubric import Rubric
from models.embeddings.base import View
from models.evaluators.base import Evaluator, Examples, FitContext
from models.metrics.agreement import SIMILAR_LENGTH, agreement, pair_outcomes
from models.policies.checkpoint import Checkpoint

CLEAR_GAP = 1.0  # in the oracle's unit: closer pairs are mostly the oracle's own noise


@dataclass(frozen=True)
class Recording:
    """N tuples with the oracle's scores and the prices paid, as a table has them; one entry per tuple.

    `prompt` numbers the tuple's prompt; `vectors` are (N, d) by view.
    """

    responses: Sequence[Response]
    prompt: IntArray
    scores: FloatArray
    micro_usd: IntArray
    vectors: Mapping[View, Float32Array]

    def take(self, rows: IntArray) -> "Recording":
        """Return these rows, in this order."""
        return replace(
            self,
            responses=[self.responses[row] for row in rows],
            prompt=self.prompt[rows],
            scores=self.scores[rows],
            micro_usd=self.micro_usd[rows],
            vectors={view: np.asarray(vectors[rows]) for view, vectors in self.vectors.items()},
        )

    def split(self, share: float, rng: np.random.Generator) -> tuple["Recording", "Recording"]:
        """Return (pool, held out), `share` of the prompts in the second; no prompt stands on both sides."""
        prompts = np.unique(self.prompt)
        held = rng.permutation(prompts)[: max(1, round(share * len(prompts)))]
        inside = np.isin(self.prompt, held)
        return self.take(np.flatnonzero(~inside)), self.take(np.flatnonzero(inside))

    @property
    def length(self) -> FloatArray:
        """Return the characters of each response."""
        return np.array([len(r.text) for r in self.responses], dtype=np.float64)


class Point(NamedTuple):
    """A budget, what it cost, and the agreement it bought on held-out prompts.

    `pair_accuracy` is over within-prompt pairs more than CLEAR_GAP apart for the oracle, `similar_length` over those of them
    whose lengths differ by at most SIMILAR_LENGTH; `spearman` is over all tuples. `regret` is the mean over prompts of
    the best response's oracle score less that of the response the proxy likes best, in the oracle's unit.
    """

    labels: int
    micro_usd: int
    pair_accuracy: float
    similar_length: float
    spearman: float
    calibration_error: float
    regret: float


def judge(held_out: Recording, proxy: FloatArray, *, labels: int = 0, micro_usd: int = 0) -> Point:
    """Return how well proxy scores agree with the oracle's on held-out tuples."""
    given = (held_out.scores, proxy, held_out.prompt)
    clear, _ = pair_outcomes(*given, least_gap=CLEAR_GAP)
    alike, _ = pair_outcomes(*given, least_gap=CLEAR_GAP, length=held_out.length, length_share=SIMILAR_LENGTH)
    found = agreement(*given)
    return Point(
        labels=labels,
        micro_usd=micro_usd,
        pair_accuracy=float(clear.mean()) if len(clear) else float("nan"),
        similar_length=float(alike.mean()) if len(alike) else float("nan"),
        spearman=found.spearman,
        calibration_error=found.calibration_error,
        regret=_regret(*given),
    )


def _regret(oracle: FloatArray, proxy: FloatArray, prompt: IntArray) -> float:
    order = np.lexsort((oracle, prompt))  # the last of each prompt is the oracle's favourite
    best = np.append(np.flatnonzero(np.diff(prompt[order])), len(order) - 1)
    liked = np.lexsort((proxy, prompt))
    return float((oracle[order[best]] - oracle[liked[best]]).mean())


def learning_curve(
    pool: Recording,
    held_out: Recording,
    strategy: Acquisition,
    evaluator: Evaluator,
    *,
    budgets: Sequence[int],
    seed: int,
    shuffle: bool = False,
) -> list[Point]:
    """Buy up to each budget in turn, refit, and return one point per budget.

    A strategy that ranks by an evaluator's scores starts from a uniform batch, the same one for every strategy of a seed.
    `shuffle` permutes the labels before the evaluator learns: the control.
    """
    known = np.zeros(len(pool.scores), dtype=bool)
    members: FloatArray | None = None
    points = []
    for turn, budget in enumerate(budgets):
        wanted = Random() if strategy.needs.scores and members is None else strategy
        state = _pool(pool, wanted, known, members)
        picks = wanted.select(state, budget - int(known.sum()), stream(seed, turn, "acquire"))
        row_of = {response_id: row for row, response_id in enumerate(state.ids)}
        known[[row_of[pick.response_id] for pick in picks]] = True
        rows = np.flatnonzero(known)
        labels = pool.scores[rows]
        if shuffle:
            labels = stream(seed, turn, "shuffle").permutation(labels)
        with tempfile.TemporaryDirectory() as scratch:
            context = FitContext(Checkpoint("unused"), Rubric(), Path(scratch), seed_of(seed, turn, "evaluator"))
            evaluator.fit(_tuples(pool.take(rows), evaluator), labels, context)
            logits = 1.0 / evaluator.temperature(context)
            held = evaluator.predict(_tuples(held_out, evaluator), context).mean(axis=0) * logits
            members = evaluator.predict(_tuples(pool, evaluator), context) * logits if strategy.needs.scores else None
        points.append(judge(held_out, held, labels=len(rows), micro_usd=int(pool.micro_usd[rows].sum())))
    return points


def _tuples(recording: Recording, evaluator: Evaluator) -> Examples:
    view = evaluator.feature_view
    return Examples(recording.responses, None if view is None else recording.vectors[view])


def _pool(pool: Recording, strategy: Acquisition, known: BoolArray, members: FloatArray | None) -> Pool:
    view = strategy.needs.view
    return Pool(
        ids=[r.id for r in pool.responses],
        prompt=pool.prompt,
        unavailable=known.copy(),
        labelled=known.copy(),
        vectors=None if view is None else pool.vectors[view],
        scores=members if strategy.needs.scores else None,
        cost=pool.micro_usd.astype(np.float64) if strategy.needs.cost else None,
    )
