"""Run RewardBench on the evaluator of a finished run."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from flows.reporting.export import FinishedRun
from models.benchmarks.reward_bench import command, contrasts, version_of
from models.core.data import QuestionResult
from models.core.errors import ConfigError
from models.core.registry import Frozen, digest_of
from models.metrics.intervals import Interval, weighted_mean
from tasks.engine.settings import settings
from tasks.engine.store import store
from tasks.evaluation.reward_bench import Trained, reward_bench

NAME = "rewardbench"
_CHANCE = 0.5


class RewardBenchConfig(Frozen):
    """Which pairs are to be ordered."""

    pairs: Path | None = Field(None, description="JSON of prompt, chosen, rejected; none: RewardBench's, from the hub")

    def check(self, known: FinishedRun) -> None:
        """Raise ConfigError, before anything runs, if there is no such evaluator, command or pairs."""
        if known.artifacts.evaluator is None:
            raise ConfigError(
                f"run {known.experiment.name!r} has trained no evaluator: RewardBench has nothing to measure"
            )
        if not known.experiment.evaluator.exports_classifier:
            raise ConfigError(
                f"RewardBench's command takes sequence classifiers, and evaluator "
                f"{known.experiment.evaluator.kind_name()!r} is none: use reward_head"
            )
        version_of(command(settings().rewardbench))
        contrasts(self.pairs)


def run_reward_bench(known: FinishedRun, ranking: RewardBenchConfig, batch_size: int) -> dict[str, Any]:
    """Return the row of the evaluator's accuracy, chance in the place of M_1."""
    assert known.artifacts.evaluator is not None  # noqa: S101 - `check` has seen to it
    config, artifacts = known.experiment, known.artifacts
    program = command(settings().rewardbench)
    found = reward_bench(
        Trained(
            evaluator=config.evaluator,
            evaluator_ref=known.artifacts.evaluator.ref,
            policy=artifacts.sft_policy,
            rubric=config.labelling.rubric,
        ),
        ranking.pairs,
        content=digest_of(contrasts(ranking.pairs)),
        program=program,
        version=version_of(program),
        batch_size=batch_size,
    )
    rows = store().rows(found.ref, QuestionResult)
    accuracy = weighted_mean(np.array([row.score for row in rows]), np.array(found.weights))
    return {
        "benchmark": NAME,
        "metric": "the evaluator's accuracy, beside chance",
        "questions": len(rows),
        "left_out": 0,
        "truncated": int(found.facts["truncated"]),
        "before": _CHANCE,
        "after": accuracy.mean,
        "gain": Interval(*(value - _CHANCE for value in accuracy)),
    }
