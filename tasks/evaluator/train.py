"""Stage: fit the evaluator to the labels bought so far."""

from pathlib import Path

from models.core.rubric import Rubric
from models.evaluators.base import Evaluator, FitContext
from models.evaluators.training_data import FitOptions
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.store import Ref, new_folder, store
from tasks.labelling.batches import Batch, judged, training_data_of
from tasks.policy.policy_ref import Policy


@stage(version=6)
@on_device()
def fit_evaluator(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    options: FitOptions,
    eft_examples: Ref | None = None,
) -> StageResult:
    """Return the trained evaluator, trained on the oracle's scores or by its comparisons, or zero-shot without any.

    `eft_examples` (Judged rows) is trained beside them, to evaluators that want it.
    """
    with new_folder() as folder:
        context = FitContext(policy.checkpoint(), rubric, Path(folder), options.seed, judged(eft_examples))
        if history:
            facts = training_data_of(history).fit(evaluator, context, options)
        else:
            facts = {"labels": 0.0, **evaluator.init_zero_shot(context)}
        return StageResult(ref=store().write_folder("evaluators", Path(folder)), facts=facts)
