"""Generation with transformers: batched by length, left-padded, one random stream per (prompt, sample)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.generators.base import Generator, response_id
from models.policies.language_model import LanguageModel
from models.preference import Prompt, Response
from models.randomness import stream


_NUCLEUS = 512


class _Request(NamedTuple):
    prompt: Prompt
    sample: int
    ids: list[int]


class Transformers(Generator):
    """Sample with `generate`. A text depends on the seed, its prompt and its sample number, not on its batch,
    up to the rounding of the library's own matrix products."""  # noqa: D205, D209

    kind: Literal["transformers"] = "transformers"

    def sample(  # noqa: D102
        self, policy: LanguageModel, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        requests = [
            _Request(prompt, number, policy.renderer.prompt_ids(prompt.text))
            for prompt in prompts
            for number in range(samples)
        ]
        by_length = sorted(range(len(requests)), key=lambda row: len(requests[row].ids))
        responses: dict[int, Response] = {}
        tokens = 0
        with tqdm(total=len(requests), desc=what, unit="response") as bar:
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
            [stream(seed, r.sample, f"generate {r.prompt.id}").random(self.max_new_tokens) for r in requests]
        )
        sampler = _InverseSampling(uniforms, self.temperature, self.top_p)
        end = policy.tokenizer.eos_token_id
        with torch.inference_mode():
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


@dataclass
class _InverseSampling:
    """Logits processor that draws by inverting the cumulative distribution at a given uniform number per row.

    `generate` draws all rows of a batch from one global stream, so the same prompt gets other text in another batch.
    Here row i, step t uses `uniforms[i, t]`. Records log π of the draw at temperature 1.
    """

    uniforms: NDArray[np.float64]
    temperature: float
    top_p: float
    logprobs: list[NDArray[np.float64]] = field(default_factory=list)

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ANN401, ARG002
        import torch

        step = len(self.logprobs)
        raw = scores.float()
        ordered, tokens = _top_p(torch.softmax(raw / self.temperature, dim=-1), self.top_p)
        cumulative = ordered.double().cumsum(dim=-1)
        # top-p keeps the smallest set whose mass reaches p, the first token always
        kept = cumulative - ordered < self.top_p
        kept[:, 0] = True
        mass = (ordered * kept).double().sum(dim=-1, keepdim=True)
        target = torch.as_tensor(self.uniforms[:, step], device=scores.device).unsqueeze(-1) * mass
        position = torch.minimum(
            (cumulative <= target).sum(dim=-1, keepdim=True), kept.sum(dim=-1, keepdim=True) - 1
        )
        drawn = tokens.gather(-1, position)
        logprob = raw.gather(-1, drawn).squeeze(-1) - raw.logsumexp(dim=-1)
        self.logprobs.append(logprob.cpu().numpy())
        return torch.full_like(scores, float("-inf")).scatter(-1, drawn, 0.0)


def _top_p(probabilities: Any, top_p: float) -> tuple[Any, Any]:  # noqa: ANN401
    """Return the largest probabilities and their tokens, at least up to mass `top_p` in every row.

    A few hundred tokens hold 90 % of the mass almost always, and finding those is ten times faster than a full sort.
    Only the rows whose mass is spread wider are sorted.
    """
    import torch

    few = min(_NUCLEUS, probabilities.shape[-1])
    ordered, tokens = probabilities.topk(few, dim=-1)
    short = (ordered.double().sum(dim=-1) < top_p).nonzero().squeeze(-1)
    if few == probabilities.shape[-1] or not len(short):
        return ordered, tokens
    wide, wide_tokens = probabilities[short].sort(dim=-1, descending=True)
    count = int((wide.double().cumsum(dim=-1) < top_p).sum(dim=-1).max()) + 1
    ordered = torch.nn.functional.pad(ordered, (0, max(count - few, 0)))
    tokens = torch.nn.functional.pad(tokens, (0, max(count - few, 0)))
    ordered[short, :count], tokens[short, :count] = wide[:, :count], wide_tokens[:, :count]
    return ordered, tokens
