"""Stage: sample responses from a policy."""

import time
from functools import partial

import numpy as np

from models.core.data import Prompt, Response
from models.core.usable import require_responses, response_shares
from models.generators.base import Generator
from tasks.engine.caching import StageResult, stage
from tasks.engine.ray_cluster import run_remote
from tasks.engine.settings import settings
from tasks.engine.shards import joined, map_shards
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy


def generate_sharded(
    policy: Policy, prompts: Ref, generator: Generator, *, samples: int, seed: int, least_usable: float = 0.0
) -> StageResult:
    """Return what `generate` does, in shards where the prompts are many."""

    def of(shard: Ref) -> StageResult:
        return generate(policy, shard, generator, samples=samples, seed=seed, least_usable=least_usable)

    rows = max(1, settings().shard_size // samples)
    return joined(map_shards(of, prompts, rows=rows, what="generating"), summed="responses")


@stage(version=4, ignore=["least_usable"])
def generate(
    policy: Policy, prompts: Ref, generator: Generator, *, samples: int, seed: int, least_usable: float = 0.0
) -> StageResult:
    """Return `samples` responses per prompt, ordered by prompt and sample.

    Raises UnusableOutput where fewer of them than the share `least_usable` can be used.
    """
    work = partial(_sample, policy, prompts, generator, samples=samples, seed=seed, least_usable=least_usable)
    return run_remote(work, gpus=generator.gpus)


def _sample(
    policy: Policy, prompts: Ref, generator: Generator, *, samples: int, seed: int, least_usable: float
) -> StageResult:
    started = time.monotonic()
    responses = generator.sample(
        policy.checkpoint(),
        store().rows(prompts, Prompt),
        samples=samples,
        seed=seed,
        what="generating",
    )
    seconds = time.monotonic() - started
    require_responses(responses, least=least_usable, samples=samples)
    tokens = np.array([r.tokens for r in responses])
    facts = {
        "responses": float(len(responses)),
        "mean_tokens": float(tokens.mean()),
        **response_shares(responses, max_new_tokens=generator.max_new_tokens)._asdict(),
        "tokens_per_second": float(tokens.sum() / seconds),
    }
    return StageResult(ref=store().write_rows("responses", responses, Response), facts=facts)
