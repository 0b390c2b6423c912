"""Render the report of a run for the terminal, as Markdown and as HTML."""

from html import escape
from math import exp
from typing import Any

from flows.reporting.render import STYLE
from models.core.money import dollars
from models.metrics.selective import ANY_PAIR

_COLLAPSED = 0.5  # more of the scores than this being one value is a collapse
_LEANS = 0.5  # standard deviations that a change of format may move a score


def headlines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the report's main lines as (name, value), for the terminal, Markdown and HTML alike."""
    evaluator, policy = report["evaluator"], report["policy"]
    simulated = " — simulated" if report["oracle_simulated"] else ""
    judge = report["evaluation_oracle"] + (" — simulated" if report["evaluation_oracle_simulated"] else "")
    asked = " comparisons" if report["query_type"] == "pairwise" else ""
    reused = report["queries"] - report["queries_bought"]
    return [
        ("oracle", f"{report['oracle']}{simulated}"),
        ("strategy", f"{report['strategy']} (selection seed {report['selection_seed']})"),
        (
            "queries",
            f"{report['queries']}{asked} for {dollars(report['micro_usd'])}"
            + (f", of which {reused} were owned already" if reused else "")
            + (f", {report['quarantined']} quarantined" if report["quarantined"] else "")
            + (f", {report['lost_queries']} without a reply, counted as paid" if report["lost_queries"] else ""),
        ),
        *(_of_the_oracle(report["oracle_facts"]) if report["queries"] else []),
        ("pairs", f"{report['proxy_pairs']} by proxy, {report['oracle_pairs']} by the oracle" + _other_pairs(report)),
        *([("pairs per query", f"{report['pairs_per_query']:.1f}")] if report["queries"] else []),
        *_of_the_gate(report.get("gate")),
        *_of_the_scores(report.get("scores")),
        *_of_the_evaluator(evaluator),
        ("win rate", f"{_with_interval(policy['win_rate'], policy['win_rate_ci'])} of M₂ against M₁{_by(report)}"),
        *_at_equal_length(policy),
        *_of_the_best_of(report.get("best_of")),
        (
            "oracle's mean",
            f"{policy['oracle_mean_before']:.2f} → {policy['oracle_mean_after']:.2f}, "
            f"gain {_with_interval(policy['oracle_gain'], policy['oracle_gain_ci'])}",
        ),
        ("KL to M₁", f"{policy['kl']:.2f} nats per answer (mean log-ratio over M₂'s answers)"),
        ("length", f"{policy['tokens_before']:.1f} → {policy['tokens_after']:.1f} tokens"),
        ("fluency", "{nll_per_token_before:.2f} → {nll_per_token_after:.2f} nats per token under M₀".format(**policy)),
        *_of_the_diversity(policy),
        (
            "evaluation",
            f"{report['evaluation_queries']} further queries of {judge}{_versus(report)}, which trained nothing",
        ),
        ("time", f"{report['seconds']:.0f} s{_of_the_cache(report)}"),
    ]


def _of_the_cache(report: dict[str, Any]) -> str:
    cached = sum(stage["cached"] for stage in report["stages"])
    return f"; {report['seconds_now']:.0f} s now, with {cached} stages from cache" if cached else ""


def _versus(report: dict[str, Any]) -> str:
    return f" and of {report['pairwise_judge']['oracle']}" if report.get("pairwise_judge") else ""


def _by(report: dict[str, Any]) -> str:
    """Return who has compared the answers, where it was not their scores."""
    if not (compared := report.get("pairwise_judge")):
        return ""
    told = f", by {compared['oracle']}" + (" — simulated" if compared["simulated"] else "")
    consistency = compared["order_consistency"]
    return told if consistency is None else f"{told}; both orders agree in {consistency:.0%}"


def _at_equal_length(policy: dict[str, Any]) -> list[tuple[str, str]]:
    if "lc_win_rate" not in policy:  # a report of an older version
        return []
    rate = _with_interval(policy["lc_win_rate"], policy["lc_win_rate_ci"])
    effect = f"a much longer answer gains {policy['length_effect']:+.2f} logits on a much shorter one"
    return [("  at equal length", f"{rate} (length-controlled, 2404.04475); {effect}")]


