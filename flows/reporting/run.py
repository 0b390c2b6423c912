"""Build the report of a run (JSON, Markdown, HTML, figures) and log its figures to MLflow."""

import json
import math
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flows.config.experiment import Experiment
from flows.reporting.figures import figure_pages
from flows.reporting.run_text import to_html, to_markdown
from flows.reporting.storage import finite, report_in, write_text, writing
from flows.steps.results import HELD_OUT, Agreement, RunResults, both_scored, pairs_of, per_prompt, picked
from flows.tracking.budget_audit import reconcile
from flows.tracking.mlflow import log_dataset, log_metrics, register
from flows.tracking.run import RunTracker
from models.core.arrays import FloatArray
from models.core.data import Comparison, Label, Pair, Prompt, Score, to_frame
from models.core.money import MICRO
from models.metrics.selective import Decision
from tasks.engine.caching import saved_seconds
from tasks.engine.store import store
from tasks.labelling.batches import labels_of

_SAMPLES, _BINS = 8, 24
_BIASES = ("longer_preferred", "longer_preferred_by_oracle", "format_shift")
# of the last purchase: whether length moves the oracle, whether it agrees with itself, what it could not be understood in
_ORACLE_FACTS = {
    *("length_correlation", "order_consistency", "first_place_share", "calls", "unreadable_replies", "refused"),
    *("judgements", "krippendorff_alpha"),
}


def write_report(arm: RunTracker, results: RunResults) -> dict[str, Any]:
    """Write the report, log everything to the arm's MLflow run and return the report."""
    comparisons = store().rows(results.outcome.ref, Comparison)
    scored = results.artifacts.scores
    proxy = np.array([s.score for s in store().rows(scored.ref, Score)] if scored is not None else [])
    report: dict[str, Any] = finite(_report(arm, results, comparisons, proxy))
    _log_metrics(arm, report)
    books = reconcile(arm)
    report["books"] = {**asdict(books), "agree": books.agree}
    figures = figure_pages(
        bought=np.array([label.score for label in labels_of(results.artifacts.history) if label.status == "labelled"]),
        proxy=proxy,
        agreement=both_scored(results)[1:],
        comparisons=comparisons,
        report=report,
    )
    with writing(arm.experiment.name) as folder:
        if (before := report_in(folder)) is not None and before["mlflow_run"] != arm.run_id:
            for left in [*folder.glob("*.png"), *folder.glob("benchmarks.*")]:  # of another experiment of this name
                left.unlink()
        for name, picture in figures.items():
            picture.write(folder / f"{name}.png")
        write_text(folder / "report.json", json.dumps(report, indent=2, allow_nan=False))
        write_text(folder / "report.md", to_markdown(report))
        write_text(folder / "report.html", to_html(report, list(figures)))
        picked(results.artifacts.history).to_parquet(folder / "acquisition.parquet", index=False)
        per_prompt(results, comparisons).to_parquet(folder / HELD_OUT, index=False)
        _log(arm, results, comparisons, folder)
    return report


