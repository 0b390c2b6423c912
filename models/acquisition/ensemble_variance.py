"""Ask where the members' scores differ most: of a tuple, or of a pair."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from models.acquisition.base import Acquisition, Floats, Needs, Pool
from models.acquisition.pairwise import PairAcquisition, Pairs


class EnsembleVariance(Acquisition):
    """Var_e(r^e) of each tuple (2411.01493)."""

    kind: Literal["ensemble_variance"] = "ensemble_variance"

    @property
    def needs(self) -> Needs:  # noqa: D102
        return Needs(scores=True)

    def utility(self, pool: Pool, rng: np.random.Generator) -> Floats:  # noqa: D102
        assert pool.scores is not None  # noqa: S101 - select() has checked it
        return np.asarray(pool.scores.var(axis=0))


class PairVariance(PairAcquisition):
    """Var_e(D^e) of each pair (2411.01493): a shift that a member gives to a whole prompt does not count."""

    kind: Literal["pair_variance"] = "pair_variance"

    def pair_terms(self, pairs: Pairs) -> Mapping[str, Floats]:  # noqa: D102
        return {"variance": pairs.difference.var(axis=0)}
