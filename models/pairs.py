"""From scores to preference pairs: best against worst per prompt, ties dropped (step 7)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from models.preference import Pair, Provenance, Response


class Paired(NamedTuple):
    """The pairs, and the prompts that gave none: `ties` and `incomplete` (fewer than two scored responses)."""

    pairs: list[Pair]
    ties: int
    incomplete: int


def best_worst(
    responses: Sequence[Response],
    *,
    oracle: Mapping[str, float],
    proxy: Mapping[str, float],
    compared: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> Paired:
    """Return one pair per prompt, in the order of the prompts.

    Two scales are never compared: where the expert has scored every response of a prompt the pair is the oracle's,
    everywhere else it is the proxy's. Scores are by response id; a response without a proxy score is left out. A prompt
    with decided comparisons of the expert's, by (response id, other's id), has those for pairs: all that were paid for.
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
    ties = incomplete = 0
    for prompt_id, group in by_prompt.items():
        if prompt_id in decided:
            pairs += decided[prompt_id]
            continue
        by_oracle = all(r.id in oracle for r in group)
        scores = oracle if by_oracle else proxy
        scored = [r for r in group if r.id in scores]
        if len(scored) < 2:
            incomplete += 1
            continue
        best = max(scored, key=lambda r: (scores[r.id], r.id))
        worst = min(scored, key=lambda r: (scores[r.id], r.id))
        if scores[best.id] == scores[worst.id] or best.text == worst.text:
            ties += 1
            continue
        pairs.append(_pair(best, worst, (scores[best.id], scores[worst.id]), "oracle" if by_oracle else "proxy"))
    return Paired(pairs, ties, incomplete)


def _pair(chosen: Response, rejected: Response, scores: tuple[float, float], provenance: Provenance) -> Pair:
    return Pair(chosen.prompt_id, chosen.prompt, chosen.text, rejected.text, *scores, provenance)
