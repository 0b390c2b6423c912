"""Preference entropy: query pairs whose predicted outcome is most uncertain."""

from collections.abc import Mapping
from typing import Literal

from typing_extensions import override

from models.acquisition.pairwise import PairAcquisition, Pairs, Temperature, entropy
from models.core.arrays import FloatArray


class PrefEntropy(PairAcquisition):
    """h(p̄), p̄ = mean_e σ(D^e / temperature): total uncertainty, in nats."""

    kind: Literal["pref_entropy"] = "pref_entropy"
    temperature: Temperature = 1.0

    @override
    def pair_components(self, pairs: Pairs) -> Mapping[str, FloatArray]:
        preference = pairs.preference(self.temperature).mean(axis=0)
        return {"entropy": entropy(preference), "preference": preference}
