"""Put the report of a run into words, for the terminal and for its page."""

from collections.abc import Sequence
from math import exp, isfinite, isnan

from flows.reporting.render import Facts, Notes, Page, Pictures, Table
from flows.reporting.schema import BestOf, EvaluatorReport, GateReport, PolicyReport, RunReport, ScoreSpread
from models.core.money import dollars
from models.metrics.intervals import Interval
from models.metrics.selective import ANY_PAIR

_COLLAPSED = 0.5  # more of the scores than this being one value is a collapse
_FINISHED = 0.1  # less of the responses ended by the model itself is worth a word
_READABLE = 0.9  # likewise of the held-out answers that can be read
_LEANS = 0.5  # standard deviations that a change of format may move a score


def headlines(report: RunReport) -> list[tuple[str, str]]:
    """Return the report's main lines as (name, value), for the terminal, Markdown and HTML alike."""
    policy = report.policy
    simulated = " — simulated" if report.oracle_simulated else ""
    judge = report.evaluation_oracle + (" — simulated" if report.evaluation_oracle_simulated else "")
    compared = " comparisons" if report.query_type == "pairwise" else ""
    reused = report.queries - report.queries_bought
    return [
        ("oracle", f"{report.oracle}{simulated}"),
        ("strategy", f"{report.strategy} (selection seed {report.selection_seed})"),
        (
            "queries",
            f"{report.queries}{compared} for {dollars(report.micro_usd)}"
            + (f", of which {reused} were owned already" if reused else "")
            + (f", {report.quarantined} quarantined" if report.quarantined else "")
            + (f", {report.lost_queries} without a reply, counted as paid" if report.lost_queries else "")
            + _asked_again(report),
        ),
        *(_of_the_oracle(report.oracle_facts) if report.queries else []),
        ("pairs", f"{report.proxy_pairs} by proxy, {report.oracle_pairs} by the oracle" + _other_pairs(report)),
        *([("pairs per query", f"{report.pairs_per_query:.1f}")] if report.queries else []),
        *_of_the_gate(report.gate),
        *_of_the_scores(report.scores),
        *_of_the_evaluator(report.evaluator),
        ("win rate", f"{_with_interval(policy.win_rate)} of M₂ against M₁{_by(report)}"),
        *_at_equal_length(policy),
        *_of_the_best_of(report.best_of),
        (
            "oracle's mean",
            f"{_number(policy.oracle_mean_before)} → {_number(policy.oracle_mean_after)}, "
            f"gain {_with_interval(policy.oracle_gain)}",
        ),
        ("KL to M₁", f"{_number(policy.kl)} nats per answer (mean log-ratio over M₂'s answers)"),
        ("length", f"{policy.tokens_before:.1f} → {policy.tokens_after:.1f} tokens"),
        (
            "fluency",
            f"{_number(policy.nll_per_token_before)} → {_number(policy.nll_per_token_after)} nats per token under M₀",
        ),
        *_of_the_diversity(policy),
        (
            "evaluation",
            f"{report.evaluation_queries} further queries of {judge}{_versus(report)}, which trained nothing",
        ),
        ("time", f"{report.seconds:.0f} s{_of_the_cache(report)}"),
    ]


def _asked_again(report: RunReport) -> str:
    return f", {report.asked_again} asked again for {dollars(report.asked_again_micro_usd)} on top" * bool(
        report.asked_again
    )


def _of_the_cache(report: RunReport) -> str:
    cached = sum(stage.cached for stage in report.stages)
    return f"; {report.seconds_now:.0f} s now, with {cached} stages from cache" if cached else ""


def _versus(report: RunReport) -> str:
    return f" and of {report.pairwise_judge.oracle}" if report.pairwise_judge else ""


def _by(report: RunReport) -> str:
    """Return who has compared the answers, where it was not their scores."""
    judge = report.pairwise_judge
    if judge is None:
        return ""
    told = f", by {judge.oracle}" + (" — simulated" if judge.simulated else "")
    return told if isnan(judge.order_consistency) else f"{told}; both orders agree in {judge.order_consistency:.0%}"


def _at_equal_length(policy: PolicyReport) -> list[tuple[str, str]]:
    effect = f"a much longer answer gains {policy.length_effect:+.2f} logits on a much shorter one"
    rate = _with_interval(policy.lc_win_rate)
    return [("  at equal length", f"{rate} (length-controlled, 2404.04475); {effect}")]


