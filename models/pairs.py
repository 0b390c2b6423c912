"""From scores to preference pairs: best against worst per prompt, ties dropped (step 7)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.preference import Pair, Response


class Paired(NamedTuple):
    """The pairs, and the prompts that gave none: `ties` and `incomplete` (fewer than two scored responses)."""

    pairs: list[Pair]
    ties: int
    incomplete: int


def best_worst(responses: Sequence[Response], *, oracle: Mapping[str, float], proxy: Mapping[str, float]) -> Paired:
    """Return one pair per prompt, in the order of the prompts.

    Two scales are never compared: where the expert has scored every response of a prompt the pair is the oracle's,
    everywhere else it is the proxy's. Scores are by response id; a response without a proxy score is left out.
    """
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.prompt_id].append(response)
    pairs: list[Pair] = []
    ties = incomplete = 0
    for group in by_prompt.values():
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
        pairs.append(
            Pair(
                prompt_id=best.prompt_id,
                prompt=best.prompt,
                chosen=best.text,
                rejected=worst.text,
                chosen_score=scores[best.id],
                rejected_score=scores[worst.id],
                provenance="oracle" if by_oracle else "proxy",
            )
        )
    return Paired(pairs, ties, incomplete)
