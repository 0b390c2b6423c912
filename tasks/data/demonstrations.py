"""Stages over demonstrations: their answers as a pool, and pairs for self-play (SPIN)."""

import math
from collections import Counter

from models.core.data import Demonstration, Pair, Prompt, Response
from models.core.errors import ConfigError
from models.core.registry import Frozen
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store


class OffPolicy(Frozen):
    """Refs of the seed's prompts (Prompt rows) and of its answers to them (Response rows)."""

    prompts: Ref
    responses: Ref


@stage(version=2)
def off_policy(seed: Ref) -> OffPolicy:
    """Return the seed as a pool: one response per demonstration, none of the policy's own."""
    seen: Counter[str] = Counter()
    prompts: dict[str, Prompt] = {}
    responses = []
    for demonstration in store().rows(seed, Demonstration):
        prompt = Prompt.of(demonstration.prompt)
        prompts[prompt.id] = prompt
        number = seen[prompt.id]
        seen[prompt.id] += 1
        responses.append(
            Response(
                *(f"seed-{prompt.id}-{number}", prompt.id, prompt.text, number, demonstration.response),
                tokens=0,
                logprob=math.nan,
            )
        )
    return OffPolicy(
        prompts=store().write_rows("prompts", list(prompts.values()), Prompt),
        responses=store().write_rows("responses", responses, Response),
    )


@stage(version=1)
def self_play(demonstrated: Ref, own: Ref) -> StageResult:
    """Return SPIN's pairs (2401.01335, eq. 4.7): a demonstration is chosen, the policy's own answer rejected."""
    answers = {r.prompt_id: r for r in store().rows(own, Response)}
    pairs = [
        Pair(r.prompt_id, r.prompt, r.text, other.text, math.nan, math.nan, "demonstration")
        for r in store().rows(demonstrated, Response)
        if (other := answers.get(r.prompt_id)) is not None and other.text != r.text
    ]
    if not pairs:
        raise ConfigError("the policy answers every demonstration word for word: self-play has nothing to tell apart")
    return StageResult(ref=store().write_rows("pairs", pairs, Pair), facts={"pairs": float(len(pairs))})
