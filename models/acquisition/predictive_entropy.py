"""Predictive entropy: query prompts on whose responses the policy is least certain."""

from typing import Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool
from models.core.arrays import FloatArray


class PredictiveEntropy(Acquisition):
    """Monte-Carlo entropy of a prompt, −(1/k) Σ_k log π(y_k | x) over completion tokens (2402.08114, eq. 5).

    All responses of a prompt have its entropy. `per_token` divides each log-probability by its token count.
    """

    kind: Literal["predictive_entropy"] = "predictive_entropy"
    per_token: bool = Field(False, description="Whether log-probabilities are divided by their token counts.")

    @property
    @override
    def needs(self) -> Needs:
        return Needs(logprob=True)

    @override
    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        return prompt_entropy(pool, per_token=self.per_token)


def prompt_entropy(pool: Pool, *, per_token: bool = False) -> FloatArray:
    """Return the entropy of each tuple's prompt in nats, shape (N,)."""
    assert pool.logprob is not None  # noqa: S101 - select() has checked both
    assert pool.tokens is not None  # noqa: S101
    logprob = pool.logprob / np.maximum(pool.tokens, 1) if per_token else pool.logprob
    _, prompt = np.unique(pool.prompt, return_inverse=True)
    entropy = -np.bincount(prompt, weights=logprob) / np.bincount(prompt)
    return np.asarray(entropy[prompt])
