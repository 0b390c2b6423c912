"""Render (prompt, response) to tokens: the one renderer of training, scoring and generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.core.errors import ConfigError

Template = Literal["chat", "plain"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt + completion; the completion starts at `start`."""

    ids: list[int]
    start: int

    @property
    def completion(self) -> int:
        """Return the number of the completion's tokens."""
        return len(self.ids) - self.start

    def up_to(self, end_token: int, *, included: bool) -> "Encoded":
        """Return the ids up to the completion's last end token, with or without it (a template may add more after it)."""
        found = [place for place in range(self.start, len(self.ids)) if self.ids[place] == end_token]
        return Encoded(self.ids[: found[-1] + included], self.start) if found else self


@dataclass(frozen=True)
class Renderer:
    """Renders with the tokenizer's chat template ("chat"), or as running text ("plain": prompt, space, response)."""

    tokenizer: Any
    template: Template

    def __post_init__(self) -> None:
        if self.template == "chat" and not self.tokenizer.chat_template:
            raise ConfigError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no chat template: set policy.template to plain"
            )

    def row(self, prompt: str, **completions: str) -> dict[str, Any]:
        """Return a TRL row: `row(x, chosen=…, rejected=…)` for DPO, `row(x, completion=…)` for SFT."""
        if self.template == "plain":
            return {"prompt": prompt, **{name: f" {text}" for name, text in completions.items()}}
        answers = {name: [{"role": "assistant", "content": text}] for name, text in completions.items()}
        return {"prompt": [{"role": "user", "content": prompt}], **answers}

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids after which the policy starts to answer."""
        if self.template == "plain":
            return list(self.tokenizer(prompt)["input_ids"])
        return self._chat_ids([{"role": "user", "content": prompt}], add_generation_prompt=True)

    def encode(self, prompt: str, response: str) -> Encoded:
        """Return the ids of the whole, ending as in training; the completion starts where the prompt's ids end."""
        if self.template == "plain":
            whole = list(self.tokenizer(f"{prompt} {response}{self.tokenizer.eos_token}")["input_ids"])
        else:
            whole = self._chat_ids([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])
        return Encoded(ids=whole, start=_common_prefix(self.prompt_ids(prompt), whole))

    def is_canonical(self, prompt: str, text: str, drawn: Sequence[int]) -> bool:
        """Whether a text is encoded after its prompt into the very tokens that it was decoded from, `drawn` by a policy.

        With the end token if that was drawn. Else log π of the tokens drawn is not that of the text as it is read again.
        """
        end = self.tokenizer.eos_token_id
        read = self.encode(prompt, text).up_to(end, included=end in drawn[-1:])
        return read.ids == [*self.prompt_ids(prompt), *drawn]

    def _chat_ids(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
        )
        return list(encoded["input_ids"])


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
