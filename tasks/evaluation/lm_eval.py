"""Stage: run an lm-evaluation-harness task on a policy."""

from models.benchmarks.lm_eval import Task, grade
from models.core.data import QuestionResult
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.store import store
from tasks.policy.policy_ref import Policy


@stage(version=1, ignore=["task", "batch_size"])
@on_device()
def benchmark(policy: Policy, task: Task, *, identity: str, batch_size: int) -> StageResult:
    """Return Graded rows: what the policy gets for each question of the task, whose `identity` is in the cache key."""
    del identity
    rows = grade(policy.checkpoint().load_copy(), task, batch_size=batch_size)
    mean = sum(row.score for row in rows) / len(rows)
    return StageResult(
        ref=store().write_rows("grades", rows, QuestionResult), facts={"mean": mean, "questions": float(len(rows))}
    )