def _of_the_best_of(best: BestOf | None) -> list[tuple[str, str]]:
    if best is None:
        return []
    told = f"of M₁'s best by the evaluator against M₁, at a KL of at most {best.kl:.2f} nats"
    return [(f"  best of {best.count}", f"{_with_interval(best.win_rate)} {told}")]


def _of_the_diversity(policy: PolicyReport) -> list[tuple[str, str]]:
    if isnan(policy.diversity_before) or isnan(policy.diversity_after):
        return []
    shares = f"{policy.diversity_before:.0%} → {policy.diversity_after:.0%}"
    distinct = f"{_number(policy.distinct_2_before)} → {_number(policy.distinct_2_after)}"
    told = f"two answers to a prompt differ in {shares} of their word pairs"
    return [("diversity", f"{told}; distinct-2 {distinct}")]


def _other_pairs(report: RunReport) -> str:
    others = report.pairs - report.proxy_pairs - report.oracle_pairs
    return f", {others} by demonstrations" if others else ""


def _of_the_evaluator(evaluator: EvaluatorReport | None) -> list[tuple[str, str]]:
    if evaluator is None:
        return [("evaluator", "none was trained")]

    def shown(accuracy: Interval, alike: Interval, spearman: float) -> str:
        return (
            f"pair accuracy {_with_interval(accuracy)}, of similar length {_with_interval(alike)}, "
            f"Spearman {_number(spearman)}"
        )

    found = shown(evaluator.pair_accuracy, evaluator.similar_length, evaluator.spearman)
    lines = [("evaluator", f"{evaluator.kind}: {found}")]
    if not isnan(evaluator.shuffled_spearman):
        control = (evaluator.shuffled_pair_accuracy, evaluator.shuffled_similar_length, evaluator.shuffled_spearman)
        lines.append(("  on shuffled labels", shown(*control)))
    lines.append(("  leans on", _leanings(evaluator)))
    return lines


def _leanings(evaluator: EvaluatorReport) -> str:
    longer, by_oracle = evaluator.longer_preferred.mean, evaluator.longer_preferred_by_oracle.mean
    told = "length: " + (
        "no two responses of one prompt differ in it"
        if isnan(longer)
        else f"the longer response wins in {longer:.0%} of the pairs of one prompt, in {_share(by_oracle)} by the oracle"
    )
    shift = evaluator.format_shift
    if isfinite(shift.mean):
        interval = "" if isnan(shift.low) else f" [{shift.low:+.2f}, {shift.high:+.2f}]"
        told += f"; format: as a list the same text scores {shift.mean:+.2f}{interval} standard deviations"
    if isfinite(bias := evaluator.position_bias):
        told += f"; place: of two equals the first wins with probability {1 / (1 + exp(-bias)):.2f}"
    return told


def _of_the_gate(gate: GateReport | None) -> list[tuple[str, str]]:
    if gate is None:
        return []
    line = gate.verdict
    if isfinite(gate.agreement.mean):
        line += (
            f": agrees in {_with_interval(gate.agreement)} of {gate.pairs} pairs of labels left out, {gate.pairs_of}; "
            f"calibration error {_number(gate.calibration_error)}"
        )
    lines = [("gate", line)]
    if gate.threshold > ANY_PAIR:
        kept = f", {gate.relabel_queries} queries kept for them" if gate.relabel_queries else ""
        lines.append(
            (
                f"  sure of {gate.threshold:.0%}",
                f"{_share(gate.coverage)} of pairs left out, wrong in {_share(gate.risk)}; {gate.left_out} prompts "
                f"gave no pair{kept}",
            )
        )
    return lines


def _of_the_scores(scores: ScoreSpread | None) -> list[tuple[str, str]]:
    if scores is None:
        return []
    unparsed = f"; {scores.unparsed:.0f} judgements could not be read" if scores.unparsed else ""
    return [
        (
            "scores",
            f"the commonest is {_share(scores.top_share)} of all; of the pairs of one prompt "
            f"{_share(scores.tied_pairs)} are tied{unparsed}",
        )
    ]


def _of_the_oracle(facts: dict[str, float]) -> list[tuple[str, str]]:
    """Return the lines about how an oracle judges; none about what is not known of it."""
    correlation = _number(facts.get("length_correlation", float("nan")))
    lines = [("  length", f"Spearman {correlation} between length and the oracle's score")]
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
    for name, told in (("empty", "without a word"), ("cut_off", "cut off before their end")):
        if facts.get(f"{name}_replies"):
            lines.append((f"  {told}", f"{facts[f'{name}_replies']:.0f} of {facts['calls']:.0f} replies"))
    if facts.get("refused"):
        lines.append(("  refused", f"{facts['refused']:.0f} questions, by the oracle's server: not billed"))
    return lines


