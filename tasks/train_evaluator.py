"""Train the proxy reward model on the labels bought so far."""

from pathlib import Path

import numpy as np

from models.evaluators.base import Bench, Evaluator, Tuples
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.history import Batch, labelled
from tasks.policy import Policy
from tasks.store import new_folder, store


@stage(version=1)
def train_evaluator(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    shuffle: bool = False,
) -> Product:
    """Return the trained evaluator. `shuffle` permutes the labels: the control, which must learn nothing."""
    tuples, scores, features = labelled(history)
    if shuffle:
        scores = np.random.default_rng(seed).permutation(scores)
    with new_folder() as folder:
        bench = Bench(policy.checkpoint(), rubric, Path(folder), seed)
        facts = evaluator.fit(Tuples(tuples, features), scores, bench)
        return Product(
            ref=store().write_folder("evaluators", Path(folder)),
            facts={"labels": float(len(scores)), **facts},
        )
