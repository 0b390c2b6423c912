"""Contract of prompt sources: demonstrations, an unlabelled pool, and held-out prompts."""

import unicodedata
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.errors import ConfigError
from models.core.registry import Plugin


class Prompts(NamedTuple):
    """Three disjoint sets; `demonstrations` may be empty (SFT is then skipped and the base model is `M_1`).

    `eft_examples`: off-policy answers with somebody's scores, for an evaluator that is trained on them beside the labels.
    """

    demonstrations: list[Demonstration]
    pool: list[Prompt]
    held_out: list[Prompt]
    eft_examples: Sequence[ScoredExample] = ()


class PromptSource(Plugin):
    """A place prompts come from. Concrete sources declare `kind` and implement `load`."""

    terms: ClassVar[str] = "The prompts' terms are those of where they come from."
    redistributable: ClassVar[bool] = True  # whether texts made from the prompts may be passed on at all

    @property
    def has_eft_examples(self) -> bool:
        """Whether off-policy answers with scores come with the prompts."""
        return False

    def load(self) -> Prompts:
        """Return the prompts; raise ConfigError or OSError naming the file, the line and the remedy."""
        raise NotImplementedError

    def digest_inputs(self) -> str:
        """Return a digest of what is read, so that an edited file is not mistaken for the one seen before."""
        return self.digest()


def same_prompt(text: str) -> str:
    """Return what two prompts have in common that a reader takes for one: composed characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\ufeff", "")).split())


def check_disjoint(prompts: Prompts) -> Prompts:
    """Return the prompts; raise ConfigError if a set is empty, repeats a prompt, or shares one with another."""
    for name, rows in (("pool", prompts.pool), ("held_out", prompts.held_out)):
        if not rows:
            raise ConfigError(f"{name} holds no prompt: give at least one")
        seen: set[str] = set()
        for prompt in rows:
            if (key := same_prompt(prompt.text)) in seen:
                raise ConfigError(
                    f"{name} repeats the prompt {prompt.text[:80]!r}: the same query would be bought twice"
                )
            seen.add(key)
    held_out = {same_prompt(p.text): p.text for p in prompts.held_out}
    for name, known in (("SFT seed", prompts.demonstrations), ("EFT examples", prompts.eft_examples)):
        if leaked := {same_prompt(row.prompt) for row in known} & held_out.keys():
            text = next(text for key, text in held_out.items() if key in leaked)
            raise ConfigError(
                f"{len(leaked)} held-out prompts are in the {name}, such as {text[:80]!r}: remove them from one"
            )
    if shared := {key: p.text for p in prompts.pool if (key := same_prompt(p.text)) in held_out}:
        text = next(iter(shared.values()))
        raise ConfigError(f"{len(shared)} prompts are both in the pool and held out, such as {text[:80]!r}")
    return prompts
