"""Uniform sampling of pairs: the baseline of pairwise strategies and oracles."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from typing_extensions import override

from models.acquisition.base import Needs
from models.acquisition.pair_rules.base import PairRule
from models.acquisition.pair_rules.random_pair import RandomPair
from models.acquisition.pairwise import PairAcquisition, Pairs
from models.core.arrays import FloatArray
from models.core.registry import OneOf


class RandomPairs(PairAcquisition):
    """Ask about one pair of each prompt, prompts in random order; by default the pair is random, too."""

    ranks_by: ClassVar[Needs] = Needs()

    kind: Literal["random_pairs"] = "random_pairs"
    pairs: Annotated[PairRule, OneOf(late=True)] = RandomPair()

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        return {"constant": np.zeros(len(pairs))}
