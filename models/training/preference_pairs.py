"""Build preference pairs from scores: best against worst of each prompt (step 7)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from models.core.data import Pair, Provenance, Response


class UncertainPair(NamedTuple):
    """The best and the worst response of a prompt by the evaluator, too close together for it to label: by their ids."""

    best: str
    worst: str
    gap: float


class Paired(NamedTuple):
    """The pairs, and the prompts that gave none: tied, with fewer than two scored responses, or in doubt."""

    pairs: list[Pair]
    ties: int
    incomplete: int
    uncertain: list[UncertainPair]


def best_worst(
    responses: Sequence[Response],
    *,
    oracle: Mapping[str, float],
    proxy: Mapping[str, float],
    compared: Mapping[tuple[str, str], float] = MappingProxyType({}),
    least_gap: float = 0.0,
) -> Paired:
    """Return one pair per prompt, in the order of the prompts.

    Two scales are never compared: where the oracle has scored every response of a prompt the pair is the oracle's,
    everywhere else it is the proxy's. Scores are by response id; a response without a proxy score is left out. A prompt
    with decided comparisons of the oracle's, by (response id, other's id), has those for pairs: all that were paid for.
    Where the proxy scores differ by less than `least_gap`, the pair is the best against the worst of what the oracle has
    scored of the prompt, if that is two responses and no tie.
    """
    by_id = {r.id: r for r in responses}
    decided: dict[str, list[Pair]] = defaultdict(list)
    for (first, second), preference in compared.items():
        if preference and first in by_id and second in by_id:
            pair = _pair(by_id[first], by_id[second], (preference, -preference), "oracle")
            decided[pair.prompt_id].append(pair if preference > 0 else pair.swap())
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.prompt_id].append(response)
    pairs: list[Pair] = []
    uncertain: list[UncertainPair] = []
    ties = incomplete = 0
    for prompt_id, group in by_prompt.items():
        if prompt_id in decided:
            pairs += decided[prompt_id]
            continue
        by_oracle = all(r.id in oracle for r in group)
        found = _extremes(group, oracle if by_oracle else proxy)
        if found is None:
            incomplete += 1
            continue
        if not by_oracle and not found.alike and found.gap < least_gap:
            asked = _extremes(group, oracle)
            if asked is None or asked.tied:
                uncertain.append(UncertainPair(found.best.id, found.worst.id, found.gap))
                continue
            found, by_oracle = asked, True
        if found.tied:
            ties += 1
            continue
        pairs.append(_pair(found.best, found.worst, found.scores, "oracle" if by_oracle else "proxy"))
    return Paired(pairs, ties, incomplete, uncertain)


class _Extremes(NamedTuple):
    best: Response
    worst: Response
    scores: tuple[float, float]

    @property
    def gap(self) -> float:
        return self.scores[0] - self.scores[1]

    @property
    def alike(self) -> bool:
        return self.best.text == self.worst.text

    @property
    def tied(self) -> bool:
        return self.gap == 0 or self.alike


def _extremes(group: Sequence[Response], scores: Mapping[str, float]) -> _Extremes | None:
    """Return the best and the worst of a prompt's scored responses; None with fewer than two."""
    scored = [r for r in group if r.id in scores]
    if len(scored) < 2:
        return None
    best = max(scored, key=lambda r: (scores[r.id], r.id))
    worst = min(scored, key=lambda r: (scores[r.id], r.id))
    return _Extremes(best, worst, (scores[best.id], scores[worst.id]))


def _pair(chosen: Response, rejected: Response, scores: tuple[float, float], provenance: Provenance) -> Pair:
    return Pair(chosen.prompt_id, chosen.prompt, chosen.text, rejected.text, *scores, provenance)
