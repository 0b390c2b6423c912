"""Stage: score a pool of responses with the evaluator."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from models.core.arrays import FloatArray
from models.core.data import Response, Score
from models.core.registry import Frozen
from models.core.rubric import Rubric
from models.core.usable import another, require
from models.evaluators.base import Evaluator, Examples, FitContext
from models.metrics.agreement import concentration, group_ids
from tasks.engine.caching import stage
from tasks.engine.ray_cluster import run_remote
from tasks.engine.settings import settings
from tasks.engine.shards import join_matrices, join_tables, map_shards
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy


class Scored(Frozen):
    """Refs of the scores (Score rows, parsed ones only) and of every member's scores as logits of preference, (E, N)."""

    ref: Ref
    members: Ref
    facts: dict[str, float] = {}


def score_sharded(
    evaluator: Evaluator,
    trained: Ref,
    responses: Ref,
    *,
    features: Ref | None,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    least_usable: float = 0.0,
) -> Scored:
    """Return what `score` does, in shards where the responses are many and a model has to read them."""

    def of(shard: Ref) -> Scored:
        return score(
            evaluator,
            trained,
            shard,
            features=features,
            policy=policy,
            rubric=rubric,
            seed=seed,
            least_usable=least_usable,
        )

    if features is not None:
        return of(responses)
    made = map_shards(of, responses, rows=settings().shard_size, what="scoring")
    if len(made) == 1:
        return made[0]
    scores, members = (
        join_tables(tuple(part.ref for part in made)),
        join_matrices(tuple(p.members for p in made), axis=1),
    )
    return rejoin(evaluator, responses, scores.ref, members.ref, temperature=made[0].facts["temperature"])


@stage(version=8, ignore=["least_usable"])
def score(
    evaluator: Evaluator,
    trained: Ref,
    responses: Ref,
    *,
    features: Ref | None,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    least_usable: float = 0.0,
) -> Scored:
    """Return the evaluator's score of every response; unparsable judgements are counted and left out.

    Raises UnusableOutput where it has scored fewer of them than the share `least_usable`.
    """
    work = partial(
        _score,
        evaluator,
        trained,
        responses,
        features=features,
        policy=policy,
        rubric=rubric,
        seed=seed,
        least_usable=least_usable,
    )
    return work() if features is not None else run_remote(work)


@stage(version=1)
def rejoin(evaluator: Evaluator, responses: Ref, scores: Ref, members: Ref, *, temperature: float) -> Scored:
    """Return scores and members of shards as those of the whole, with the facts of the whole."""
    rows, each = store().rows(responses, Response), store().rows(scores, Score)
    facts = _facts(evaluator, rows, each, store().matrix(members).astype(np.float64) * temperature, temperature)
    return Scored(ref=scores, members=members, facts=facts)


def _score(
    evaluator: Evaluator,
    trained: Ref,
    responses: Ref,
    *,
    features: Ref | None,
    policy: Policy,
    rubric: Rubric,
    seed: int,
    least_usable: float,
) -> Scored:
    rows = store().rows(responses, Response)
    context = FitContext(policy.checkpoint(), rubric, store().folder(trained), seed)
    matrix = store().matrix(features) if features is not None else None
    members = evaluator.predict(Examples(rows, matrix), context)
    temperature = evaluator.temperature(context)
    mean, std = members.mean(axis=0), members.std(axis=0)
    parsed = np.isfinite(mean)
    scores = [Score(r.id, float(m), float(s)) for r, m, s, ok in zip(rows, mean, std, parsed, strict=True) if ok]
    require(
        len(scores),
        len(rows),
        least_usable,
        field="gate.least_usable",
        what="responses have a score of the evaluator",
        told=another(
            next((r.text for r, ok in zip(rows, parsed, strict=True) if not ok), ""),
            "Its judgements cannot be read: see evaluator.kind and evaluator.training, or buy more labels",
        ),
    )
    with store().new_matrix("members", (members.shape[0], members.shape[1])) as out:
        out.values[:] = members / temperature
    facts = _facts(evaluator, rows, scores, members, temperature)
    return Scored(ref=store().write_rows("scores", scores, Score), members=out.ref, facts=facts)


def _facts(
    evaluator: Evaluator, rows: Sequence[Response], scores: Sequence[Score], members: FloatArray, temperature: float
) -> dict[str, float]:
    parsed, found = np.isfinite(members.mean(axis=0)), np.array([one.score for one in scores])
    prompt = group_ids([r.prompt_id for r in rows])
    return {
        "scored": float(len(scores)),
        "unparsed": float(len(rows) - len(scores)),
        "distinct": len(np.unique(found)) / len(found) if len(found) else float("nan"),
        "score_mean": float(found.mean()) if len(found) else float("nan"),
        "temperature": temperature,
        "score_std": float(found.std()) if len(found) else float("nan"),
        **concentration(found, prompt[parsed])._asdict(),
        **evaluator.diagnostics(members, Examples(rows)),
    }
