"""Stages: evaluator and policy against the oracle on held-out prompts."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from models.core.data import Comparison, Label, Response, Score, Selection, usable_comparisons, usable_scores
from models.core.errors import ConfigError
from models.core.registry import Frozen
from models.core.usable import is_readable
from models.metrics.agreement import SIMILAR_LENGTH, agreement, centred, group_ids, pair_outcomes, rank_correlation
from models.metrics.calibration import Calibration
from models.metrics.diversity import apart, distinct_bigrams
from models.metrics.intervals import clustered_mean
from models.metrics.length_control import length_controlled
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.evaluator.score import Scored
from tasks.policy.logprobs import kl, sums_of


@stage(version=6)
def assess_evaluator(
    responses: Ref,
    labels: Ref,
    scores: Scored,
    control: Scored | None,
    calibration: Calibration | None,
    *,
    across_prompts: bool = True,
) -> dict[str, float]:
    """Return the evaluator's agreement with the oracle, and that of the shuffled-label control, if any, beside it.

    Also over the pairs of similar length alone: longer is often better, and an evaluator must know more than that. The
    `calibration` is the gate's, of the evaluator's logits. Where scores do not compare `across_prompts`, the rank
    correlation is with the oracle's scores less their prompt's mean.
    """
    facts: dict[str, float] = {}
    asked, oracle = store().rows(responses, Response), usable_scores(store().rows(labels, Label))
    for prefix, given in (("", scores), ("shuffled_", control)):
        if given is None:
            continue
        # in logits of preference, which the calibration error is about; the order is that of the scores
        temperature = given.facts["temperature"]
        proxy = {s.response_id: s.score / temperature for s in store().rows(given.ref, Score)}
        rows = [r for r in asked if r.id in proxy and r.id in oracle]
        prompt = group_ids([r.prompt_id for r in rows])
        compared = (
            np.array([oracle[r.id] for r in rows]),
            np.array([proxy[r.id] for r in rows]),
            prompt,
        )
        known = None if calibration is None or prefix else calibration.probability
        found = agreement(*compared, known)
        interval = clustered_mean(*pair_outcomes(*compared))
        length = np.array([float(len(r.text)) for r in rows])
        alike = clustered_mean(*pair_outcomes(*compared, length=length, length_share=SIMILAR_LENGTH))
        facts |= {f"{prefix}{name}": float(value) for name, value in found._asdict().items()}
        if not across_prompts:
            facts[f"{prefix}spearman"] = rank_correlation(centred(compared[0], compared[2]), compared[1])
        facts |= {f"{prefix}pair_accuracy_low": interval.low, f"{prefix}pair_accuracy_high": interval.high}
        facts |= {f"{prefix}similar_length_{name}": value for name, value in alike._asdict().items()}
    return facts


class AnswerPairs(Frozen):
    """Refs of both policies' answers (Response rows), and of who stands against whom (Pick rows)."""

    responses: Ref
    picks: Ref


