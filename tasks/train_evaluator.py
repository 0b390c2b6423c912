"""Train the proxy reward model on the labels bought so far."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.evaluators.base import Bench, Evaluator, Floats, Tuples
from models.rubric import LEVELS, Rubric
from tasks.caching import Product, stage
from tasks.history import Batch, compared, labelled
from tasks.policy import Policy
from tasks.store import new_folder, store


@stage(version=4)
def train_evaluator(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    shuffle: bool = False,
    balance: bool = False,
) -> Product:
    """Return the trained evaluator, taught by the expert's scores or by its comparisons, or untaught without any.

    `shuffle` permutes the scores, or turns comparisons round by the toss of a coin: the control, which must learn nothing.
    `balance` draws the scores again, with replacement, so that every level of them is as frequent.
    """
    rng = np.random.default_rng(seed)
    pairs = compared(history)
    with new_folder() as folder:
        bench = Bench(policy.checkpoint(), rubric, Path(folder), seed)
        labels = len(pairs.first)
        if not history:
            facts = evaluator.untaught(bench)
        elif pairs.first:
            sides = Tuples(pairs.first, pairs.first_features), Tuples(pairs.second, pairs.second_features)
            turn = rng.choice([-1.0, 1.0], size=len(pairs.preference)) if shuffle else 1.0
            facts = evaluator.fit_pairs(*sides, pairs.preference * turn, bench)
        else:
            tuples, scores, features = labelled(history)
            labels = len(tuples)
            scores = rng.permutation(scores) if shuffle else scores
            rows = _balanced(scores, rng) if balance else np.arange(labels)
            taught = Tuples([tuples[row] for row in rows], None if features is None else features[rows])
            facts = evaluator.fit(taught, scores[rows], bench)
        return Product(
            ref=store().write_folder("evaluators", Path(folder)),
            facts={"labels": float(labels), **facts},
        )


def _balanced(scores: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return n of n rows, drawn so that each level is as frequent: distinct scores, or six equal parts of their range."""
    _, level = np.unique(scores, return_inverse=True)
    if level.max(initial=0) >= LEVELS:
        edges = np.linspace(scores.min(), scores.max(), LEVELS + 1)[1:-1]
        _, level = np.unique(np.digitize(scores, edges), return_inverse=True)
    weight = 1 / np.bincount(level)[level]
    return rng.choice(len(scores), size=len(scores), p=weight / weight.sum())
