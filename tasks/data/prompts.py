"""Stage: load the prompt sets and set over-long prompts aside."""

import logging
from collections.abc import Sequence

from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.errors import ConfigError
from models.core.registry import Frozen
from models.policies.chat_template import Renderer
from models.sources.base import PromptSource
from tasks.engine.caching import stage
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy

log = logging.getLogger(__name__)


class PromptSets(Frozen):
    """Refs of Demonstration rows, of Prompt rows (the pool, and what is held out) and of ScoredExample rows."""

    demonstrations: Ref
    pool: Ref
    held_out: Ref
    eft_examples: Ref | None = None
    over_long: tuple[str, ...] = ()


@stage(version=3)
def load_prompts(source: PromptSource, *, inputs: str, policy: Policy, max_prompt_tokens: int) -> PromptSets:
    """Return the stored sets; `inputs` digests the files read, so that an edited file is loaded anew."""
    del inputs
    prompts = source.load()
    renderer = policy.renderer()
    pool, long_in_pool = set_aside(prompts.pool, renderer, max_prompt_tokens)
    held_out, long_held_out = set_aside(prompts.held_out, renderer, max_prompt_tokens)
    if not pool or not held_out:
        raise ConfigError(f"every prompt passes {max_prompt_tokens} tokens: raise policy.max_prompt_tokens")
    return PromptSets(
        demonstrations=store().write_rows("seed", prompts.demonstrations, Demonstration),
        pool=store().write_rows("prompts", pool, Prompt),
        held_out=store().write_rows("prompts", held_out, Prompt),
        eft_examples=store().write_rows("eft_examples", prompts.eft_examples, ScoredExample)
        if prompts.eft_examples
        else None,
        over_long=(*long_in_pool, *long_held_out),
    )


def set_aside(
    prompts: Sequence[Prompt], renderer: Renderer, max_prompt_tokens: int
) -> tuple[list[Prompt], tuple[str, ...]]:
    """Return the prompts of at most `max_prompt_tokens`, and a line about each that is longer."""
    kept, over_long = [], []
    for prompt in prompts:
        tokens = len(renderer.prompt_ids(prompt.text))
        if tokens <= max_prompt_tokens:
            kept.append(prompt)
        else:
            over_long.append(f"{prompt.id} ({tokens} tokens): {prompt.text[:60]}")
    if over_long:
        log.warning(
            "%d prompts pass %d tokens and were set aside: %s", len(over_long), max_prompt_tokens, over_long[:5]
        )
    return kept, tuple(over_long)
