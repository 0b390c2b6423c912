"""Query the pairs whose score difference varies most over the ensemble."""

from collections.abc import Mapping
from typing import Literal

from typing_extensions import override

from models.acquisition.base import Floats
from models.acquisition.pairwise import PairAcquisition, Pairs


class PairVariance(PairAcquisition):
    """Var_e(D^e) of each pair (2411.01493): a shift that a member gives to a whole prompt does not count."""

    kind: Literal["pair_variance"] = "pair_variance"

    @override
    def pair_terms(self, pairs: Pairs) -> Mapping[str, Floats]:
        return {"variance": pairs.difference.var(axis=0)}