def _report(arm: RunTracker, results: RunResults, comparisons: list[Comparison], proxy: FloatArray) -> dict[str, Any]:
    x, outcome = arm.experiment, results.outcome.facts
    pairs = Counter(p.provenance for p in pairs_of(results))
    labels = labels_of(results.artifacts.history)
    now = time.monotonic() - arm.started
    return {
        "name": x.name,
        "arm": x.digest(),
        "inputs": x.prompts.digest_inputs(),
        "mlflow_run": arm.run_id,
        "accounts": sorted({bought.account for bought in [*arm.purchases, *arm.measurements]}),
        "strategy": x.strategy,
        "feedback": x.feedback,
        "labels_shuffled": x.labelling.shuffle_labels,
        "oracle": x.labelling.oracle.description,
        "oracle_simulated": x.labelling.oracle.simulated,
        "query_type": x.labelling.oracle.query_type,
        "evaluation_oracle": x.evaluation_oracle.description,
        "evaluation_oracle_simulated": x.evaluation_oracle.simulated,
        "pairwise_judge": _of_the_pairwise_judge(x, results),
        "selection_seed": x.seeds.selection,
        "training_seed": x.seeds.training,
        "queries": arm.queries,
        "queries_bought": arm.total("bought_queries"),
        "micro_usd": arm.total("micro_usd"),
        "micro_usd_paid": arm.total("bought_micro_usd"),
        "tokens": arm.total("tokens"),
        "lost_queries": arm.total("lost_queries"),
        "oracle_facts": {name: value for name, value in arm.facts.get("annotate", {}).items() if name in _ORACLE_FACTS},
        "quarantined": sum(label.status == "quarantined" for label in labels),
        "unscored": int(outcome["unscored"]),
        "evaluation_queries": arm.total("queries", evaluation=True),
        "evaluation_micro_usd": arm.total("micro_usd", evaluation=True),
        "pairs": pairs.total(),
        "proxy_pairs": pairs["proxy"],
        "oracle_pairs": pairs["oracle"],
        "pairs_per_query": pairs["proxy"] / max(arm.queries, 1),
        "tied_prompts": int(arm.facts.get("build_pairs", {}).get("tied_prompts", 0)),
        "too_long": {stage: int(facts["too_long"]) for stage, facts in arm.facts.items() if facts.get("too_long")},
        "prompts_over_long": list(results.artifacts.prompts.over_long),
        "gate": _of_the_gate(arm, results.artifacts.gate),
        "scores": _of_the_scores(arm.facts.get("score"), proxy),
        "evaluator": _of_the_evaluator(x, results.agreement),
        "best_of": results.best_of,
        "curve": [{"share": point.share, **point.facts} for point in results.curve],
        "policy": {
            "model": x.policy.model,
            "win_rate": outcome["win_rate"],
            "win_rate_ci": [outcome["win_rate_low"], outcome["win_rate_high"]],
            "lc_win_rate": outcome["lc_win_rate"],
            "lc_win_rate_ci": [outcome["lc_win_rate_low"], outcome["lc_win_rate_high"]],
            "length_effect": outcome["length_effect"],
            "tie_rate": outcome["tie_rate"],
            "oracle_mean_before": outcome["oracle_mean_before"],
            "oracle_mean_after": outcome["oracle_mean_after"],
            "oracle_gain": outcome["oracle_gain"],
            "oracle_gain_ci": [outcome["oracle_gain_low"], outcome["oracle_gain_high"]],
            "kl": outcome["kl"],
            "tokens_before": outcome["tokens_before"],
            "tokens_after": outcome["tokens_after"],
            "nll_per_token_before": outcome["nll_per_token_before"],
            "nll_per_token_after": outcome["nll_per_token_after"],
            "diversity_before": outcome["diversity_before"],
            "diversity_after": outcome["diversity_after"],
            "distinct_2_before": outcome["distinct_2_before"],
            "distinct_2_after": outcome["distinct_2_after"],
        },
        "made": results.artifacts.record(),
        "stages": [{"name": run.name, "cached": run.cached, "seconds": run.seconds} for run in arm.stages],
        "seconds": now + saved_seconds(arm.stages),
        "seconds_now": now,
        "samples": [asdict(c) for c in comparisons[:: max(len(comparisons) // _SAMPLES, 1)][:_SAMPLES]],
    }


def _of_the_pairwise_judge(x: Experiment, results: RunResults) -> dict[str, Any] | None:
    judge = x.evaluation.pairwise_judge
    if judge is None:
        return None
    return {
        "oracle": judge.description,
        "simulated": judge.simulated,
        "order_consistency": results.order_consistency,
        "undecided": int(results.outcome.facts["undecided"]),
    }


def _of_the_gate(arm: RunTracker, decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    found = decision.model_dump(exclude={"calibration"})
    facts, gate = arm.facts.get("build_pairs", {}), arm.experiment.gate
    return found | {
        "sentence": decision.sentence,
        "pairs_of": decision.pairs_of,
        "calibration": gate.calibration,
        "temperature": decision.calibration.temperature,
        "queries": gate.relabel_queries,
        "left_out": int(facts.get("doubtful_prompts", 0)),
    }


def _of_the_scores(facts: dict[str, float] | None, proxy: FloatArray) -> dict[str, Any] | None:
    """Return how the evaluator's scores of the last round are spread: `counts` between `edges`, and whether they are one."""
    if facts is None:
        return None
    counts, edges = np.histogram(proxy, bins=_BINS)
    shares = {name: facts[name] for name in ("top_share", "tied_pairs", "unparsed")}
    return {**shares, "counts": counts.tolist(), "edges": edges.tolist()}


def _of_the_evaluator(x: Experiment, agreement: Agreement | None) -> dict[str, Any] | None:
    if agreement is None:
        return None
    facts = agreement.facts
    found: dict[str, Any] = {"kind": x.evaluator.label(), "calibration_error": facts["calibration_error"]}
    for prefix in ("", "shuffled_"):
        accuracy = [facts.get(f"{prefix}pair_accuracy{end}", math.nan) for end in ("", "_low", "_high")]
        alike = [facts.get(f"{prefix}similar_length_{end}", math.nan) for end in ("mean", "low", "high")]
        found |= {f"{prefix}pair_accuracy": accuracy[0], f"{prefix}pair_accuracy_ci": accuracy[1:]}
        found |= {f"{prefix}similar_length": alike[0], f"{prefix}similar_length_ci": alike[1:]}
        found |= {f"{prefix}spearman": facts.get(f"{prefix}spearman", math.nan)}
    for name in _BIASES:
        mean, *interval = (facts[f"{name}_{end}"] for end in ("mean", "low", "high"))
        found |= {name: mean, f"{name}_ci": interval}
    return found | {"position_bias": facts.get("position_bias", math.nan)}


def _log_metrics(arm: RunTracker, report: dict[str, Any]) -> None:
    scalars = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for section in ("evaluator", "policy"):
        scalars |= {f"{section}.{k}": v for k, v in (report[section] or {}).items() if isinstance(v, float)}
    # the columns that people sort by, under names that need no explanation
    scalars |= {"dollars": report["micro_usd"] / MICRO, "win_rate": report["policy"]["win_rate"]}
    accuracy = (report["evaluator"] or {}).get("pair_accuracy")
    scalars |= {"agreement": accuracy} if accuracy is not None else {}
    scalars |= {name: value for name, value in (report["best_of"] or {}).items() if value is not None}
    for run in arm.stages:
        scalars |= {f"seconds.{run.name}": run.seconds, f"cached.{run.name}": float(run.cached)}
    log_metrics(scalars, step=arm.queries)


def _log(arm: RunTracker, results: RunResults, comparisons: list[Comparison], folder: Path) -> None:
    import mlflow

    mlflow.log_artifacts(str(folder), "report")
    # the table format of the MLflow UI; log_table would append to it at every rerun
    table = to_frame(comparisons, Comparison).to_json(orient="split", index=False)
    mlflow.log_text(table, "comparisons.json")
    log_dataset(
        to_frame(store().rows(results.artifacts.prompts.pool, Prompt), Prompt),
        "pool",
        results.artifacts.prompts.pool,
        "generation",
    )
    for number, batch in enumerate(results.artifacts.history):
        frame = to_frame(store().rows(batch.labels, Label), Label)
        log_dataset(frame, f"labels-{number}", batch.labels, "evaluator")
    artifacts, name = results.artifacts, f"ninefold-{arm.experiment.name}"
    if artifacts.pairs is not None:
        log_dataset(to_frame(pairs_of(results), Pair), "pairs", artifacts.pairs.ref, "dpo")
    if artifacts.evaluator is not None:
        register(f"{name}-evaluator", artifacts.evaluator.ref, arm.run_id, store().folder(artifacts.evaluator.ref))
    if artifacts.policy.adapters:
        adapter = artifacts.policy.adapters[-1]
        register(f"{name}-policy", adapter, arm.run_id, store().folder(adapter))
