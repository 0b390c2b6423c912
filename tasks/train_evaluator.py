"""Train the proxy reward model on the labels bought so far."""

from pathlib import Path

import numpy as np

from models.evaluators.base import Bench, Evaluator, Tuples
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.history import Batch, compared, labelled
from tasks.policy import Policy
from tasks.store import new_folder, store


@stage(version=2)
def train_evaluator(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    shuffle: bool = False,
) -> Product:
    """Return the trained evaluator, taught by the expert's scores or by its comparisons.

    `shuffle` permutes the scores, or turns comparisons round by the toss of a coin: the control, which must learn nothing.
    """
    rng = np.random.default_rng(seed)
    pairs = compared(history)
    with new_folder() as folder:
        bench = Bench(policy.checkpoint(), rubric, Path(folder), seed)
        if pairs.first:
            sides = Tuples(pairs.first, pairs.first_features), Tuples(pairs.second, pairs.second_features)
            turn = rng.choice([-1.0, 1.0], size=len(pairs.preference)) if shuffle else 1.0
            facts = evaluator.fit_pairs(*sides, pairs.preference * turn, bench)
        else:
            tuples, scores, features = labelled(history)
            facts = evaluator.fit(Tuples(tuples, features), rng.permutation(scores) if shuffle else scores, bench)
        return Product(
            ref=store().write_folder("evaluators", Path(folder)),
            facts={"labels": float(len(pairs.first) or len(tuples)), **facts},
        )
