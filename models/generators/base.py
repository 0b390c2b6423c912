"""Contract of generators: sample k responses per prompt from a policy."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from models.core.data import Prompt, Response, text_hash
from models.core.registry import Plugin
from models.core.usable import least_usable
from models.policies.chat_template import Renderer
from models.policies.checkpoint import Checkpoint


class Generator(Plugin):
    """A back end. Concrete back ends declare `kind` and implement `sample`.

    T = 0.7, top-p = 0.9 and k = 4 are Self-Rewarding LM's settings (2401.10020), not the paper's.
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_size", "least_usable"})

    samples: PositiveInt = Field(4, description="Responses per prompt, k.")
    temperature: PositiveFloat = Field(0.7, description="Sampling temperature.")
    top_p: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the probability that is sampled from (nucleus sampling); 1 samples from all of it.",
    )
    max_new_tokens: PositiveInt = Field(512, description="Most tokens of a response.")
    batch_size: PositiveInt = Field(32, description="Sequences sampled at once. It does not enter the cache key.")
    least_usable: float = least_usable("the responses that can be read, and of the prompts that have two that differ")

    def check(self) -> None:
        """Raise ConfigError, before anything is bought, if the engine is not there."""

    @property
    def gpus(self) -> int:
        """Return how many GPUs of one machine it computes on, where there are any."""
        return 1

    def sample(
        self, policy: Checkpoint, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        """Return `samples` responses per prompt, ordered by prompt and then by sample number.

        The policy is given by where it lies, so that an engine of its own (vLLM, a server) can load it its own way.
        """
        raise NotImplementedError


def response_of(
    renderer: Renderer, prompt: Prompt, sample: int, drawn: Sequence[int], *, logprob: float, rounds_alike: bool = True
) -> Response:
    """Return a sampled response: the ids `drawn`, the end token last if it was reached, and Σ log π of them in nats.

    Of back ends that round as `LanguageModel.likelihood` does, what is recorded stands for that where it can.
    """
    text = renderer.tokenizer.decode(drawn, skip_special_tokens=True).strip()
    return Response(
        id=response_id(prompt.id, sample, text),
        prompt_id=prompt.id,
        prompt=prompt.text,
        sample=sample,
        text=text,
        tokens=len(drawn),
        logprob=logprob,
        canonical=rounds_alike and renderer.is_canonical(prompt.text, text, drawn),
    )


def response_id(prompt_id: str, sample: int, text: str) -> str:
    """Return the id of a tuple: its prompt, its sample number, and a digest of its text."""
    return f"{prompt_id}-{sample}-{text_hash(text)[:8]}"
