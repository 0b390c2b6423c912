"""Stage: choose what the oracle is queried about."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.acquisition.base import Acquisition, Pool
from models.acquisition.pairwise import PairAcquisition
from models.core.arrays import BoolArray
from models.core.data import Label, Response, Selection
from models.core.errors import ConfigError
from models.core.randomness import stream
from models.metrics.agreement import group_ids
from models.oracles.base import Oracle
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.labelling.batches import Batch, anchors, labels_of


@stage(version=5)
def acquire(
    strategy: Acquisition,
    responses: Ref,
    *,
    vectors: Ref | None,
    members: Ref | None,
    reference: Ref | None,
    oracle: Oracle | None,
    money: int | None,
    history: tuple[Batch, ...],
    budget: int,
    seed: int,
    round_number: int,
    compare: bool = False,
) -> StageResult:
    """Return at most `budget` picks of the pool, best first, with the utility of each and its components.

    With `compare` each pick is a pair for a pairwise oracle; the strategy must be one over pairs.
    `oracle` and `money` only where the strategy asks for prices, `reference` where it asks for log-probabilities.
    """
    rows = store().rows(responses, Response)
    pool = _pool(rows, responses, vectors, members, history)
    if reference is not None:
        pool = replace(pool, reference_logprob=store().matrix(reference)[:, 0].astype(np.float64))
    if oracle is not None and money is not None:
        cost = np.array([oracle.max_cost(r.prompt, r.text) for r in rows], dtype=np.float64)
        pool = replace(pool, cost=cost, money=money)
    rng = stream(seed, round_number, "acquire")
    if not compare:
        picks = strategy.select(pool, budget, rng)
    elif isinstance(strategy, PairAcquisition):
        picks = strategy.select_pairs(pool, budget, rng)
    else:
        raise ConfigError(f"acquisition {strategy.kind_name()!r} picks tuples, and this oracle is pairwise")
    facts = {"picks": float(len(picks)), "pool": float(len(pool.ids))}
    return StageResult(ref=store().write_rows("picks", picks, Selection), facts=facts)


def _asked_elsewhere(history: tuple[Batch, ...], current: Ref) -> set[tuple[str, str]]:
    """Return the (prompt, text) of what was asked about in other pools: the same text may have another id here."""
    found: set[tuple[str, str]] = set()
    for batch in history:
        if batch.responses != current:
            asked = {asked for label in store().rows(batch.labels, Label) for asked in label.asked}
            found |= {(r.prompt_id, r.text) for r in store().rows(batch.responses, Response) if r.id in asked}
    return found


def _pool(
    responses: Sequence[Response],
    ref: Ref,
    vectors: Ref | None,
    members: Ref | None,
    history: tuple[Batch, ...],
) -> Pool:
    asked = {asked for label in labels_of(history) for asked in label.asked}
    labelled = np.array([r.id in asked for r in responses])
    seen = _asked_elsewhere(history, ref)
    repeated = np.zeros(len(responses), dtype=bool)
    for row, response in enumerate(responses):
        repeated[row] = (response.prompt_id, response.text) in seen
        seen.add((response.prompt_id, response.text))
    prompt = group_ids([r.prompt_id for r in responses])
    scores = store().matrix(members).astype(np.float64) if members is not None else None
    unparsed: BoolArray = np.zeros(len(responses), dtype=bool)
    if scores is not None:
        # a judgement that could not be parsed says nothing: the tuple is not picked, and counts as average meanwhile
        unparsed = np.logical_not(np.isfinite(scores).all(axis=0))
        scores[:, unparsed] = scores[:, ~unparsed].mean() if (~unparsed).any() else 0.0
    logprob = np.array([r.logprob for r in responses])
    return Pool(
        ids=[r.id for r in responses],
        prompt=prompt,
        unavailable=labelled | repeated | unparsed,
        labelled=labelled,
        vectors=store().matrix(vectors) if vectors is not None else None,
        anchors=anchors(history, ref) if vectors is not None else None,
        logprob=logprob if np.isfinite(logprob).all() else None,
        tokens=np.array([r.tokens for r in responses], dtype=np.int64),
        scores=scores,
    )
