"""Benchmarks of a finished run: M_1 and M_2 take the same questions, and the gain has an interval over them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow

from flows.export import finished
from flows.report import finite, report_folder, write_text
from flows.tables import markdown_table
from flows.tracking import EXPERIMENT, log_metrics, open_experiment
from models.harness import Task, check
from models.preference import Graded
from models.stats import clustered_mean
from tasks.benchmark import benchmark
from tasks.caching import Product
from tasks.store import store

COLUMNS = ("benchmark", "metric", "questions", "M₁", "M₂", "gain")


@flow(name="benchmarks", flow_run_name="{run}")
def benchmarks(run: str, tasks: Sequence[Task], batch_size: int = 8) -> list[dict[str, Any]]:
    """Return a row for each task, and log them to the run in MLflow and to its report's folder.

    `run` is a finished run's name or MLflow id. What was graded before comes from the cache. Raises ValueError, before
    anything runs, if there is no such run or task.
    """
    import mlflow

    known = finished(run)
    check(tasks)
    rows = []
    for task in tasks:
        before, after = (
            benchmark(policy, task, identity=task.identity(), batch_size=batch_size)
            for policy in (known.rounds.first, known.rounds.policy)
        )
        rows.append(_row(task, before, after))
    folder = report_folder(known.experiment.name)
    kept = folder / "benchmarks.json"
    taken = {row["benchmark"]: row for row in (json.loads(kept.read_text()) if kept.exists() else [])}
    taken |= {row["benchmark"]: row for row in finite(rows)}  # beside what was taken before
    write_text(kept, json.dumps(list(taken.values()), indent=1))
    write_text(folder / "benchmarks.md", markdown_table(COLUMNS, [cells(row) for row in taken.values()]) + "\n")
    open_experiment(EXPERIMENT)
    with mlflow.start_run(run_id=known.report["mlflow_run"]):
        for row in rows:
            name = f"benchmark.{row['benchmark'].replace(':', '-')}"
            named = {f"{name}.m1": row["before"], f"{name}.m2": row["after"], f"{name}.gain": row["gain"]}
            log_metrics(named, step=known.report["queries"])
        for file in ("benchmarks.json", "benchmarks.md"):
            mlflow.log_artifact(str(Path(folder, file)), "report")
    return rows


def _row(task: Task, before: Product, after: Product) -> dict[str, Any]:
    first, second = (store().rows(graded.ref, Graded) for graded in (before, after))
    if [(row.task, row.question) for row in first] != [(row.task, row.question) for row in second]:
        raise ValueError(f"benchmark {task.label()} asked M_1 and M_2 different questions: clear the cache of one")
    gain = clustered_mean(
        np.array([b.score - a.score for a, b in zip(first, second, strict=True)]), np.arange(len(first))
    )
    return {
        "benchmark": task.label(),
        "metric": ", ".join(sorted({row.metric for row in first})),
        "questions": len(first),
        "before": before.facts["mean"],
        "after": after.facts["mean"],
        "gain": gain.mean,
        "gain_ci": [gain.low, gain.high],
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row as people read it, under COLUMNS."""
    low, high = row["gain_ci"]
    interval = "" if low is None or math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"  # of one question
    gain = f"{row['gain']:+.3f}{interval}"
    return (row["benchmark"], row["metric"], str(row["questions"]), f"{row['before']:.3f}", f"{row['after']:.3f}", gain)
