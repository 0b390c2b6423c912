"""Query the pairs whose score difference varies most over the ensemble."""

from collections.abc import Mapping
from typing import Literal

from typing_extensions import override

from models.acquisition.pairwise import PairAcquisition, Pairs
from models.core.arrays import FloatArray


class PairVariance(PairAcquisition):
    """Var_e(D^e) of each pair (2411.01493): a shift that a member gives to a whole prompt does not count."""

    kind: Literal["pair_variance"] = "pair_variance"

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        return {"variance": pairs.difference.var(axis=0)}
