"""Hold the evaluator and the new policy against the expert, on prompts that nothing was trained on."""

import numpy as np

from models.calibration import Calibration
from models.metrics import SIMILAR_LENGTH, agreement, pair_outcomes, win_rate
from models.policies.language_model import Likelihood
from models.preference import Comparison, Label, Response, Score, usable_scores
from models.stats import clustered_mean
from tasks.caching import Product, stage
from tasks.policy import Policy
from tasks.proxy_label import Scored
from tasks.store import Ref, store


@stage(version=5)
def assess_evaluator(
    responses: Ref, labels: Ref, scores: Scored, control: Scored | None, calibration: Calibration | None
) -> dict[str, float]:
    """Return the evaluator's agreement with the expert, and that of the shuffled-label control, if any, beside it.

    Also over the pairs of similar length alone: longer is often better, and an evaluator must know more than that. The
    `calibration` is the gate's, of the evaluator's logits.
    """
    facts: dict[str, float] = {}
    asked, expert = store().rows(responses, Response), usable_scores(store().rows(labels, Label))
    for prefix, given in (("", scores), ("shuffled_", control)):
        if given is None:
            continue
        # in logits of preference, which the calibration error is about; the order is that of the scores
        temperature = given.facts["temperature"]
        proxy = {s.response_id: s.score / temperature for s in store().rows(given.ref, Score)}
        rows = [r for r in asked if r.id in proxy and r.id in expert]
        _, prompt = np.unique([r.prompt_id for r in rows], return_inverse=True)
        compared = (
            np.array([expert[r.id] for r in rows]),
            np.array([proxy[r.id] for r in rows]),
            prompt.astype(np.int64),
        )
        known = None if calibration is None or prefix else calibration.probability
        found = agreement(*compared, known)
        interval = clustered_mean(*pair_outcomes(*compared))
        length = np.array([float(len(r.text)) for r in rows])
        alike = clustered_mean(*pair_outcomes(*compared, length=length, length_share=SIMILAR_LENGTH))
        facts |= {f"{prefix}{name}": float(value) for name, value in found._asdict().items()}
        facts |= {f"{prefix}pair_accuracy_low": interval.low, f"{prefix}pair_accuracy_high": interval.high}
        facts |= {f"{prefix}similar_length_{name}": value for name, value in alike._asdict().items()}
    return facts


@stage(version=2)
def assess_policy(
    before: Ref,
    after: Ref,
    *,
    before_labels: Ref,
    after_labels: Ref,
    before_policy: Policy,
    after_policy: Policy,
    max_new_tokens: int,
) -> Product:
    """Return the held-out comparisons; facts: win rate, oracle means, KL, length, fluency.

    KL is the mean over M_2's answers, as they were sampled, of log π_2(y|x) − log π_1(y|x) at temperature 1, in nats per
    answer. Fluency is the mean negative log-likelihood per token under the base model M_0, which neither adapter has
    touched. The end token counts in the answers that reached it: those shorter than `max_new_tokens`.
    """
    first, second = store().rows(before, Response), store().rows(after, Response)
    scores = usable_scores([*store().rows(before_labels, Label), *store().rows(after_labels, Label)])
    matched = {(r.prompt_id, r.sample): r for r in second}
    comparisons = [
        Comparison(r.prompt_id, r.prompt, r.text, other.text, scores[r.id], scores[other.id])
        for r in first
        if (other := matched.get((r.prompt_id, r.sample))) is not None and r.id in scores and other.id in scores
    ]
    if not comparisons:
        raise ValueError("no held-out prompt has an expert score for both policies: check the oracle's failures")
    facts = _outcome(comparisons) | _drift(first, second, before_policy, after_policy, max_new_tokens)
    return Product(ref=store().write_rows("comparisons", comparisons, Comparison), facts=facts)


def _outcome(comparisons: list[Comparison]) -> dict[str, float]:
    old = np.array([c.before_score for c in comparisons])
    new = np.array([c.after_score for c in comparisons])
    _, prompt = np.unique([c.prompt_id for c in comparisons], return_inverse=True)
    prompt = prompt.astype(np.int64)
    wins, gain = clustered_mean(win_rate(new, old), prompt), clustered_mean(new - old, prompt)
    return {
        "win_rate": wins.mean,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
        "tie_rate": float((new == old).mean()),
        "oracle_mean_before": float(old.mean()),
        "oracle_mean_after": float(new.mean()),
        "oracle_gain": gain.mean,
        "oracle_gain_low": gain.low,
        "oracle_gain_high": gain.high,
        "comparisons": float(len(comparisons)),
    }


def _drift(
    first: list[Response], second: list[Response], before_policy: Policy, after_policy: Policy, max_new_tokens: int
) -> dict[str, float]:
    def likelihood(policy: Policy, rows: list[Response], what: str) -> Likelihood:
        return policy.likelihood(rows, max_new_tokens=max_new_tokens, what=what)

    # M_2 first: it has just written its answers, and is loaded
    after, before = (likelihood(policy, second, "log-likelihood") for policy in (after_policy, before_policy))
    base_old, base_new = (likelihood(before_policy.base, rows, "fluency") for rows in (first, second))
    return {
        "kl": float((after.logprob - before.logprob).mean()),
        "tokens_before": float(np.mean([r.tokens for r in first])),
        "tokens_after": float(np.mean([r.tokens for r in second])),
        "nll_per_token_before": float(-base_old.logprob.sum() / base_old.tokens.sum()),
        "nll_per_token_after": float(-base_new.logprob.sum() / base_new.tokens.sum()),
    }