def warnings(report: RunReport) -> list[str]:
    """Return what a reader must know before believing the headlines."""
    found = []
    if report.feedback == "none":
        found.append("The zero line: M₂ is M₁, and nothing was trained on preferences.")
    if report.labels_shuffled:
        found.append(
            "Control arm: the evaluator was trained on shuffled labels, so any gain below is not label signal."
        )
    found += _of_the_responses(report)
    if report.gate and report.gate.verdict != "better than chance":
        found.append(report.gate.sentence)
    if report.scores and report.scores.top_share > _COLLAPSED:
        found.append(
            f"Score collapse: {report.scores.top_share:.0%} of the evaluator's scores are one value, and of the pairs of "
            f"one prompt {_share(report.scores.tied_pairs)} are tied. What is left to learn from is chosen by little."
        )
    if report.evaluator is not None:
        shift, accuracy = report.evaluator.format_shift.mean, report.evaluator.pair_accuracy
        if abs(shift) > _LEANS:
            found.append(
                f"The evaluator leans on format: written as a list, the same text scores {shift:+.2f} standard deviations."
            )
        if not accuracy.low > 0.5:  # NaN is not known
            found.append("The evaluator's pair accuracy is not distinguishable from chance on the held-out prompts.")
    gain = report.policy.oracle_gain
    if isnan(gain.low) or gain.low <= 0 <= gain.high:
        found.append("The interval of the gain covers zero: this run shows no effect.")
    audit = report.budget_audit
    if not audit.agree:
        found.append(
            f"The budget audit fails: ledger {dollars(audit.ledger)}, replies {dollars(audit.replies)} and "
            f"{dollars(audit.lost)} without a reply, MLflow {dollars(audit.mlflow)}. Was the ledger changed since?"
        )
    if report.unscored:
        found.append(
            f"{report.unscored} held-out pairs of answers lack a score of the oracle, and are not in the win rate."
        )
    if report.pairwise_judge and report.pairwise_judge.undecided:
        found.append(
            f"{report.pairwise_judge.undecided} held-out comparisons were not decided, and are not in the win rate."
        )
    found += [
        f"{count} rows were too long for {stage} and left out of it (named in its log): raise its max_length."
        for stage, count in report.too_long.items()
    ]
    if report.prompts_over_long:
        found.append(f"{len(report.prompts_over_long)} prompts were too long and set aside.")
    found.append("One run is an anecdote: compare seeds, and arms at equal budget, before concluding.")
    return found


def _of_the_responses(report: RunReport) -> list[str]:
    """Return what is odd about what the policies have written."""
    found = []
    if report.responses.get("finished", 1.0) < _FINISHED:
        found.append(
            f"Only {report.responses['finished']:.0%} of the responses end where the model ends them; the others were "
            "cut off at generation.max_new_tokens, and were judged and trained on so: raise it, or see policy.template."
        )
    if report.policy.readable_after < min(_READABLE, report.policy.readable_before):
        found.append(
            f"M₂ writes text in {report.policy.readable_after:.0%} of its held-out answers, M₁ in "
            f"{report.policy.readable_before:.0%}: its training has broken it. Lower dpo.learning_rate, or raise dpo.beta."
        )
    return found


def page(report: RunReport, pictures: Sequence[str]) -> Page:
    """Return the report's page; the pictures lie beside it, by name."""
    answers = [
        (each.prompt, each.before, _number(each.before_score), each.after, _number(each.after_score))
        for each in report.samples
    ]
    stages = [(each.name, f"{each.seconds:.1f}", "yes" if each.cached else "no") for each in report.stages]
    return Page(
        report.name,
        [
            Facts(headlines(report)),
            Notes(warnings(report)),
            Pictures({f"{name}.png": name for name in pictures}),
            Table(("prompt", "M₁", "oracle", "M₂", "oracle"), answers, heading="Held-out answers"),
            Table(("stage", "seconds", "from cache"), stages, heading="Stages"),
        ],
    )


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return "–" if isnan(value) else f"{value:.0%}"


def _with_interval(found: Interval) -> str:
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]"
