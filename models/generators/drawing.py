"""Exact nucleus (top-p) sampling without sorting, each row from its own random numbers."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

ATTEMPTS = 16  # uniform numbers to a draw
_BLOCK = 256  # tokens that are summed as one: a draw looks among blocks first, and then in its own
_PIECE = 1 << 19  # logits at once: they stay in a core's cache from one pass to the next


class Drawn(NamedTuple):
    """One token to a row, and its log-probability at temperature 1, in nats; both of shape (rows,)."""

    tokens: Any
    logprob: Any


def draw(logits: "torch.Tensor", uniforms: "torch.Tensor", *, temperature: float, top_p: float) -> Drawn:
    """Draw a token for each row of `logits`, (rows, vocabulary), by its own numbers of `uniforms`, (rows, attempts).

    A draw inverts the cumulative distribution at a uniform number; one outside the nucleus is rejected and made again from
    the next number, which samples the nucleus exactly and sorts nothing. What is rejected up to the last number is drawn
    by that from the nucleus alone, found by sorting. A row's draw depends on nothing but the row and its numbers.
    """
    import torch

    rows = len(logits) if logits.is_cuda else max(1, _PIECE // logits.shape[-1])
    pieces = [
        _drawn(piece, numbers, temperature, top_p)
        for piece, numbers in zip(logits.split(rows), uniforms.split(rows), strict=True)
    ]
    return Drawn(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _drawn(logits: "torch.Tensor", uniforms: "torch.Tensor", temperature: float, top_p: float) -> Drawn:
    import torch

    count, vocabulary = logits.shape
    blocks = -(-vocabulary // _BLOCK)
    log = logits.new_full((count, blocks * _BLOCK), float("-inf"), dtype=torch.float32)
    log[:, :vocabulary] = logits
    log -= log.amax(-1, keepdim=True)
    weight = (log / temperature).exp_()
    total = _sum(weight)
    tokens = torch.zeros(count, dtype=torch.long, device=logits.device)
    rejected = torch.arange(count, device=logits.device)
    for numbers in uniforms[:, :-1].unbind(-1):
        whole = len(rejected) == count
        rows = weight if whole else weight[rejected]
        found = _inverted(rows, numbers[rejected])
        tokens[rejected] = found
        if top_p == 1:
            rejected = rejected[:0]
        else:  # in the nucleus: the more probable tokens alone do not reach mass p
            own = rows.gather(-1, found[:, None])
            above = _sum(torch.threshold_(rows / own, 1, 0)) * own.squeeze(-1)
            rejected = rejected[above >= top_p * total[rejected]]
        if not len(rejected):
            break
    else:
        tokens[rejected] = _inverted(_nucleus(weight[rejected], top_p), uniforms[rejected, -1])
    logprob = log.gather(-1, tokens[:, None]).squeeze(-1).double() - _sum(log.exp_()).log()
    return Drawn(tokens, logprob)


def _inverted(weight: "torch.Tensor", uniforms: "torch.Tensor") -> "torch.Tensor":
    """Return the tokens at which the cumulative sums of `weight`, (rows, blocks · _BLOCK), pass a share of the whole."""
    import torch

    parts = weight.view(len(weight), -1, _BLOCK)
    cumulative = parts.sum(-1).double().cumsum(-1)
    block, rest = _passed(cumulative, uniforms * cumulative[:, -1])
    inside = parts[torch.arange(len(weight), device=weight.device), block].double().cumsum(-1)
    return block * _BLOCK + _passed(inside, rest)[0]


def _passed(cumulative: "torch.Tensor", target: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return where sums first exceed a target, row by row, and what of the target is left there.

    What rounding has put beyond the end falls on the last one that adds to the sum, never on what cannot be drawn.
    """
    import torch

    end = cumulative[:, -1]
    target = torch.minimum(target, torch.nextafter(end, torch.zeros_like(end)))[:, None]
    place = torch.searchsorted(cumulative, target, right=True)
    before = cumulative.gather(-1, (place - 1).clamp(min=0)) * (place > 0)
    return place.squeeze(-1), (target - before).squeeze(-1)


def _nucleus(weight: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Return the weights with those outside the nucleus set to zero."""
    ordered = weight.sort(-1, descending=True).values.double()
    inside = ordered.cumsum(-1) - ordered < top_p * _sum(weight)[:, None]
    least = ordered.gather(-1, inside.sum(-1, keepdim=True) - 1)
    return weight * (weight >= least)


def _sum(weight: "torch.Tensor") -> "torch.Tensor":
    """Return each row's sum, in float64: by blocks, which rounds a row alike whatever is beside it."""
    return weight.view(len(weight), -1, _BLOCK).sum(-1).double().sum(-1)
