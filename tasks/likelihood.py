"""Log-probabilities of a pool under another policy, for strategies that compare a policy with its reference."""

import numpy as np

from models.preference import Response
from tasks.caching import Product, stage
from tasks.devices import on_device
from tasks.policy import Policy
from tasks.store import Ref, store


@stage(version=1)
@on_device()
def likelihood(responses: Ref, policy: Policy, *, max_new_tokens: int) -> Product:
    """Return Σ log π(y_t | x, y_<t) of each response in nats, shape (N, 1), in the order of the responses.

    The end token counts in the responses that reached it: those shorter than `max_new_tokens`.
    """
    rows = store().rows(responses, Response)
    found = policy.likelihood(rows, max_new_tokens=max_new_tokens, what="log-likelihood")
    with store().new_matrix("logprob", (len(rows), 1)) as matrix:
        matrix.values[:, 0] = found.logprob.astype(np.float32)
    return Product(ref=matrix.ref, facts={"nats_per_response": float(-found.logprob.mean())})
