"""Stage: embed a pool of responses in one view, in shards."""

from collections.abc import Iterable
from functools import partial
from itertools import chain

import numpy as np

from models.core.data import Response
from models.core.rubric import Rubric
from models.embeddings.base import Embedding, Shard, View, texts_of
from tasks.engine.caching import StageResult, stage
from tasks.engine.ray_cluster import run_remote
from tasks.engine.settings import settings
from tasks.engine.shards import join_matrices, map_shards
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy


def embed_sharded(responses: Ref, embedding: Embedding, *, view: View, rubric: Rubric, policy: Policy | None) -> Ref:
    """Return what `embed` does, in shards where the responses are many."""
    encoder = embedding.digest_inputs()

    def of(shard: Ref) -> Ref:
        return embed(shard, embedding, view=view, encoder=encoder, rubric=rubric, policy=policy).ref

    made = map_shards(of, responses, rows=settings().shard_size, what="embedding")
    return made[0] if len(made) == 1 else join_matrices(tuple(made), axis=0).ref


@stage(version=1)
def embed(
    responses: Ref, embedding: Embedding, *, view: View, encoder: str, rubric: Rubric, policy: Policy | None
) -> StageResult:
    """Return one vector per response, in the order of the responses; `policy` only where the encoder needs it.

    `encoder` digests the encoder's own weights.
    """
    del encoder
    return run_remote(partial(_embed, responses, embedding, view=view, rubric=rubric, policy=policy))


def _embed(responses: Ref, embedding: Embedding, *, view: View, rubric: Rubric, policy: Policy | None) -> StageResult:
    texts = texts_of(view, store().rows(responses, Response), rubric)
    distinct = list(dict.fromkeys(texts))
    model = policy.checkpoint().load_cached() if policy is not None else None
    return StageResult(ref=_write(texts, distinct, embedding.shards(distinct, model)))


def _write(texts: list[str], distinct: list[str], shards: Iterable[Shard]) -> Ref:
    number = {text: row for row, text in enumerate(distinct)}
    of_text = np.array([number[text] for text in texts])
    shards = iter(shards)
    first = next(shards)
    with store().new_matrix("vectors", (len(texts), first.vectors.shape[1])) as matrix:
        position = np.full(len(distinct), -1)
        for shard in chain([first], shards):
            position[:] = -1
            position[list(shard.rows)] = np.arange(len(shard.rows))
            rows = np.flatnonzero(position[of_text] >= 0)
            matrix.values[rows] = shard.vectors[position[of_text[rows]]]
    return matrix.ref
