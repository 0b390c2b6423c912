"""Margin: query pairs whose mean scores differ least."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature
from models.core.arrays import FloatArray


class Margin(PairAcquisition):
    """−|p̄ − ½|, p̄ = mean_e σ(D^e / temperature) over ensemble members e."""

    kind: Literal["margin"] = "margin"
    temperature: Temperature = 1.0

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        preference = pairs.preference(self.temperature).mean(axis=0)
        return {"margin": -np.abs(preference - 0.5), "preference": preference}
