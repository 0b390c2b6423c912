"""Query the responses whose score varies most over the ensemble."""

from typing import Literal

import numpy as np
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool
from models.core.arrays import FloatArray


class EnsembleVariance(Acquisition):
    """Var_e(r^e) of each tuple (2411.01493)."""

    kind: Literal["ensemble_variance"] = "ensemble_variance"

    @property
    @override
    def needs(self) -> Needs:
        return Needs(scores=True)

    @override
    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        assert pool.scores is not None  # noqa: S101 - select() has checked it
        return np.asarray(pool.scores.var(axis=0))
