"""SHARP: query pairs that the policy's own implicit reward cannot tell apart."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from typing_extensions import override

from models.acquisition.base import Needs
from models.acquisition.pair_rules.base import PairRule
from models.acquisition.pair_rules.random_pair import RandomPair
from models.acquisition.pairwise import PairAcquisition, Pairs
from models.core.arrays import FloatArray
from models.core.registry import OneOf


class Sharp(PairAcquisition):
    """−|r̂(y_1) − r̂(y_2)|, r̂ = β log π/π_ref (2503.22137; SHARP and W-SHARP both rank by it).

    π_ref is the policy before its last training: the base model in the first round.
    """

    ranks_by: ClassVar[Needs] = Needs(logprob=True, reference=True)

    kind: Literal["sharp"] = "sharp"
    pairs: Annotated[PairRule, OneOf(late=True)] = RandomPair()

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        return {"closeness": -pairs.implicit_margin}