class PairwiseVerdicts(Frozen):
    """Ref of what a pairwise oracle has said of M_2's answers against M_1's; None where no two of them differ.

    `order_consistency` is the share of comparisons in which both orders agree, NaN where the oracle has no orders.
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset({"order_consistency"})

    labels: Ref | None
    order_consistency: float = float("nan")


@stage(version=1)
def pair_answers(before: Ref, after: Ref) -> AnswerPairs:
    """Return M_2's answers against M_1's of the same prompt and number; those of the same words are ties, and not asked."""
    first = {(r.prompt_id, r.sample): r for r in store().rows(before, Response)}
    pairs = [
        (r, other)
        for r in store().rows(after, Response)
        if (other := first.get((r.prompt_id, r.sample))) is not None and other.text != r.text
    ]
    rows = {r.id: r for pair in pairs for r in pair}
    picks = {(new.id, old.id): Selection(new.id, 0.0, against=old.id) for new, old in pairs}
    return AnswerPairs(
        responses=store().write_rows("responses", list(rows.values()), Response),
        picks=store().write_rows("picks", list(picks.values()), Selection),
    )


class Drift(Frozen):
    """Refs of what `likelihood` says of the answers: of M_2's under M_2, M_1 and M_0, and of M_1's under M_0."""

    after: Ref
    after_by_first: Ref
    after_by_base: Ref
    before_by_base: Ref


@stage(version=6)
def assess_policy(
    before: Ref, after: Ref, *, verdicts: PairwiseVerdicts | None, before_labels: Ref, after_labels: Ref, drift: Drift
) -> StageResult:
    """Return the held-out comparisons; facts: win rates, oracle means, KL, length, fluency, diversity.

    KL is the mean over M_2's answers, as they were sampled, of log π_2(y|x) − log π_1(y|x) at temperature 1, in nats per
    answer. Who wins is said by `versus`, or else by the scores; fluency is the mean negative log-likelihood per token under
    the base model M_0, which neither adapter has touched. Pairs of answers of which the oracle has not scored both are
    `unscored`, and left out.
    """
    first, second = store().rows(before, Response), store().rows(after, Response)
    scores = usable_scores([*store().rows(before_labels, Label), *store().rows(after_labels, Label)])
    matched = {(r.prompt_id, r.sample): r for r in second}
    said = (
        {} if verdicts is None or verdicts.labels is None else usable_comparisons(store().rows(verdicts.labels, Label))
    )
    scored = [
        (r, other)
        for r in first
        if (other := matched.get((r.prompt_id, r.sample))) and {r.id, other.id} <= scores.keys()
    ]
    comparisons = [
        Comparison(r.prompt_id, r.prompt, r.text, other.text, scores[r.id], scores[other.id], won)
        for r, other in scored
        for won in _win_share(r, other, said if verdicts is not None else None, scores)
    ]
    undecided = len(scored) - len(comparisons)
    if not comparisons:
        judge = (
            "evaluation.pairwise_judge has decided none of the held-out comparisons, or" if verdicts is not None else ""
        )
        raise ConfigError(
            f"{judge} no held-out prompt has an oracle score for both policies: check the oracle's failures".strip()
        )
    facts = _outcome(comparisons) | _drift(first, second, drift)
    unscored = sum((r.prompt_id, r.sample) in matched for r in first) - len(scored)
    facts |= _diversity(first, second) | {"undecided": float(undecided), "unscored": float(unscored)}
    return StageResult(ref=store().write_rows("comparisons", comparisons, Comparison), facts=facts)


def _win_share(
    old: Response, new: Response, said: Mapping[tuple[str, str], float] | None, scores: Mapping[str, float]
) -> list[float]:
    """Return the new answer's share of a win; nothing where the one who compares has said nothing that could be read."""
    if said is None:
        return [float(np.sign(scores[new.id] - scores[old.id]) + 1) / 2]
    if old.text == new.text:
        return [0.5]
    verdict = said.get((new.id, old.id))
    return [] if verdict is None else [(verdict + 1) / 2]


def _outcome(comparisons: list[Comparison]) -> dict[str, float]:
    old = np.array([c.before_score for c in comparisons])
    new = np.array([c.after_score for c in comparisons])
    prompt = group_ids([c.prompt_id for c in comparisons])
    won, longer_by = (
        np.array([c.won for c in comparisons]),
        np.array([float(len(c.after) - len(c.before)) for c in comparisons]),
    )
    wins, gain = clustered_mean(won, prompt), clustered_mean(new - old, prompt)
    controlled = length_controlled(won, longer_by, prompt)
    return {
        "lc_win_rate": controlled.win_rate.mean,
        "lc_win_rate_low": controlled.win_rate.low,
        "lc_win_rate_high": controlled.win_rate.high,
        "length_effect": controlled.length_effect,
        "win_rate": wins.mean,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
        "tie_rate": float((won == 0.5).mean()),
        "oracle_mean_before": float(old.mean()),
        "oracle_mean_after": float(new.mean()),
        "oracle_gain": gain.mean,
        "oracle_gain_low": gain.low,
        "oracle_gain_high": gain.high,
        "comparisons": float(len(comparisons)),
    }


def _drift(first: list[Response], second: list[Response], drift: Drift) -> dict[str, float]:
    base_old, base_new = sums_of(drift.before_by_base), sums_of(drift.after_by_base)
    return {
        "kl": kl(drift.after, drift.after_by_first),
        "tokens_before": float(np.mean([r.tokens for r in first])),
        "tokens_after": float(np.mean([r.tokens for r in second])),
        "nll_per_token_before": float(-base_old.logprob.sum() / base_old.tokens.sum()),
        "nll_per_token_after": float(-base_new.logprob.sum() / base_new.tokens.sum()),
    }


def _diversity(first: list[Response], second: list[Response]) -> dict[str, float]:
    words = min(sum(len(r.text.split()) for r in rows) for rows in (first, second))
    facts: dict[str, float] = {}
    for when, rows in (("before", first), ("after", second)):
        texts = [r.text for r in rows]
        facts[f"diversity_{when}"] = apart(texts, group_ids([r.prompt_id for r in rows])).mean
        facts[f"distinct_2_{when}"] = distinct_bigrams(texts, words)
        facts[f"readable_{when}"] = float(np.mean([is_readable(text) for text in texts]))
    return facts
