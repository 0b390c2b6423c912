"""The one-page report of an arm: JSON for programs, Markdown and HTML for people, the same figures in MLflow."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.figures import figure_pages
from flows.tracking import Arm, log_dataset, log_metrics, register
from models.cost import dollars
from models.preference import Comparison, Label, Pair, Prompt, Response, Score, to_frame
from tasks.caching import Product
from tasks.history import Batch, labels_of, scores_of
from tasks.policy import Policy
from tasks.prompts import PromptSets
from tasks.settings import settings
from tasks.store import Ref, store

_SAMPLES = 8


@dataclass(frozen=True)
class Findings:
    """What the report is made of: Refs of the artifacts, and the facts of the two assessments."""

    prompts: PromptSets
    policy: Policy
    evaluator: Ref
    pool_scores: Ref
    pairs: Ref
    history: tuple[Batch, ...]
    held_out: Ref
    held_out_labels: Ref
    held_out_scores: Ref
    agreement: dict[str, float]
    outcome: Product


def write_report(arm: Arm, findings: Findings) -> dict[str, Any]:
    """Write the report, log everything to the arm's MLflow run and return the report."""
    report: dict[str, Any] = _finite(_report(arm, findings))
    folder = report_folder(arm.experiment.name)
    folder.mkdir(parents=True, exist_ok=True)
    figures = figure_pages(
        bought=np.array(list(scores_of(findings.history).values())),
        proxy=np.array([s.score for s in store().rows(findings.pool_scores, Score)]),
        agreement=_agreement_points(findings),
        comparisons=store().rows(findings.outcome.ref, Comparison),
        report=report,
    )
    for name, picture in figures.items():
        (folder / f"{name}.png").write_bytes(picture)
    markdown = to_markdown(report)
    _write(folder / "report.json", json.dumps(report, indent=2, allow_nan=False))
    _write(folder / "report.md", markdown)
    _write(folder / "report.html", to_html(report, list(figures)))
    _log(arm, findings, report, folder)
    return report


def report_folder(name: str) -> Path:
    """Return where the report of an experiment lies."""
    return settings().home / "reports" / name


