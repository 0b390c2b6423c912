"""Build the report of a run (JSON, Markdown, HTML, figures) and log its figures to MLflow."""

import math
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flows.config.experiment import Experiment
from flows.reporting.figures import figure_pages
from flows.reporting.run_text import page
from flows.reporting.schema import (
    BestOf,
    CurvePoint,
    EvaluatorReport,
    GateReport,
    PairwiseJudge,
    PolicyReport,
    RunReport,
    Sample,
    ScoreSpread,
    StageRun,
)
from flows.reporting.storage import report_in, write_text, writing
from flows.steps.results import HELD_OUT, EvaluatorAgreement, RunResults, both_scored, pairs_of, per_prompt, picked
from flows.tracking.budget_audit import audit_budget
from flows.tracking.mlflow import log_dataset, log_metrics, register
from flows.tracking.run import RunTracker
from models.core.arrays import FloatArray
from models.core.data import Comparison, Label, Pair, Prompt, Score, to_frame
from models.core.money import MICRO
from models.core.usable import ResponseShares
from models.labelling.unanswered import account_of_retries
from models.metrics.intervals import Interval
from models.metrics.selective import Decision
from tasks.engine.caching import saved_seconds
from tasks.engine.ledgers import open_ledger
from tasks.engine.store import store
from tasks.labelling.batches import labels_of

_SAMPLES, _BINS = 8, 24
_LEANINGS = ("longer_preferred", "longer_preferred_by_oracle", "format_shift")
# of the last purchase: whether length moves the oracle, whether it agrees with itself, what it could not be understood in
_ORACLE_FACTS = {
    *("length_correlation", "order_consistency", "first_place_share", "calls", "unreadable_replies", "refused"),
    *("empty_replies", "cut_off_replies", "readable", "distinct_scores"),
    *("judgements", "krippendorff_alpha"),
}


def write_report(arm: RunTracker, results: RunResults) -> RunReport:
    """Write the report, log everything to the arm's MLflow run and return the report."""
    comparisons = store().rows(results.outcome.ref, Comparison)
    scored = results.artifacts.scores
    proxy = np.array([s.score for s in store().rows(scored.ref, Score)] if scored is not None else [])
    money = {"micro_usd": arm.total("micro_usd"), "evaluation_micro_usd": arm.total("micro_usd", evaluation=True)}
    log_metrics({name: float(value) for name, value in money.items()}, step=arm.queries)  # the audit reads them again
    report = _report(arm, results, comparisons, proxy)
    _log_metrics(report, results, known={"schema_version", *money})
    figures = figure_pages(
        bought=np.array([label.score for label in labels_of(results.artifacts.history) if label.status == "labelled"]),
        proxy=proxy,
        agreement=both_scored(results)[1:],
        comparisons=comparisons,
        report=report,
    )
    with writing(arm.experiment.name) as folder:
        if (before := report_in(folder)) is not None and before.mlflow_run != arm.run_id:
            for left in [*folder.glob("*.png"), *folder.glob("benchmarks.*")]:  # of another experiment of this name
                left.unlink()
        for name, picture in figures.items():
            picture.write(folder / f"{name}.png")
        write_text(folder / "report.json", report.model_dump_json(indent=2))
        page(report, list(figures)).write(folder, "report")
        picked(results.artifacts.history).to_parquet(folder / "acquisition.parquet", index=False)
        per_prompt(results, comparisons).to_parquet(folder / HELD_OUT, index=False)
        _log(arm, results, comparisons, folder)
    return report


