"""Train the proxy reward model on the labels bought so far."""

from pathlib import Path

from models.evaluators.base import Bench, Evaluator
from models.lessons import Teaching
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.devices import on_device
from tasks.history import Batch, judged, lessons_of
from tasks.policy import Policy
from tasks.store import Ref, new_folder, store


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
