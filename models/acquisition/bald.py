"""BALD: query pairs on which the ensemble disagrees, not those that all members find close."""

from collections.abc import Mapping
from typing import Literal

from typing_extensions import override

from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature, entropy
from models.core.arrays import FloatArray


class Bald(PairAcquisition):
    """h(p̄) − mean_e h(p^e): the information that the outcome holds about the evaluator, in nats (1112.5745, eq. 2)."""

    kind: Literal["bald"] = "bald"
    temperature: Temperature = 1.0

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        return information(pairs, self.temperature)


def information(pairs: Pairs, temperature: float) -> dict[str, FloatArray]:
    """Return the mutual information of each pair and its two parts, each of shape (C,)."""
    members = pairs.preference(temperature)
    total, expected = entropy(members.mean(axis=0)), entropy(members).mean(axis=0)
    return {"information": total - expected, "total": total, "expected": expected}
