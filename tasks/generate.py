"""Sample responses from a policy: the on-policy pool, and the held-out answers."""

import time

import numpy as np

from models.generators.base import Generator
from models.preference import Prompt, Response
from tasks.caching import Product, stage
from tasks.policy import Policy
from tasks.store import Ref, store


@stage(version=1)
def generate(policy: Policy, prompts: Ref, generator: Generator, *, samples: int, seed: int) -> Product:
    """Return `samples` responses per prompt, ordered by prompt and sample."""
    started = time.monotonic()
    responses = generator.sample(
        policy.checkpoint(),
        store().rows(prompts, Prompt),
        samples=samples,
        seed=seed,
        what="generating",
    )
    tokens = np.array([r.tokens for r in responses])
    facts = {
        "responses": float(len(responses)),
        "mean_tokens": float(tokens.mean()),
        "unfinished": float((tokens >= generator.max_new_tokens).mean()),
        "tokens_per_second": float(tokens.sum() / (time.monotonic() - started)),
    }
    return Product(ref=store().write_rows("responses", responses, Response), facts=facts)
