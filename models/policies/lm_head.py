"""Log-probabilities of given tokens from a language-model head, in chunks over positions.

Logits of all positions at once are written and read several times over: here each piece stays in the cache, forward and,
made again, backward; nothing of the vocabulary's size is kept.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch.autograd.function import FunctionCtx
    from transformers import PreTrainedModel

PIECE = 128  # positions at once

# Models that transform their logits keep their own head, which knows how; each family has its own name for it.
_TRANSFORMS = re.compile(r"soft_?cap|logits?_scal|output_multiplier|lm_head_multiplier|output_router_logits")


class Tokens(NamedTuple):
    """Of n tokens: log-probability in nats, the entropy and mean logit where each stands, whether it was the likeliest."""

    logprob: Any
    entropy: Any
    mean_logit: Any
    is_likeliest: Any


def has_plain_head(model: "PreTrainedModel") -> bool:
    """Whether a model's logits are a linear layer, without a bias, of its last hidden states."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    transformed = any(value and _TRANSFORMS.search(name) for name, value in config.to_dict().items())
    return head is not None and getattr(head, "bias", None) is None and not transformed


def logprob(states: "torch.Tensor", weight: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Return log p of each token, shape (n,), given the hidden states before it, (n, d), and the head's weight, (V, d)."""
    import torch

    found = []
    for piece, logits in _pieces(states, weight):
        own = logits.gather(-1, tokens[piece, None]).squeeze(-1)
        found.append(own - logits.logsumexp(-1))
    return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)


def scored(states: "torch.Tensor", weight: "torch.Tensor", tokens: "torch.Tensor") -> Tokens:
    """Return `logprob` with a gradient for the states, and what trainers log beside it; the head itself is frozen."""
    return Tokens(*_head().apply(states, weight, tokens))


def _pieces(states: "torch.Tensor", weight: "torch.Tensor") -> Iterator[tuple[slice, "torch.Tensor"]]:
    """Yield which positions, and their logits."""
    for begin in range(0, len(states), PIECE):
        piece = slice(begin, begin + PIECE)
        yield piece, (states[piece] @ weight.t()).float()


@cache
def _head() -> "type[torch.autograd.Function]":
    import torch

    class Head(torch.autograd.Function):  # type: ignore[misc]
        """log softmax(W h)_y, and ∂/∂h = Wᵀ(1_y − softmax(W h))."""

        @staticmethod
        def forward(
            ctx: "FunctionCtx", states: "torch.Tensor", weight: "torch.Tensor", tokens: "torch.Tensor"
        ) -> "torch.Tensor":
            count = len(states)
            logprob, entropy, mean, norm = (states.new_zeros(count, dtype=torch.float32) for _ in range(4))
            likeliest = torch.zeros(count, dtype=torch.bool, device=states.device)
            for piece, logits in _pieces(states, weight):
                own = logits.gather(-1, tokens[piece, None]).squeeze(-1)
                norm[piece] = logits.logsumexp(-1)
                logprob[piece], likeliest[piece] = own - norm[piece], own == logits.amax(-1)
                mean[piece] = logits.mean(-1)
                entropy[piece] = norm[piece] - torch.linalg.vecdot((logits - norm[piece, None]).exp_(), logits)
            ctx.save_for_backward(states, weight, tokens, norm)
            ctx.mark_non_differentiable(entropy, mean, likeliest)
            return logprob, entropy, mean, likeliest

        @staticmethod
        def backward(ctx: "FunctionCtx", of_logprob: "torch.Tensor", *_: object) -> "torch.Tensor":
            states, weight, tokens, norm = ctx.saved_tensors
            of_states = torch.empty_like(states)
            for piece, logits in _pieces(states, weight):
                gradient = of_logprob[piece, None].float()
                of_logits = logits.sub_(norm[piece, None]).exp_().mul_(-gradient)
                of_logits.scatter_add_(-1, tokens[piece, None], gradient)
                of_states[piece] = of_logits.to(weight.dtype) @ weight
            return of_states, None, None

    return Head
