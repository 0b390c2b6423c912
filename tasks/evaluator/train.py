"""Train the proxy reward model on the labels bought so far."""

from pathlib import Path

from models.core.rubric import Rubric
from models.evaluators.base import Bench, Evaluator
from models.evaluators.training_data import Teaching
from tasks.engine.caching import Product, stage
from tasks.engine.devices import on_device
from tasks.engine.store import Ref, new_folder, store
from tasks.labelling.batches import Batch, judged, lessons_of
from tasks.policy.policy_ref import Policy


@stage(version=6)
@on_device()
def train_evaluator(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    teaching: Teaching,
    eft_seed: Ref | None = None,
) -> Product:
    """Return the trained evaluator, taught by the expert's scores or by its comparisons, or untaught without any.

    `eft_seed` (Judged rows) is taught beside them, to evaluators that want it.
    """
    with new_folder() as folder:
        bench = Bench(policy.checkpoint(), rubric, Path(folder), teaching.seed, judged(eft_seed))
        if history:
            facts = lessons_of(history).teach(evaluator, bench, teaching)
        else:
            facts = {"labels": 0.0, **evaluator.untaught(bench)}
        return Product(ref=store().write_folder("evaluators", Path(folder)), facts=facts)
