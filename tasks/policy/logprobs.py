"""Stage: log-probabilities of responses under a policy."""

from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray
from models.core.data import Response
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy


class Sums(NamedTuple):
    """What `likelihood` has stored: Σ log π in nats and the number of tokens that it is over, shape (N,) each."""

    logprob: FloatArray
    tokens: FloatArray


@stage(version=2)
@on_device()
def likelihood(responses: Ref, policy: Policy, *, max_new_tokens: int, own: bool = False) -> StageResult:
    """Return Σ log π(y_t | x, y_<t) of each response in nats and its tokens, shape (N, 2), in the order of the responses.

    The end token counts in the responses that reached it: those shorter than `max_new_tokens`. `own`: the policy has sampled
    them, and what sampling has recorded of the same tokens is not computed again.
    """
    rows = store().rows(responses, Response)
    found = policy.likelihood(rows, max_new_tokens=max_new_tokens, own=own, what="log-likelihood")
    with store().new_matrix("logprob", (len(rows), 2)) as matrix:
        matrix.values[:] = np.stack(found, axis=1)
    return StageResult(ref=matrix.ref, facts={"nats_per_response": float(-found.logprob.mean())})


def sums_of(likelihoods: Ref) -> Sums:
    """Return the columns of a likelihood's artifact."""
    values = store().matrix(likelihoods).astype(np.float64)
    return Sums(values[:, 0], values[:, 1])


def kl(after: Ref, before: Ref) -> float:
    """Return the mean of log π_after − log π_before over answers of π_after: its KL from π_before in nats per answer."""
    return float((sums_of(after).logprob - sums_of(before).logprob).mean())
