"""The one-page report of an arm: JSON for programs, Markdown and HTML for people, the same figures in MLflow."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.figures import figure_pages
from flows.pages import to_html, to_markdown
from flows.reconciliation import reconcile
from flows.tracking import Arm, log_dataset, log_metrics, register
from models.preference import Comparison, Label, Pair, Pick, Prompt, Response, Score, to_frame, usable_scores
from tasks.caching import Product
from tasks.history import Batch, labels_of
from tasks.policy import Policy
from tasks.prompts import PromptSets
from tasks.settings import settings
from tasks.store import Ref, store

_SAMPLES = 8
# of the last purchase: whether length moves the expert, whether it agrees with itself, what it could not be understood in
_EXPERT_FACTS = {
    *("length_correlation", "order_consistency", "first_place_share", "calls", "unreadable_replies"),
    *("judgements", "krippendorff_alpha"),
}


@dataclass(frozen=True)
class Rounds:
    """What the rounds have made: the policies, all that was bought, and the last round's artifacts."""

    prompts: PromptSets
    first: Policy
    policy: Policy
    history: tuple[Batch, ...]
    evaluator: Ref
    scores: Ref
    pairs: Ref


@dataclass(frozen=True)
class Findings:
    """What the report is made of: what the rounds made, the held-out answers, and the facts of the two assessments."""

    rounds: Rounds
    held_out: Ref
    held_out_labels: Ref
    held_out_scores: Ref
    agreement: dict[str, float]
    outcome: Product


def write_report(arm: Arm, findings: Findings) -> dict[str, Any]:
    """Write the report, log everything to the arm's MLflow run and return the report."""
    comparisons = store().rows(findings.outcome.ref, Comparison)
    report: dict[str, Any] = _finite(_report(arm, findings, comparisons))
    _log_metrics(arm, report)
    books = reconcile(arm)
    report["books"] = {**asdict(books), "agree": books.agree}
    folder = report_folder(arm.experiment.name)
    folder.mkdir(parents=True, exist_ok=True)
    figures = figure_pages(
        bought=np.array([label.score for label in labels_of(findings.rounds.history) if label.status == "labelled"]),
        proxy=np.array([s.score for s in store().rows(findings.rounds.scores, Score)]),
        agreement=_agreement_points(findings),
        comparisons=comparisons,
        report=report,
    )
    for name, picture in figures.items():
        (folder / f"{name}.png").write_bytes(picture)
    write_text(folder / "report.json", json.dumps(report, indent=2, allow_nan=False))
    write_text(folder / "report.md", to_markdown(report))
    write_text(folder / "report.html", to_html(report, list(figures)))
    picked(findings.rounds.history).to_parquet(folder / "acquisition.parquet", index=False)
    _log(arm, findings, comparisons, folder)
    return report


def picked(history: tuple[Batch, ...]) -> pd.DataFrame:
    """Return every pick in order: turn, tuple or pair, utility and why, and the label it brought (none where unasked)."""
    tables = []
    for turn, batch in enumerate(history):
        frame = to_frame(store().rows(batch.picks, Pick), Pick)
        texts = to_frame(store().rows(batch.responses, Response), Response)[["id", "prompt", "text"]]
        labels = to_frame(store().rows(batch.labels, Label), Label)[["response_id", "score", "micro_usd", "status"]]
        frame = frame.merge(texts.rename(columns={"id": "response_id"}), on="response_id", how="left")
        frame = frame.assign(against_text=frame.against.map(texts.set_index("id").text))
        tables.append(frame.merge(labels, on="response_id", how="left").assign(turn=turn))
    return pd.concat(tables, ignore_index=True)


def report_folder(name: str) -> Path:
    """Return where the report of an experiment lies."""
    return settings().home / "reports" / name


