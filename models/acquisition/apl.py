"""APL: of the prompts of highest predictive entropy, query the pairs whose implicit rewards differ most (2402.08114)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from models.acquisition.base import Needs, SelectedRows
from models.acquisition.pair_rules.base import PairRule
from models.acquisition.pair_rules.random_pair import RandomPair
from models.acquisition.pairwise import PairAcquisition, Pairs
from models.acquisition.predictive_entropy import prompt_entropy
from models.core.arrays import FloatArray
from models.core.registry import OneOf


class Apl(PairAcquisition):
    """Keep `widen` × b prompts of highest predictive entropy, then the b of largest |r̂(y_1) − r̂(y_2)| (2402.08114, Alg. 1).

    r̂ = β log π/π_ref, π_ref the policy before its last training: the base model in the first round.
    """

    ranks_by: ClassVar[Needs] = Needs(logprob=True, reference=True)

    kind: Literal["apl"] = "apl"
    pairs: Annotated[PairRule, OneOf(late=True)] = RandomPair()
    widen: float = Field(4.0, ge=1.0, description="m: the pool kept by entropy is so many times the batch.")

    @override
    def rank(self, pairs: Pairs, queries: int, rng: np.random.Generator) -> SelectedRows:
        components = self.pair_components(pairs)
        tie = rng.random(len(pairs))
        kept = np.lexsort((tie, -components["entropy"]))
        batch = max(1, -(-queries // 2))  # a pair is two queries
        most = int(np.ceil(self.widen * batch))
        inside, outside = kept[:most], kept[most:]
        inside = inside[np.lexsort((tie[inside], -components["implicit_margin"][inside]))]
        order = np.concatenate([inside, outside])[:queries]
        return SelectedRows(
            order, components["implicit_margin"][order], {name: values[order] for name, values in components.items()}
        )

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        return {"implicit_margin": pairs.implicit_margin, "entropy": prompt_entropy(pairs.pool)[pairs.first]}
