"""Generation with transformers, with in-flight batching and a random stream per sample."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from models.core import progress
from models.core.data import Prompt, Response
from models.core.randomness import stream
from models.generators.base import Generator, response_of
from models.generators.decoding import Asked, Sampling, Text, write
from models.policies.checkpoint import Checkpoint
from models.policies.language_model import LanguageModel


class Transformers(Generator):
    """Sample with the model's own forward pass. A text depends on the seed, its prompt and its sample number, not on its
    batch, up to the rounding of the library's own matrix products."""

    kind: Literal["transformers"] = "transformers"

    @override
    def sample(
        self, policy: Checkpoint, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        return self.sample_from(policy.load_cached(), prompts, samples=samples, seed=seed, what=what)

    def sample_from(
        self, policy: LanguageModel, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        """Sample as `sample` does, from a model that is loaded already."""
        import torch

        end, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
        # a model reads at least one token: an empty prompt is what follows an end
        ids = [policy.renderer.prompt_ids(prompt.text) or [end] for prompt in prompts]
        asked = [
            Asked(own, [Text(place, n, len(own), stream(seed, n, f"generate {prompt.id}")) for n in range(samples)])
            for place, (prompt, own) in enumerate(zip(prompts, ids, strict=True))
        ]
        sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens, frozenset({end}))
        tokens = 0
        with torch.inference_mode(), progress.bar(total=len(prompts) * samples, desc=what, unit="response") as bar:
            for text in write(policy.model, asked, sampling, rows=self.batch_size, pad=pad):
                tokens += len(text.tokens)
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)
                bar.update()
        return [
            response_of(policy.renderer, prompts[text.prompt], text.sample, text.tokens, logprob=text.logprob)
            for one in asked
            for text in one.texts
        ]
