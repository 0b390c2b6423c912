"""Let a policy take a benchmark."""

from models.harness import Task, grade
from models.preference import Graded
from tasks.caching import Product, stage
from tasks.devices import on_device
from tasks.policy import Policy
from tasks.store import store


@stage(version=1, ignore=["task", "batch_size"])
@on_device()
def benchmark(policy: Policy, task: Task, *, identity: str, batch_size: int) -> Product:
    """Return Graded rows: what the policy gets for each question of the task, whose `identity` is in the cache key."""
    del identity
    rows = grade(policy.checkpoint().load(), task, batch_size=batch_size)
    mean = sum(row.score for row in rows) / len(rows)
    return Product(ref=store().write_rows("grades", rows, Graded), facts={"mean": mean, "questions": float(len(rows))})
