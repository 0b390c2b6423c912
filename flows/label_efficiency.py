"""Study of label efficiency on recorded labels: learning curves of strategies and their controls."""

import json
import time
from typing import Any

import numpy as np
from prefect import flow

from flows.config.study import LabelEfficiency, StudyArm
from flows.reporting.figures import learning_curves
from flows.reporting.storage import finite, write_text, writing
from flows.reporting.study_text import page
from flows.steps.stages import base_policy
from flows.tracking.mlflow import study_run
from models.core import progress
from models.core.arrays import FloatArray
from models.core.rubric import Rubric
from models.metrics.intervals import clustered_mean, paired_difference
from models.metrics.learning_curves import area, saving
from models.studies.recorded import Point
from tasks.data.recorded_labels import Curve, Recorded, ViewRef, curve, load_recording
from tasks.policy.embed import embed_sharded


@flow(name="label-efficiency", flow_run_name="{study.name}")
def label_efficiency(study: LabelEfficiency) -> dict[str, Any]:
    """Run the study and return its report (also written to the reports folder and to MLflow)."""
    started = time.monotonic()
    recorded = load_recording(
        study.labels, fingerprint=study.labels.fingerprint(), responses_per_prompt=study.responses_per_prompt
    )
    views = _views(study, recorded)
    arms = study.arms()
    curves: dict[str, list[Curve]] = {arm.name: [] for arm in arms}
    with progress.bar(total=len(arms) * study.seeds, desc="learning curves", unit="curve") as bar:
        for seed in range(study.seeds):
            for arm in arms:
                bar.set_postfix_str(arm.name)
                curves[arm.name].append(
                    curve(
                        recorded,
                        views,
                        arm.strategy,
                        arm.evaluator,
                        budgets=study.budgets,
                        held_out=study.held_out,
                        seed=seed,
                        shuffle=arm.shuffle,
                    )
                )
                bar.update()
    tables = {name: np.array([[tuple(p) for p in c.points] for c in found]) for name, found in curves.items()}
    report = {
        "name": study.name,
        "labels": str(study.labels.path),
        "tuples": recorded.responses.rows,
        "budgets": list(study.budgets),
        "seeds": study.seeds,
        "target_labels": [study.budgets[place] for place in _targets(len(study.budgets))],
        "arms": [_summary(arm, tables[arm.name], tables["random"], tables["random_pairs"]) for arm in arms],
        "seconds": time.monotonic() - started,
    }
    _write(study, report)
    return report


def _views(study: LabelEfficiency, recorded: Recorded) -> tuple[ViewRef, ...]:
    policy = base_policy(study.policy) if study.policy and study.embedding.needs_policy else None
    found = []
    for view in study.views():
        vectors = embed_sharded(recorded.responses, study.embedding, view=view, rubric=Rubric(), policy=policy)
        found.append(ViewRef(view, vectors))
        if view == "response":
            found.append(ViewRef("evaluation", vectors))
    return tuple(found)


def _column(table: FloatArray, name: str) -> FloatArray:
    """Return one figure of every seed and budget, shape (seeds, budgets)."""
    return table[:, :, Point._fields.index(name)]


def _summary(arm: StudyArm, table: FloatArray, control: FloatArray, pairs: FloatArray) -> dict[str, Any]:
    """Return an arm's mean curve and what it gains on random and on random pairs, with paired intervals over seeds."""
    labels = _column(table, "labels")[0]
    ours, random = (_column(t, "pair_accuracy") for t in (table, control))
    money = tuple(_column(t, "micro_usd") for t in (table, control))
    saved = [saving(labels, (money[0], money[1]), (ours, random), place=p) for p in _targets(len(labels))]
    alike = tuple(area(labels, _column(t, "similar_length")) for t in (table, control))
    seeds = np.arange(len(table))
    return {
        "name": arm.name,
        "area": clustered_mean(area(labels, ours), seeds).mean,
        "area_gain": paired_difference(area(labels, ours), area(labels, random)),
        "pairs_area_gain": paired_difference(area(labels, ours), area(labels, _column(pairs, "pair_accuracy"))),
        "similar_length_area_gain": paired_difference(*alike),
        "saved_labels": [found.labels for found in saved],
        "saved_micro_usd": [found.micro_usd for found in saved],
        "curve": [
            {
                "labels": int(labels[place]),
                "micro_usd": float(money[0][:, place].mean()),
                **{
                    name: clustered_mean(_column(table, name)[:, place], seeds)
                    for name in ("pair_accuracy", "similar_length", "spearman", "calibration_error")
                },
            }
            for place in range(len(labels))
        ],
    }


def _targets(budgets: int) -> list[int]:
    """Return the budgets whose accuracy others are to reach: one on the slope of the curve, one near its end."""
    return sorted({(budgets - 1) // 2, budgets - 2})


def _write(study: LabelEfficiency, report: dict[str, Any]) -> None:
    with writing(study.name) as folder:
        (folder / "curves.png").write_bytes(learning_curves(report))
        write_text(folder / "report.json", json.dumps(finite(report), indent=2, allow_nan=False))
        page(report).write(folder, "report")
    params = {"evaluator": study.evaluator.kind_name(), "seeds": study.seeds, "budget": study.budgets[-1]}
    study_run(study.name, report["arms"], params, folder)
