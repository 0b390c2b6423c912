"""Least confidence: query pairs whose predicted preference is closest to one half."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature
from models.core.arrays import FloatArray


class LeastConfidence(PairAcquisition):
    """1 − max(p̄, 1 − p̄), p̄ = mean_e σ(D^e / temperature): the probability of the less likely outcome."""

    kind: Literal["least_confidence"] = "least_confidence"
    temperature: Temperature = 1.0

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        preference = pairs.preference(self.temperature).mean(axis=0)
        return {"doubt": 1.0 - np.maximum(preference, 1.0 - preference), "preference": preference}
