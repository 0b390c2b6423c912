"""Stages: cross-fitted predictions of labels, and the gate's decision."""

from pathlib import Path

from models.core.data import HeldOutPrediction
from models.core.rubric import Rubric
from models.evaluators import training_data
from models.evaluators.base import Evaluator, FitContext
from models.metrics.selective import Decision, Gate, decide
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.store import Ref, store
from tasks.labelling.batches import Batch, judged, training_data_of
from tasks.policy.policy_ref import Policy


@stage(version=5)
@on_device()
def cross_fit(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    options: training_data.FitOptions,
    folds: int,
    eft_examples: Ref | None = None,
) -> StageResult:
    """Return LeftOut rows: what is said of each bought label by an evaluator trained on those of other prompts.

    `eft_examples` is that of `fit_evaluator`.
    """
    context = FitContext(policy.checkpoint(), rubric, Path(), options.seed, judged(eft_examples))
    rows = training_data.cross_fit(evaluator, training_data_of(history), context, options, folds)
    return StageResult(ref=store().write_rows("left_out", rows, HeldOutPrediction))


@stage(version=1)
def check_gate(left_out: Ref, rules: Gate) -> Decision:
    """Return what the gate decides of the evaluator whose word on labels that it had not seen is `left_out`."""
    return decide(store().rows(left_out, HeldOutPrediction), rules)