def _report(arm: RunTracker, results: RunResults, comparisons: list[Comparison], proxy: FloatArray) -> RunReport:
    config, labels = arm.experiment, labels_of(results.artifacts.history)
    pairs = Counter(p.provenance for p in pairs_of(results))
    now = time.monotonic() - arm.started
    accounts = sorted({bought.account for bought in [*arm.purchases, *arm.measurements]})
    ledger = open_ledger()
    again = [ledger.spent(account_of_retries(account)) for account in accounts]
    return RunReport(
        name=config.name,
        arm=config.digest(),
        inputs=config.prompts.digest_inputs(),
        mlflow_run=arm.run_id,
        accounts=tuple(accounts),
        strategy=config.strategy,
        feedback=config.feedback,
        labels_shuffled=config.labelling.shuffle_labels,
        oracle=config.labelling.oracle.description,
        oracle_simulated=config.labelling.oracle.simulated,
        query_type=config.labelling.oracle.query_type,
        evaluation_oracle=config.evaluation_oracle.description,
        evaluation_oracle_simulated=config.evaluation_oracle.simulated,
        pairwise_judge=_pairwise_judge(config, results),
        selection_seed=config.seeds.selection,
        training_seed=config.seeds.training,
        queries=arm.queries,
        queries_bought=arm.total("bought_queries"),
        micro_usd=arm.total("micro_usd"),
        micro_usd_paid=arm.total("bought_micro_usd"),
        tokens=arm.total("tokens"),
        lost_queries=arm.total("lost_queries"),
        oracle_facts={name: value for name, value in arm.facts.get("annotate", {}).items() if name in _ORACLE_FACTS},
        responses={
            name: value for name, value in arm.facts.get("generate", {}).items() if name in ResponseShares._fields
        },
        quarantined=sum(label.status == "quarantined" for label in labels),
        asked_again=sum(spent.queries for spent in again),
        asked_again_micro_usd=sum(spent.micro_usd for spent in again),
        unscored=int(results.outcome.facts["unscored"]),
        evaluation_queries=arm.total("queries", evaluation=True),
        evaluation_micro_usd=arm.total("micro_usd", evaluation=True),
        pairs=pairs.total(),
        proxy_pairs=pairs["proxy"],
        oracle_pairs=pairs["oracle"],
        pairs_per_query=pairs["proxy"] / max(arm.queries, 1),
        tied_prompts=int(arm.facts.get("build_pairs", {}).get("tied_prompts", 0)),
        too_long={stage: int(facts["too_long"]) for stage, facts in arm.facts.items() if facts.get("too_long")},
        prompts_over_long=tuple(results.artifacts.prompts.over_long),
        gate=_gate(arm, results.artifacts.gate),
        scores=_score_spread(arm.facts.get("score"), proxy),
        evaluator=_evaluator(config, results.agreement),
        best_of=_best_of(results.best_of),
        curve=tuple(CurvePoint(share=point.share, **point.facts) for point in results.curve),
        policy=_policy(config, results.outcome.facts),
        budget_audit=audit_budget(arm),
        artifacts=results.artifacts.record(),
        stages=tuple(StageRun(name=run.name, cached=run.cached, seconds=run.seconds) for run in arm.stages),
        seconds=now + saved_seconds(arm.stages),
        seconds_now=now,
        samples=tuple(Sample(**asdict(c)) for c in comparisons[:: max(len(comparisons) // _SAMPLES, 1)][:_SAMPLES]),
    )


def _interval(facts: dict[str, float], name: str, *, mean: str = "") -> Interval:
    """Return an interval that a stage has told in three facts; NaN where it has not."""
    return Interval(*(facts.get(f"{name}{end}", math.nan) for end in (mean, "_low", "_high")))


def _pairwise_judge(config: Experiment, results: RunResults) -> PairwiseJudge | None:
    judge = config.evaluation.pairwise_judge
    if judge is None:
        return None
    return PairwiseJudge(
        oracle=judge.description,
        simulated=judge.simulated,
        order_consistency=results.order_consistency,
        undecided=int(results.outcome.facts["undecided"]),
    )


def _gate(arm: RunTracker, decision: Decision | None) -> GateReport | None:
    if decision is None:
        return None
    gate = arm.experiment.gate
    return GateReport(
        **decision.model_dump(exclude={"calibration", "agreement", "low", "high"}),
        agreement=Interval(decision.agreement, decision.low, decision.high),
        sentence=decision.sentence,
        pairs_of=decision.pairs_of,
        calibration=gate.calibration,
        temperature=decision.calibration.temperature,
        relabel_queries=gate.relabel_queries,
        left_out=int(arm.facts.get("build_pairs", {}).get("doubtful_prompts", 0)),
    )


def _score_spread(facts: dict[str, float] | None, proxy: FloatArray) -> ScoreSpread | None:
    if facts is None:
        return None
    counts, edges = np.histogram(proxy, bins=_BINS)
    shares = {name: facts[name] for name in ("top_share", "tied_pairs", "unparsed")}
    return ScoreSpread(**shares, counts=tuple(counts.tolist()), edges=tuple(edges.tolist()))


def _evaluator(config: Experiment, agreement: EvaluatorAgreement | None) -> EvaluatorReport | None:
    if agreement is None:
        return None
    facts = agreement.facts
    return EvaluatorReport(
        kind=config.evaluator.kind_name(),
        calibration_error=facts["calibration_error"],
        pair_accuracy=_interval(facts, "pair_accuracy"),
        similar_length=_interval(facts, "similar_length", mean="_mean"),
        spearman=facts.get("spearman", math.nan),
        shuffled_pair_accuracy=_interval(facts, "shuffled_pair_accuracy"),
        shuffled_similar_length=_interval(facts, "shuffled_similar_length", mean="_mean"),
        shuffled_spearman=facts.get("shuffled_spearman", math.nan),
        **{name: _interval(facts, name, mean="_mean") for name in _LEANINGS},
        position_bias=facts.get("position_bias", math.nan),
    )


def _best_of(facts: dict[str, float] | None) -> BestOf | None:
    if facts is None:
        return None
    return BestOf(
        count=int(facts["best_of"]),
        win_rate=_interval(facts, "best_of_win_rate"),
        gain=_interval(facts, "best_of_gain"),
        kl=facts["best_of_kl"],
    )


def _policy(config: Experiment, facts: dict[str, float]) -> PolicyReport:
    intervals = {name: _interval(facts, name) for name in ("win_rate", "lc_win_rate", "oracle_gain")}
    known = {name: value for name, value in facts.items() if name in PolicyReport.model_fields}
    return PolicyReport.model_validate({"model": config.policy.model, **known, **intervals})


def _log_metrics(report: RunReport, results: RunResults, *, known: set[str]) -> None:
    """Log every number of the report but those that are `known` to MLflow already."""
    plain = {name: value for name, value in report if isinstance(value, int | float) and not isinstance(value, bool)}
    scalars = {name: float(value) for name, value in plain.items() if name not in known}
    for name, section in (("evaluator", report.evaluator), ("policy", report.policy)):
        for field, value in section or ():
            if isinstance(value, float | Interval):
                scalars[f"{name}.{field}"] = value.mean if isinstance(value, Interval) else value
    # the columns that people sort by, under names that need no explanation
    scalars |= {"dollars": report.micro_usd / MICRO, "win_rate": report.policy.win_rate.mean}
    scalars |= {"agreement": report.evaluator.pair_accuracy.mean} if report.evaluator is not None else {}
    scalars |= results.best_of or {}
    for run in report.stages:
        scalars |= {f"seconds.{run.name}": run.seconds, f"cached.{run.name}": float(run.cached)}
    log_metrics(scalars, step=report.queries)


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
