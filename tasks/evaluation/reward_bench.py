"""Stage: RewardBench on the exported evaluator."""

from pathlib import Path

import numpy as np
from pydantic import InstanceOf

from models.benchmarks.reward_bench import contrasts, grade, weights
from models.core.data import QuestionResult
from models.core.registry import Frozen
from models.core.rubric import Rubric
from models.evaluators.base import Evaluator, FitContext
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy

_LONGEST = 4096  # tokens of a model that does not say


class Trained(Frozen):
    """An evaluator, what it has learned, and on which policy."""

    evaluator: InstanceOf[Evaluator]
    evaluator_ref: Ref
    policy: Policy
    rubric: Rubric


class Ranked(StageResult):
    """Graded rows, one for each pair, and the weight of each in the score."""

    weights: tuple[float, ...]


@stage(version=1, ignore=["program", "pairs", "batch_size"])
@on_device()
def reward_bench(
    trained: Trained, pairs: Path | None, *, content: str, program: Path, version: str, batch_size: int
) -> Ranked:
    """Return what RewardBench's `program` of a `version` says of the evaluator; `content` digests the pairs (None: its own).

    Facts: how many texts are longer than the model reads, and were cut.
    """
    del content, version
    given, checkpoint = contrasts(pairs), trained.policy.checkpoint()
    context = FitContext(checkpoint, trained.rubric, store().folder(trained.evaluator_ref), seed=0)
    weighs = weights(program, given)  # a subset that it does not know is refused before hours of scoring
    model = checkpoint.load_cached()
    longest = int(getattr(model.model.config.get_text_config(), "max_position_embeddings", _LONGEST))
    lengths = np.array(
        [len(model.renderer.encode(p.prompt, text).ids) for p in given for text in (p.chosen, p.rejected)]
    )
    rows = grade(
        program,
        lambda folder: trained.evaluator.write_classifier(folder, context),
        given,
        batch_size=batch_size,
        max_length=longest,
    )
    return Ranked(
        ref=store().write_rows("grades", rows, QuestionResult),
        facts={"truncated": float((lengths > longest).sum())},
        weights=tuple(weighs.tolist()),
    )
