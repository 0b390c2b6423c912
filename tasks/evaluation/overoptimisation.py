"""Stages: best-of-n by the evaluator, and proxy against oracle along training."""

import numpy as np

from models.core.data import Label, Response, Score, usable_scores
from models.metrics.agreement import group_ids, win_rate
from models.metrics.intervals import clustered_mean
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.evaluator.score import Scored
from tasks.policy.logprobs import kl


@stage(version=1)
def best_of(responses: Ref, scores: Ref) -> StageResult:
    """Return each prompt's response of the highest score (the first of equals), as Response rows."""
    score = {s.response_id: s.score for s in store().rows(scores, Score)}
    best: dict[str, Response] = {}
    for r in store().rows(responses, Response):
        held = best.get(r.prompt_id)
        if r.id in score and (held is None or score[r.id] > score[held.id]):
            best[r.prompt_id] = r
    return StageResult(ref=store().write_rows("responses", list(best.values()), Response))


@stage(version=1)
def assess_best_of(before: Ref, best: Ref, *, before_labels: Ref, best_labels: Ref, count: int) -> dict[str, float]:
    """Return the win rate and the gain of the best of `count` answers against each single one, by the oracle.

    `best_of_kl` is the most that choosing among n may cost in KL, log n − (n − 1)/n nats an answer (2401.01879).
    """
    scores = usable_scores([*store().rows(before_labels, Label), *store().rows(best_labels, Label)])
    chosen = {r.prompt_id: r for r in store().rows(best, Response) if r.id in scores}
    pairs = [
        (chosen[r.prompt_id], r) for r in store().rows(before, Response) if r.prompt_id in chosen and r.id in scores
    ]
    new, old = (np.array([scores[pair[side].id] for pair in pairs]) for side in (0, 1))
    prompt = group_ids([r.prompt_id for r, _ in pairs])
    facts = {"best_of": float(count), "best_of_kl": float(np.log(count) - (count - 1) / count)}
    for name, values in (("win_rate", win_rate(new, old)), ("gain", new - old)):
        found = clustered_mean(values, prompt)
        facts |= {f"best_of_{name}{end}": value for end, value in zip(("", "_low", "_high"), found, strict=True)}
    return facts


@stage(version=2)
def assess_point(
    responses: Ref, labels: Ref, scores: Scored, *, likelihoods: tuple[Ref, Ref] | None
) -> dict[str, float]:
    """Return oracle's and evaluator's mean score of a policy's answers, and its KL to M_1 in nats an answer.

    As along the policies of one training the evaluator's mean rises and the oracle's does not, the evaluator is being
    over-optimised (2210.10760). `likelihoods` are those of its answers under itself and under M_1; None: it is M_1.
    """
    rows = store().rows(responses, Response)
    oracle = usable_scores(store().rows(labels, Label))
    proxy = {s.response_id: s.score for s in store().rows(scores.ref, Score)}
    both = [r.id for r in rows if r.id in oracle and r.id in proxy]
    return {
        "oracle_mean": float(np.mean([oracle[i] for i in both])) if both else float("nan"),
        "proxy_mean": float(np.mean([proxy[i] for i in both])) if both else float("nan"),
        "oracle_std": float(np.std([oracle[i] for i in both])) if both else float("nan"),
        "proxy_std": float(np.std([proxy[i] for i in both])) if both else float("nan"),
        "kl": 0.0 if likelihoods is None else kl(*likelihoods),
    }
