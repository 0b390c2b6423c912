"""Let the evaluator score a pool."""

import numpy as np

from models.evaluators.base import Bench, Evaluator, Tuples
from models.metrics import concentration, numbered
from models.plugins import Frozen
from models.preference import Response, Score
from models.rubric import Rubric
from tasks.caching import stage
from tasks.policy import Policy
from tasks.store import Ref, store


class Scored(Frozen):
    """Refs of the scores (Score rows, parsed ones only) and of every member's scores as logits of preference, (E, N)."""

    ref: Ref
    members: Ref
    facts: dict[str, float] = {}


@stage(version=5)
def proxy_label(
    evaluator: Evaluator,
    trained: Ref,
    responses: Ref,
    *,
    features: Ref | None,
    policy: Policy,
    rubric: Rubric,
    seed: int,
) -> Scored:
    """Return the evaluator's score of every response; unparsable judgements are counted and left out."""
    rows = store().rows(responses, Response)
    bench = Bench(policy.checkpoint(), rubric, store().folder(trained), seed)
    matrix = store().matrix(features) if features is not None else None
    tuples = Tuples(rows, matrix)
    members = evaluator.members(tuples, bench)
    temperature = evaluator.temperature(bench)
    mean, std = members.mean(axis=0), members.std(axis=0)
    parsed = np.isfinite(mean)
    prompt = numbered([r.prompt_id for r in rows])
    scores = [Score(r.id, float(m), float(s)) for r, m, s, ok in zip(rows, mean, std, parsed, strict=True) if ok]
    with store().new_matrix("members", (members.shape[0], members.shape[1])) as out:
        out.values[:] = members / temperature
    facts = {
        "scored": float(parsed.sum()),
        "unparsed": float((~parsed).sum()),
        "score_mean": float(np.nanmean(mean)),
        "temperature": temperature,
        "score_std": float(np.nanstd(mean)),
        **concentration(mean[parsed], prompt[parsed])._asdict(),
        **evaluator.findings(members, tuples),
    }
    return Scored(ref=store().write_rows("scores", scores, Score), members=out.ref, facts=facts)
