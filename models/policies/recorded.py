"""Reuse of log-probabilities recorded while sampling, for texts with the same tokens."""

from collections.abc import Sequence

import numpy as np

from models.core.arrays import FloatArray
from models.core.data import Response
from models.policies.chat_template import Encoded


def recorded(encoded: Sequence[Encoded], sampled: Sequence[Response | None]) -> FloatArray:
    """Return log π that is recorded of each response as it is encoded, in nats, shape (N,); NaN where it is to be scored.

    It is the same thing if the text is encoded into the very tokens that were sampled, and if they are all that is asked
    about: not where an end token is asked for that the response did not reach, or what a template writes after it. In
    float32 the two figures differ by less than 10⁻³. In bfloat16 each is one of many roundings of the same sum: of a text of
    20 tokens they differ as those of two batches do.
    """
    return np.array(
        [
            r.logprob if r is not None and r.canonical and r.tokens == e.completion else np.nan
            for e, r in zip(encoded, sampled, strict=True)
        ],
        dtype=np.float64,
    )