def _of_the_best_of(found: dict[str, float] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    rate = _with_interval(found["best_of_win_rate"], [found["best_of_win_rate_low"], found["best_of_win_rate_high"]])
    told = f"{rate} of M₁'s best by the evaluator against M₁, at a KL of at most {found['best_of_kl']:.2f} nats"
    return [(f"  best of {found['best_of']:.0f}", told)]


def _of_the_diversity(policy: dict[str, Any]) -> list[tuple[str, str]]:
    if policy.get("diversity_before") is None or policy["diversity_after"] is None:
        return []
    told = (
        "two answers to a prompt differ in {diversity_before:.0%} → {diversity_after:.0%} of their word pairs".format(
            **policy
        )
    )
    distinct = " → ".join(_number(policy[f"distinct_2_{when}"]) for when in ("before", "after"))
    return [("diversity", f"{told}; distinct-2 {distinct}")]


def _other_pairs(report: dict[str, Any]) -> str:
    others = report["pairs"] - report["proxy_pairs"] - report["oracle_pairs"]
    return f", {others} by demonstrations" if others else ""


def _of_the_evaluator(evaluator: dict[str, Any] | None) -> list[tuple[str, str]]:
    if evaluator is None:
        return [("evaluator", "none was trained")]

    def shown(prefix: str) -> str:
        accuracy = _with_interval(evaluator[f"{prefix}pair_accuracy"], evaluator[f"{prefix}pair_accuracy_ci"])
        alike = _with_interval(evaluator[f"{prefix}similar_length"], evaluator[f"{prefix}similar_length_ci"])
        return (
            f"pair accuracy {accuracy}, of similar length {alike}, Spearman {_number(evaluator[f'{prefix}spearman'])}"
        )

    lines = [("evaluator", f"{evaluator['kind']}: {shown('')}")]
    if evaluator["shuffled_spearman"] is not None:
        lines.append(("  on shuffled labels", shown("shuffled_")))
    if "longer_preferred" in evaluator:  # not in reports of an older version
        lines.append(("  leans on", _leanings(evaluator)))
    return lines


def _leanings(evaluator: dict[str, Any]) -> str:
    longer, by_oracle = evaluator["longer_preferred"], evaluator["longer_preferred_by_oracle"]
    told = "length: " + (
        "no two responses of one prompt differ in it"
        if longer is None
        else f"the longer response wins in {longer:.0%} of the pairs of one prompt, in {_share(by_oracle)} by the oracle"
    )
    if (shift := evaluator["format_shift"]) is not None:
        low, high = evaluator["format_shift_ci"]
        interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
        told += f"; format: as a list the same text scores {shift:+.2f}{interval} standard deviations"
    if (bias := evaluator["position_bias"]) is not None:
        told += f"; place: of two equals the first wins with probability {1 / (1 + exp(-bias)):.2f}"
    return told


def _of_the_gate(gate: dict[str, Any] | None) -> list[tuple[str, str]]:
    if gate is None:
        return []
    line = gate["verdict"]
    if gate["agreement"] is not None:
        interval = _with_interval(gate["agreement"], [gate["low"], gate["high"]])
        line += (
            f": agrees in {interval} of {gate['pairs']} pairs of labels left out, {gate['pairs_of']}; calibration error "
            f"{_number(gate['calibration_error'])}"
        )
    lines = [("gate", line)]
    if gate["threshold"] > ANY_PAIR:
        asked = f", {gate['queries']} queries kept for them" if gate["queries"] else ""
        lines.append(
            (
                f"  sure of {gate['threshold']:.0%}",
                f"{_share(gate['coverage'])} of pairs left out, wrong in {_share(gate['risk'])}; {gate['left_out']} prompts "
                f"gave no pair{asked}",
            )
        )
    return lines


def _of_the_scores(scores: dict[str, Any] | None) -> list[tuple[str, str]]:
    if scores is None:
        return []
    unparsed = f"; {scores['unparsed']:.0f} judgements could not be read" if scores["unparsed"] else ""
    return [
        (
            "scores",
            f"the commonest is {_share(scores['top_share'])} of all; of the pairs of one prompt "
            f"{_share(scores['tied_pairs'])} are tied{unparsed}",
        )
    ]


def _of_the_oracle(facts: dict[str, float | None]) -> list[tuple[str, str]]:
    """Return the lines about how an oracle judges; none about what is not known of it."""
    lines = [("  length", f"Spearman {_number(facts.get('length_correlation'))} between length and the oracle's score")]
    if "order_consistency" in facts:
        lines.append(
            (
                "  both orders",
                f"agree in {_share(facts['order_consistency'])} of the comparisons; "
                f"the first place won {_share(facts['first_place_share'])} of the untied",
            )
        )
    if "krippendorff_alpha" in facts:
        alpha = _number(facts["krippendorff_alpha"])
        lines.append(("  people", f"{facts['judgements']:.0f} judgements, Krippendorff's alpha {alpha}"))
    if facts.get("unreadable_replies"):
        lines.append(("  unreadable", f"{facts['unreadable_replies']:.0f} of {facts['calls']:.0f} replies"))
    if facts.get("refused"):
        lines.append(("  refused", f"{facts['refused']:.0f} questions, by the oracle's server: not billed"))
    return lines


def warnings(report: dict[str, Any]) -> list[str]:
    """Return what a reader must know before believing the headlines."""
    found = []
    if report["feedback"] == "none":
        found.append("The zero line: M₂ is M₁, and nothing was trained on preferences.")
    if report["labels_shuffled"]:
        found.append(
            "Control arm: the evaluator was trained on shuffled labels, so any gain below is not label signal."
        )
    gate = report.get("gate")  # reports of an older version have none
    if gate and gate["verdict"] != "better than chance":
        found.append(gate["sentence"])
    scores = report.get("scores")
    if scores and (scores["top_share"] or 0.0) > _COLLAPSED:
        found.append(
            f"Score collapse: {scores['top_share']:.0%} of the evaluator's scores are one value, and of the pairs of one "
            f"prompt {_share(scores['tied_pairs'])} are tied. What is left to learn from is chosen by little."
        )
    shift = (report["evaluator"] or {}).get("format_shift") or 0.0
    if abs(shift) > _LEANS:
        found.append(
            f"The evaluator leans on format: written as a list, the same text scores {shift:+.2f} standard deviations."
        )
    low = report["evaluator"]["pair_accuracy_ci"][0] if report["evaluator"] else 1.0
    if low is None or low <= 0.5:
        found.append("The evaluator's pair accuracy is not distinguishable from chance on the held-out prompts.")
    low, high = report["policy"]["oracle_gain_ci"]
    if low is None or low <= 0 <= high:
        found.append("The interval of the gain covers zero: this run shows no effect.")
    if not (books := report["books"])["agree"]:
        found.append(
            f"The books do not agree: ledger {dollars(books['ledger'])}, replies {dollars(books['replies'])} and "
            f"{dollars(books['lost'])} without a reply, MLflow {dollars(books['mlflow'])}. Was the ledger changed since?"
        )
    if report.get("unscored"):
        found.append(
            f"{report['unscored']} held-out pairs of answers lack a score of the oracle, and are not in the win rate."
        )
    if (compared := report.get("pairwise_judge")) and compared["undecided"]:
        found.append(f"{compared['undecided']} held-out comparisons were not decided, and are not in the win rate.")
    found += [
        f"{count} rows were too long for {stage} and left out of it (named in its log): raise its max_length."
        for stage, count in report.get("too_long", {}).items()
    ]
    if report["prompts_over_long"]:
        found.append(f"{len(report['prompts_over_long'])} prompts were too long and set aside.")
    found.append("One run is an anecdote: compare seeds, and arms at equal budget, before concluding.")
    return found


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report['name']}", "", "| | |", "|---|---|"]
    lines += [f"| {name.strip()} | {value} |" for name, value in headlines(report)]
    lines += ["", *[f"> {warning}" for warning in warnings(report)], "", "## Held-out answers", ""]
    lines += ["| prompt | M₁ | oracle | M₂ | oracle |", "|---|---|---|---|---|"]
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
{STYLE}
</style>
<h1>{escape(report["name"])}</h1><table>{rows}</table>{notes}<div>{pictures}</div><h2>Held-out answers</h2>
<table><tr><th>prompt</th><th>M₁</th><th>oracle</th><th>M₂</th><th>oracle</th></tr>{samples}</table></html>
"""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _with_interval(value: float | None, interval: list[float | None]) -> str:
    return f"{_number(value)} [{_number(interval[0])}, {_number(interval[1])}]"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
