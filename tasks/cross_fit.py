"""Hold the evaluator against labels that it has not seen, before anything is believed of it."""

from pathlib import Path

from models import lessons
from models.evaluators.base import Bench, Evaluator
from models.preference import LeftOut
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.history import Batch, lessons_of
from tasks.policy import Policy
from tasks.store import store


@stage(version=1)
def cross_fit(
    evaluator: Evaluator,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    rubric: Rubric,
    teaching: lessons.Teaching,
    folds: int,
) -> Product:
    """Return LeftOut rows: what is said of each bought label by an evaluator taught with those of other prompts."""
    bench = Bench(policy.checkpoint(), rubric, Path(), teaching.seed)
    rows = lessons.cross_fit(evaluator, lessons_of(history), bench, teaching, folds)
    return Product(ref=store().write_rows("left_out", rows, LeftOut))