def _report(arm: Arm, findings: Findings, comparisons: list[Comparison]) -> dict[str, Any]:
    x, outcome, agreement = arm.experiment, findings.outcome.facts, findings.agreement
    pairs = store().rows(findings.rounds.pairs, Pair)
    proxy_pairs = sum(p.provenance == "proxy" for p in pairs)
    labels = labels_of(findings.rounds.history)
    return {
        "name": x.name,
        "arm": x.digest(),
        "mlflow_run": arm.run_id,
        "accounts": sorted({bought.account for bought in [*arm.purchases, *arm.measurements]}),
        "strategy": x.labelling.acquisition.label(),
        "labels_shuffled": x.labelling.shuffle_labels,
        "oracle": x.labelling.oracle.description,
        "oracle_simulated": x.labelling.oracle.simulated,
        "oracle_unit": x.labelling.oracle.unit,
        "evaluation_oracle": x.judge.description,
        "evaluation_oracle_simulated": x.judge.simulated,
        "selection_seed": x.seeds.selection,
        "training_seed": x.seeds.training,
        "queries": arm.queries,
        "queries_bought": arm.total("bought_queries"),
        "micro_usd": arm.total("micro_usd"),
        "micro_usd_paid": arm.total("bought_micro_usd"),
        "tokens": arm.total("tokens"),
        "lost_queries": arm.total("lost_queries"),
        "expert": {name: value for name, value in arm.facts["annotate"].items() if name in _EXPERT_FACTS},
        "quarantined": sum(label.status == "quarantined" for label in labels),
        "evaluation_queries": arm.total("queries", evaluation=True),
        "evaluation_micro_usd": arm.total("micro_usd", evaluation=True),
        "proxy_pairs": proxy_pairs,
        "oracle_pairs": len(pairs) - proxy_pairs,
        "pairs_per_query": proxy_pairs / max(arm.queries, 1),
        "tied_prompts": int(arm.facts["pair"]["tied_prompts"]),
        "prompts_over_long": list(findings.rounds.prompts.over_long),
        "evaluator": {
            "kind": x.evaluator.label(),
            "pair_accuracy": agreement["pair_accuracy"],
            "pair_accuracy_ci": [agreement["pair_accuracy_low"], agreement["pair_accuracy_high"]],
            "similar_length": agreement["similar_length_mean"],
            "similar_length_ci": [agreement["similar_length_low"], agreement["similar_length_high"]],
            "spearman": agreement["spearman"],
            "calibration_error": agreement["calibration_error"],
            "shuffled_pair_accuracy": agreement["shuffled_pair_accuracy"],
            "shuffled_pair_accuracy_ci": [
                agreement["shuffled_pair_accuracy_low"],
                agreement["shuffled_pair_accuracy_high"],
            ],
            "shuffled_spearman": agreement["shuffled_spearman"],
        },
        "policy": {
            "model": x.policy.model,
            "win_rate": outcome["win_rate"],
            "win_rate_ci": [outcome["win_rate_low"], outcome["win_rate_high"]],
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
        },
        "stages": [asdict(run) for run in arm.stages],
        "seconds": time.monotonic() - arm.started,
        "samples": [asdict(c) for c in comparisons[:: max(len(comparisons) // _SAMPLES, 1)][:_SAMPLES]],
    }


def _log_metrics(arm: Arm, report: dict[str, Any]) -> None:
    scalars = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for section in ("evaluator", "policy"):
        scalars |= {f"{section}.{k}": v for k, v in report[section].items() if isinstance(v, float)}
    for run in arm.stages:
        scalars |= {f"seconds.{run.name}": run.seconds, f"cached.{run.name}": float(run.cached)}
    log_metrics(scalars, step=arm.queries)


def _log(arm: Arm, findings: Findings, comparisons: list[Comparison], folder: Path) -> None:
    import mlflow

    mlflow.log_artifacts(str(folder), "report")
    # the table format of the MLflow UI; log_table would append to it at every rerun
    table = to_frame(comparisons, Comparison).to_json(orient="split", index=False)
    mlflow.log_text(table, "comparisons.json")
    log_dataset(
        to_frame(store().rows(findings.rounds.prompts.pool, Prompt), Prompt),
        "pool",
        findings.rounds.prompts.pool,
        "generation",
    )
    for number, batch in enumerate(findings.rounds.history):
        frame = to_frame(store().rows(batch.labels, Label), Label)
        log_dataset(frame, f"labels-{number}", batch.labels, "evaluator")
    log_dataset(to_frame(store().rows(findings.rounds.pairs, Pair), Pair), "pairs", findings.rounds.pairs, "dpo")
    name = f"ninefold-{arm.experiment.name}"
    register(f"{name}-evaluator", findings.rounds.evaluator, arm.run_id, store().folder(findings.rounds.evaluator))
    if findings.rounds.policy.adapters:
        adapter = findings.rounds.policy.adapters[-1]
        register(f"{name}-policy", adapter, arm.run_id, store().folder(adapter))


def _agreement_points(findings: Findings) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    expert = usable_scores(store().rows(findings.held_out_labels, Label))
    proxy = {s.response_id: s.score for s in store().rows(findings.held_out_scores, Score)}
    shared = [r.id for r in store().rows(findings.held_out, Response) if r.id in expert and r.id in proxy]
    return np.array([expert[i] for i in shared]), np.array([proxy[i] for i in shared])


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Return the value with None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
