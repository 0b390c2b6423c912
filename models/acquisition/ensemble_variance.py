"""Query the responses whose score varies most over the ensemble."""

from typing import Literal

import numpy as np

from models.acquisition.base import Acquisition, Floats, Needs, Pool


class EnsembleVariance(Acquisition):
    """Var_e(r^e) of each tuple (2411.01493)."""

    kind: Literal["ensemble_variance"] = "ensemble_variance"

    @property
    def needs(self) -> Needs:  # noqa: D102
        return Needs(scores=True)

    def utility(self, pool: Pool, rng: np.random.Generator) -> Floats:  # noqa: D102
        assert pool.scores is not None  # noqa: S101 - select() has checked it
        return np.asarray(pool.scores.var(axis=0))
