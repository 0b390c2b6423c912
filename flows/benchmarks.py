"""Run benchmarks on the SFT policy (M_1) and the aligned policy (M_2) of a finished run, with an interval for the gain."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow

from flows.evaluation.alpaca_eval import AlpacaEvalConfig, run_alpaca_eval
from flows.evaluation.reward_bench import NAME as REWARDBENCH
from flows.evaluation.reward_bench import RewardBenchConfig, run_reward_bench
from flows.reporting.export import load_finished_run
from flows.reporting.render import markdown_table
from flows.reporting.storage import finite, write_text, writing
from flows.tracking.mlflow import EXPERIMENT, log_metrics, open_experiment
from models.benchmarks.lm_eval import Task, check
from models.core.data import QuestionResult
from models.core.errors import ConfigError
from models.metrics.intervals import Interval, averaged, clustered_mean
from tasks.engine.caching import StageResult
from tasks.engine.store import store
from tasks.evaluation.alpaca_eval import AT_EQUAL_LENGTH, RAW
from tasks.evaluation.lm_eval import benchmark

COLUMNS = ("benchmark", "metric", "questions", "M₁", "M₂", "gain")
AVERAGE = "average"
SUITES: dict[str, tuple[str, ...]] = {
    "paper": (RAW, "mmlu:5", "mmlu:0"),
    "alpaca_eval": (RAW,),
    "mmlu": ("mmlu:0", "mmlu:5"),
    "bbh": ("bbh",),
    "ifeval": ("ifeval",),
    REWARDBENCH: (REWARDBENCH,),
    "all": (RAW, "mmlu:0", "mmlu:5", "bbh", "ifeval"),
}

_AVERAGED = {*SUITES["paper"], AT_EQUAL_LENGTH}


@flow(name="benchmarks", flow_run_name="{run}")
def benchmarks(
    run: str,
    tasks: Sequence[Task],
    *,
    alpaca_eval: AlpacaEvalConfig | None = None,
    reward_bench: RewardBenchConfig | None = None,
    average: bool = False,
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """Return a row for each benchmark, and log them to the run in MLflow and to its report's folder.

    `run` is a finished run's name or MLflow id. `average` adds the mean of the gains of the paper's benchmarks, the win rate
    being the length-controlled one where there is one. What was graded before comes from the cache, what was judged from the
    ledger. Raises ConfigError, before anything runs or is bought, if there is no such run, task or judge.
    """
    import mlflow

    known = load_finished_run(run)
    check(tasks)
    if alpaca_eval is not None:
        alpaca_eval.check()
    if reward_bench is not None:
        reward_bench.check(known)
    policies = (known.artifacts.sft_policy, known.artifacts.policy)
    rows: list[dict[str, Any]] = []
    if alpaca_eval is not None:
        graded, over_long = run_alpaca_eval(known, policies, alpaca_eval)
        told = {"judge": alpaca_eval.judge.endpoint.model, "limit": alpaca_eval.limit}
        rows = [_row(each.name, each.before, each.after, each.reach, over_long) | told for each in graded]
    for task in tasks:
        identity = task.identity()
        before, after = (benchmark(policy, task, identity=identity, batch_size=batch_size) for policy in policies)
        rows.append(_row(task.kind_name(), before, after) | {"limit": task.limit})
    if average:
        rows.append(_average(rows))
    if reward_bench is not None:
        rows.append(run_reward_bench(known, reward_bench, batch_size))
    with writing(known.experiment.name) as folder:
        kept = folder / "benchmarks.json"
        taken = {row["benchmark"]: row for row in _taken(kept)}  # what was taken before stays beside it
        for stale in _stale({row["benchmark"] for row in rows}):
            taken.pop(stale, None)
        taken |= {row["benchmark"]: row for row in rows}
        write_text(kept, json.dumps([finite(row) for row in taken.values()], indent=1))
        write_text(folder / "benchmarks.md", markdown_table(COLUMNS, [cells(row) for row in taken.values()]) + "\n")
    open_experiment(EXPERIMENT)
    with mlflow.start_run(run_id=known.report.mlflow_run):
        for row in rows:
            name = f"benchmark.{row['benchmark'].replace(':', '-')}"
            named = {f"{name}.m1": row["before"], f"{name}.m2": row["after"], f"{name}.gain": row["gain"].mean}
            log_metrics(named, step=known.report.queries)
        for file in ("benchmarks.json", "benchmarks.md"):
            mlflow.log_artifact(str(Path(folder, file)), "report")
    return rows


def _taken(kept: Path) -> list[dict[str, Any]]:
    """Return the rows of earlier evaluations."""
    rows = json.loads(kept.read_text()) if kept.exists() else []
    return [row | {"gain": Interval.of(row["gain"])} for row in rows]


def _stale(new: set[str]) -> set[str]:
    """Return the rows that new ones, having replaced a part of them, make untrue."""
    of_contest = {AT_EQUAL_LENGTH} if RAW in new else set()
    return (of_contest | ({AVERAGE} if new & _AVERAGED else set())) - new


def _row(
    name: str, before: StageResult, after: StageResult, reach: tuple[float, float] | None = None, too_long: int = 0
) -> dict[str, Any]:
    """Return what both policies get for the questions that both have a grade for; `too_long` of them were not asked."""
    first, second = (
        {(row.task, row.question): row for row in store().rows(graded.ref, QuestionResult)}
        for graded in (before, after)
    )
    shared = [question for question in first if question in second]
    if not shared:
        raise ConfigError(f"benchmark {name} has no question that both policies have a grade for")
    old, new = (np.array([rows[question].score for question in shared]) for rows in (first, second))
    gain = clustered_mean(new - old, np.arange(len(shared)))
    if reach is not None:
        gain = Interval(gain.mean, gain.mean - reach[0], gain.mean + reach[1])
    return {
        "benchmark": name,
        "metric": ", ".join(sorted({first[question].metric for question in shared})),
        "questions": len(shared),
        "left_out": len(first.keys() | second.keys()) - len(shared) + too_long,
        "before": float(old.mean()),
        "after": float(new.mean()),
        "gain": gain,
    }


def _average(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the paper's row: the mean over benchmarks, each of the same weight."""
    names = {row["benchmark"] for row in rows}
    counted = _AVERAGED - ({RAW} if AT_EQUAL_LENGTH in names else set())
    rows = [row for row in rows if row["benchmark"] in counted]
    gain = averaged([row["gain"] for row in rows], [row["benchmark"].partition(":")[0] for row in rows])
    return {
        "benchmark": AVERAGE,
        "metric": f"mean of {', '.join(row['benchmark'] for row in rows)}",
        "questions": sum(row["questions"] for row in rows),
        "left_out": sum(row["left_out"] for row in rows),
        "before": float(np.mean([row["before"] for row in rows])),
        "after": float(np.mean([row["after"] for row in rows])),
        "gain": gain,
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row as people read it, under COLUMNS."""
    mean, low, high = row["gain"]
    interval = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"  # of one question
    gain = f"{mean:+.3f}{interval}"
    left_out = f" ({row['left_out']} left out)" if row.get("left_out") else ""  # older rows do not say
    questions = f"{row['questions']}{left_out}"
    return (row["benchmark"], row["metric"], questions, f"{row['before']:.3f}", f"{row['after']:.3f}", gain)
