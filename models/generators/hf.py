"""Generation with transformers: batched by length, left-padded, one random stream per (prompt, sample)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import progress
from models.generators.base import Generator, response_id
from models.policies.language_model import Checkpoint, LanguageModel
from models.preference import Prompt, Response
from models.randomness import stream

# At top-p = 0.9 all attempts fail once in 10¹⁶ draws; the most probable token is taken then.
_ATTEMPTS = 16


class _Request(NamedTuple):
    prompt: Prompt
    sample: int
    ids: list[int]


class Transformers(Generator):
    """Sample with `generate`. A text depends on the seed, its prompt and its sample number, not on its batch,
    up to the rounding of the library's own matrix products."""

    kind: Literal["transformers"] = "transformers"

    def sample(  # noqa: D102
        self, policy: Checkpoint, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        return self.sample_from(policy.shared(), prompts, samples=samples, seed=seed, what=what)

    def sample_from(
        self, policy: LanguageModel, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        """Sample as `sample` does, from a model that is loaded already."""
        requests = [
            _Request(prompt, number, policy.renderer.prompt_ids(prompt.text))
            for prompt in prompts
            for number in range(samples)
        ]
        by_length = sorted(range(len(requests)), key=lambda row: len(requests[row].ids))
        responses: dict[int, Response] = {}
        tokens = 0
        with progress.bar(total=len(requests), desc=what, unit="response") as bar:
            for begin in range(0, len(requests), self.batch_size):
                rows = by_length[begin : begin + self.batch_size]
                batch = self._batch(policy, [requests[row] for row in rows], seed)
                responses |= dict(zip(rows, batch, strict=True))
                tokens += sum(r.tokens for r in batch)
                bar.update(len(rows))
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s")
        return [responses[row] for row in range(len(requests))]

    def _batch(self, policy: LanguageModel, requests: list[_Request], seed: int) -> list[Response]:
        import torch

        width = max(len(r.ids) for r in requests)
        pad = policy.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(r.ids)) + r.ids for r in requests])
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests])
        uniforms = np.stack(
            [
                stream(seed, r.sample, f"generate {r.prompt.id}").random((self.max_new_tokens, _ATTEMPTS))
                for r in requests
            ]
        )
        sampler = _InverseSampling(uniforms, self.temperature, self.top_p)
        end = policy.tokenizer.eos_token_id
        with torch.inference_mode(), _plain(policy.model):
            output = policy.model.generate(
                input_ids=ids.to(policy.model.device),
                attention_mask=mask.to(policy.model.device),
                logits_processor=[sampler],
                do_sample=False,  # the sampler above has drawn already: the one finite score is its draw
                max_new_tokens=self.max_new_tokens,
                eos_token_id=end,
                pad_token_id=pad,
            )
        responses = []
        for request, drawn, logprobs in zip(
            requests, output[:, width:].tolist(), np.stack(sampler.logprobs, axis=1), strict=True
        ):
            length = drawn.index(end) + 1 if end in drawn else len(drawn)
            text = policy.tokenizer.decode(drawn[:length], skip_special_tokens=True).strip()
            responses.append(
                Response(
                    id=response_id(request.prompt.id, request.sample, text),
                    prompt_id=request.prompt.id,
                    prompt=request.prompt.text,
                    sample=request.sample,
                    text=text,
                    tokens=length,
                    logprob=float(logprobs[:length].sum()),
                )
            )
        return responses


@contextmanager
def _plain(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Set a model's own defaults of generation aside: a penalty or a banned token is no part of π."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@dataclass
class _InverseSampling:
    """Logits processor that draws by inverting the cumulative distribution at given uniform numbers, row by row.

    `generate` draws all rows of a batch from one global stream, so the same prompt gets other text in another batch. Here
    row i, step t uses `uniforms[i, t]` (shape rows × steps × attempts): a draw outside the nucleus is rejected and made
    again from the next number, which samples the nucleus exactly and needs no sort of the vocabulary. Records log π of
    each draw at temperature 1.
    """

    uniforms: NDArray[np.float64]
    temperature: float
    top_p: float
    logprobs: list[NDArray[np.float64]] = field(default_factory=list)

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ANN401
        import torch

        raw = scores.float()
        probability = torch.softmax(raw / self.temperature, dim=-1)
        cumulative = probability.double().cumsum(dim=-1)
        uniforms = torch.as_tensor(self.uniforms[:, len(self.logprobs)], device=scores.device)
        drawn = torch.zeros(len(raw), 1, dtype=torch.long, device=scores.device)
        open_rows = torch.arange(len(raw), device=scores.device)
        for attempt in range(uniforms.shape[1]):
            target = uniforms[open_rows, attempt, None] * cumulative[open_rows, -1:]
            token = torch.searchsorted(cumulative[open_rows], target, right=True).clamp(max=raw.shape[-1] - 1)
            drawn[open_rows] = token
            rows = probability[open_rows]
            # in the nucleus: the more probable tokens alone do not reach mass p
            above = (rows * (rows > rows.gather(-1, token))).double().sum(dim=-1)
            open_rows = open_rows[above >= self.top_p]
            if not len(open_rows):
                break
        else:
            drawn[open_rows] = probability[open_rows].argmax(dim=-1, keepdim=True)
        logprob = raw.gather(-1, drawn).squeeze(-1) - raw.logsumexp(dim=-1)
        self.logprobs.append(logprob.double().cpu().numpy())
        return torch.full_like(scores, float("-inf")).scatter(-1, drawn, 0.0)