def _report(arm: Arm, findings: Findings) -> dict[str, Any]:
    x, outcome, agreement = arm.experiment, findings.outcome.facts, findings.agreement
    comparisons = store().rows(findings.outcome.ref, Comparison)
    pairs = store().rows(findings.pairs, Pair)
    proxy_pairs = sum(p.provenance == "proxy" for p in pairs)
    labels = labels_of(findings.history)
    return {
        "name": x.name,
        "arm": x.digest(),
        "mlflow_run": arm.run_id,
        "strategy": x.labelling.acquisition.model_dump()["kind"],
        "labels_shuffled": x.labelling.shuffle_labels,
        "oracle": x.labelling.oracle.description,
        "oracle_simulated": x.labelling.oracle.simulated,
        "selection_seed": x.seeds.selection,
        "training_seed": x.seeds.training,
        "queries": arm.queries,
        "queries_bought": arm.total("bought_queries"),
        "micro_usd": arm.total("micro_usd"),
        "micro_usd_paid": arm.total("bought_micro_usd"),
        "quarantined": sum(label.status == "quarantined" for label in labels),
        "evaluation_queries": arm.total("queries", evaluation=True),
        "evaluation_micro_usd": arm.total("micro_usd", evaluation=True),
        "proxy_pairs": proxy_pairs,
        "oracle_pairs": len(pairs) - proxy_pairs,
        "pairs_per_query": proxy_pairs / max(arm.queries, 1),
        "tied_prompts": int(arm.facts["pair"]["tied_prompts"]),
        "prompts_over_long": list(findings.prompts.over_long),
        "evaluator": {
            "kind": x.evaluator.model_dump()["kind"],
            "pair_accuracy": agreement["pair_accuracy"],
            "pair_accuracy_ci": [agreement["pair_accuracy_low"], agreement["pair_accuracy_high"]],
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


def headlines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the report's main lines as (name, value), for the terminal, Markdown and HTML alike."""
    evaluator, policy = report["evaluator"], report["policy"]
    simulated = " — simulated" if report["oracle_simulated"] else ""
    reused = report["queries"] - report["queries_bought"]
    return [
        ("expert", f"{report['oracle']}{simulated}"),
        ("strategy", f"{report['strategy']} (selection seed {report['selection_seed']})"),
        (
            "queries",
            f"{report['queries']} for {dollars(report['micro_usd'])}"
            + (f", of which {reused} were owned already" if reused else "")
            + (f", {report['quarantined']} quarantined" if report["quarantined"] else ""),
        ),
        ("pairs", f"{report['proxy_pairs']} by proxy, {report['oracle_pairs']} by the expert"),
        ("pairs per query", f"{report['pairs_per_query']:.1f}"),
        (
            "evaluator",
            f"{evaluator['kind']}: pair accuracy "
            f"{_with_interval(evaluator['pair_accuracy'], evaluator['pair_accuracy_ci'])}, "
            f"Spearman {_number(evaluator['spearman'])}",
        ),
        (
            "  on shuffled labels",
            "pair accuracy "
            + _with_interval(evaluator["shuffled_pair_accuracy"], evaluator["shuffled_pair_accuracy_ci"])
            + f", Spearman {_number(evaluator['shuffled_spearman'])}",
        ),
        ("win rate", f"{_with_interval(policy['win_rate'], policy['win_rate_ci'])} of M₂ against M₁"),
        (
            "expert's mean",
            f"{policy['oracle_mean_before']:.2f} → {policy['oracle_mean_after']:.2f}, "
            f"gain {_with_interval(policy['oracle_gain'], policy['oracle_gain_ci'])}",
        ),
        ("KL to M₁", f"{policy['kl']:.2f} nats per answer (mean log-ratio over M₂'s answers)"),
        ("length", f"{policy['tokens_before']:.1f} → {policy['tokens_after']:.1f} tokens"),
        ("fluency", "{nll_per_token_before:.2f} → {nll_per_token_after:.2f} nats per token under M₀".format(**policy)),
        ("evaluation", f"{report['evaluation_queries']} further queries, which taught nothing"),
        (
            "time",
            f"{report['seconds']:.0f} s, {sum(s['cached'] for s in report['stages'])} stages from cache",
        ),
    ]


def warnings(report: dict[str, Any]) -> list[str]:
    """Return what a reader must know before believing the headlines."""
    found = []
    if report["labels_shuffled"]:
        found.append(
            "Control arm: the evaluator was trained on shuffled labels, so any gain below is not label signal."
        )
    low, _ = report["evaluator"]["pair_accuracy_ci"]
    if low is None or low <= 0.5:
        found.append("The evaluator's pair accuracy is not distinguishable from chance on the held-out prompts.")
    low, high = report["policy"]["oracle_gain_ci"]
    if low is None or low <= 0 <= high:
        found.append("The interval of the gain covers zero: this run shows no effect.")
    if report["prompts_over_long"]:
        found.append(f"{len(report['prompts_over_long'])} prompts were too long and set aside.")
    found.append("One run is an anecdote: compare seeds, and arms at equal budget, before concluding.")
    return found


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report['name']}", "", "| | |", "|---|---|"]
    lines += [f"| {name.strip()} | {value} |" for name, value in headlines(report)]
    lines += ["", *[f"> {warning}" for warning in warnings(report)], "", "## Held-out answers", ""]
    lines += ["| prompt | M₁ | expert | M₂ | expert |", "|---|---|---|---|---|"]
    for sample in report["samples"]:
        texts = [_cell(sample[key]) for key in ("prompt", "before", "after")]
        lines.append(
            f"| {texts[0]} | {texts[1]} | {sample['before_score']:.2f} | {texts[2]} | {sample['after_score']:.2f} |"
        )
    lines += ["", "## Stages", "", "| stage | seconds | from cache |", "|---|---|---|"]
    lines += [f"| {s['name']} | {s['seconds']:.1f} | {'yes' if s['cached'] else 'no'} |" for s in report["stages"]]
    return "\n".join(lines) + "\n"


def to_html(report: dict[str, Any], figures: list[str]) -> str:
    """Return the report as one HTML page; the figures lie beside it."""
    from html import escape

    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in headlines(report))
    notes = "".join(f"<p class=note>{escape(warning)}</p>" for warning in warnings(report))
    pictures = "".join(f'<img src="{name}.png" alt="{name}">' for name in figures)
    samples = "".join(
        f"<tr><td>{escape(s['prompt'])}</td><td>{escape(s['before'])}</td><td>{s['before_score']:.2f}</td>"
        f"<td>{escape(s['after'])}</td><td>{s['after_score']:.2f}</td></tr>"
        for s in report["samples"]
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report["name"])} · Ninefold</title>
<style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2330}}
table{{border-collapse:collapse;width:100%}}
td,th{{text-align:left;vertical-align:top;padding:.3rem .7rem;border-bottom:1px solid #dde1e8}}
th{{white-space:nowrap;font-weight:600}}
img{{width:32%;min-width:18rem;margin:.5rem .5% 0 0}}
.note{{background:#fff6dc;padding:.4rem .8rem;margin:.3rem 0}}
</style>
<h1>{escape(report["name"])}</h1><table>{rows}</table>{notes}<div>{pictures}</div><h2>Held-out answers</h2>
<table><tr><th>prompt</th><th>M₁</th><th>expert</th><th>M₂</th><th>expert</th></tr>{samples}</table></html>
"""


def _log(arm: Arm, findings: Findings, report: dict[str, Any], folder: Path) -> None:
    import mlflow

    scalars = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for section in ("evaluator", "policy"):
        scalars |= {f"{section}.{k}": v for k, v in report[section].items() if isinstance(v, float)}
    for run in arm.stages:
        scalars |= {f"seconds.{run.name}": run.seconds, f"cached.{run.name}": float(run.cached)}
    log_metrics(scalars, step=arm.queries)
    mlflow.log_artifacts(str(folder), "report")
    # the table format of the MLflow UI; log_table would append to it at every rerun
    comparisons = to_frame(store().rows(findings.outcome.ref, Comparison), Comparison)
    mlflow.log_text(comparisons.to_json(orient="split", index=False), "comparisons.json")
    log_dataset(
        to_frame(store().rows(findings.prompts.pool, Prompt), Prompt),
        "pool",
        findings.prompts.pool,
        "generation",
    )
    for number, batch in enumerate(findings.history):
        frame = to_frame(store().rows(batch.labels, Label), Label)
        log_dataset(frame, f"labels-{number}", batch.labels, "evaluator")
    log_dataset(to_frame(store().rows(findings.pairs, Pair), Pair), "pairs", findings.pairs, "dpo")
    name = f"ninefold-{arm.experiment.name}"
    register(f"{name}-evaluator", findings.evaluator, arm.run_id, store().folder(findings.evaluator))
    if findings.policy.adapters:
        adapter = findings.policy.adapters[-1]
        register(f"{name}-policy", adapter, arm.run_id, store().folder(adapter))


def _agreement_points(findings: Findings) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    expert = {e.response_id: e.score for e in store().rows(findings.held_out_labels, Label) if e.status == "labelled"}
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _with_interval(value: float | None, interval: list[float | None]) -> str:
    return f"{_number(value)} [{_number(interval[0])}, {_number(interval[1])}]"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
