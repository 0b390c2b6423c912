"""Batched decoding with in-flight refill: ended rows leave the batch, waiting ones join, each prompt is prefilled once."""

import inspect
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.generators.drawing import ATTEMPTS, draw

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Prompts are read ahead, so many tokens in a pass at most: one over few costs nearly as much, and what is read takes memory
# until its last sample has begun. Free rows are given out when there is one in sixteen.
READ, FREE = 512, 16


@dataclass(eq=False)
class Text:
    """One text as it grows, after `start` tokens of a prompt. `random` is its own: it is the same whatever is beside it."""

    prompt: int
    sample: int
    start: int
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False

    @property
    def held(self) -> int:
        """Return how many of its tokens a cache holds: all but the last, which is yet to be read."""
        return self.start + len(self.tokens) - 1


class Asked(NamedTuple):
    """A prompt's token ids, at least one, and the texts to write after it."""

    ids: list[int]
    texts: list[Text]


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, and where they end: at one of the tokens `ends`, which is theirs, or after `most` tokens."""

    temperature: float
    top_p: float
    most: int
    ends: frozenset[int]

    def extend(self, texts: Sequence[Text], logits: "torch.Tensor") -> "torch.Tensor":
        """Draw the next token of every text that has not ended; return the tokens, one to a row of the logits."""
        import torch

        uniforms = torch.as_tensor(np.stack([text.random.random(ATTEMPTS) for text in texts]), device=logits.device)
        drawn = draw(logits, uniforms, temperature=self.temperature, top_p=self.top_p)
        for text, token, logprob in zip(texts, drawn.tokens.tolist(), drawn.logprob.tolist(), strict=True):
            if not text.ended:
                text.tokens.append(token)
                text.logprob += logprob
                text.ended = token in self.ends or len(text.tokens) == self.most
        return drawn.tokens


def write(
    model: "PreTrainedModel", asked: Sequence[Asked], sampling: Sampling, *, rows: int, pad: int
) -> Iterator[Text]:
    """Yield each text as it ends, in no order; `rows` are written at once, prompts of similar lengths beside each other."""
    by_length = sorted(asked, key=lambda one: len(one.ids))
    if can_step(model):
        yield from _Batch(model, sampling, rows, pad).write(deque(by_length))
    else:
        yield from _by_the_library(model, by_length, sampling, rows, pad)


def can_step(model: "PreTrainedModel") -> bool:
    """Whether rows of a model may come and go: it keeps the keys and values of all tokens, and a row's depend on it alone.

    Not so with a sliding window or a state, with turns that stretch with the longest row, or where a model prepares its
    own inputs. Those are left to the library's `generate`.
    """
    import torch
    from transformers import GenerationMixin

    from models.policies.growing_cache import keeps_all

    turns = getattr(model.config.get_text_config(), "rope_parameters", None)
    prepares = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    takes = {"position_ids", "logits_to_keep"} <= inspect.signature(model.forward).parameters.keys()
    if prepares or not takes or re.search("dynamic|longrope", str(turns)):
        return False
    one = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    return keeps_all(model(input_ids=one, use_cache=True, logits_to_keep=1).past_key_values)


class _Read(NamedTuple):
    """Prompts that have been read: their layers of keys and values, what comes next, and whose row is whose."""

    layers: Sequence[Any]
    logits: Any
    waiting: deque[tuple[int, Text]]


class _Batch:
    """The texts that are being written, each in its row of one cache."""

    def __init__(self, model: "PreTrainedModel", sampling: Sampling, rows: int, pad: int) -> None:
        self._model, self._sampling, self._rows, self._pad = model, sampling, rows, pad
        self._enough = max(1, rows // FREE)
        self._live: list[Text] = []
        self._cache: Any = None
        self._read: _Read | None = None

    def write(self, asked: deque[Asked]) -> Iterator[Text]:
        while asked or self._read or self._live:
            while (asked or self._read) and (self._room >= self._enough or not self._live):
                yield from self._begin(asked)
            if self._live:
                yield from self._step()

    @property
    def _room(self) -> int:
        return self._rows - len(self._live)

    def _begin(self, asked: deque[Asked]) -> list[Text]:
        """Give free rows to texts whose prompts are read, or are read now; return those that one token has ended."""
        read = self._read or self._reading(asked)
        begun = [read.waiting.popleft() for _ in range(min(self._room, len(read.waiting)))]
        self._read = read if read.waiting else None
        self._sampling.extend([text for _, text in begun], read.logits[[row for row, _ in begun]])
        if going_on := [(row, text) for row, text in begun if not text.ended]:
            rows, texts = zip(*going_on, strict=True)
            self._cache.join(read.layers, list(rows), max(text.held for text in texts))
            self._live += texts
        return [text for _, text in begun if text.ended]

    def _reading(self, asked: deque[Asked]) -> _Read:
        """Read the next prompts, each once for all of its texts."""
        from models.policies.growing_cache import GrowingCache

        prompts = [asked.popleft()]
        while asked and len(prompts) < self._rows // 2 and (len(prompts) + 1) * len(asked[0].ids) <= READ:
            prompts.append(asked.popleft())
        ids, mask = left_padded([one.ids for one in prompts], self._pad)
        mask = mask.to(self._model.device)
        output = self._model(
            input_ids=ids.to(self._model.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        layers = output.past_key_values.layers
        if self._cache is None:
            self._cache = GrowingCache(len(layers), self._rows)
        waiting = deque((row, text) for row, one in enumerate(prompts) for text in one.texts)
        return _Read(layers, output.logits[:, -1], waiting)

    def _step(self) -> list[Text]:
        """Draw the next token of every text; return those that have ended, whose rows are free."""
        import torch

        device, width = self._model.device, max(text.held for text in self._live)
        held = torch.tensor([[text.held] for text in self._live], device=device)
        output = self._model(
            input_ids=torch.tensor([text.tokens[-1:] for text in self._live], device=device),
            attention_mask=(torch.arange(width + 1, device=device) >= width - held).long(),
            position_ids=held,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._sampling.extend(self._live, output.logits[:, -1])
        return self._let_go()

    def _let_go(self) -> list[Text]:
        """Return the texts that have ended; rows from below take their places."""
        ended = [text for text in self._live if text.ended]
        if ended:
            live = len(self._live) - len(ended)
            holes = [row for row in range(live) if self._live[row].ended]
            movers = [row for row in range(live, len(self._live)) if not self._live[row].ended]
            for hole, mover in zip(holes, movers, strict=True):
                self._live[hole] = self._live[mover]
            del self._live[live:]
            width = max((text.held for text in self._live), default=0)
            self._cache.leave(holes=holes, movers=movers, live=live, width=width)
        return ended


def left_padded(rows: Sequence[list[int]], pad: int) -> tuple[Any, Any]:
    """Return ids and mask of rows of different lengths, pads on the left."""
    import torch

    width = max(len(ids) for ids in rows)
    ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in rows])
    return ids, torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])


def _by_the_library(
    model: "PreTrainedModel",
    asked: Sequence[Asked],
    sampling: Sampling,
    rows: int,
    pad: int,
) -> Iterator[Text]:
    """Yield the texts of one batch after another, written by `generate`; each waits for the longest of its batch."""
    import torch

    requests = [(one.ids, text) for one in asked for text in one.texts]
    for begin in range(0, len(requests), rows):
        batch, texts = zip(*requests[begin : begin + rows], strict=True)
        ids, mask = left_padded(batch, pad)

        def drawn(_: object, scores: "torch.Tensor", texts: tuple[Text, ...] = texts) -> "torch.Tensor":
            tokens = sampling.extend(texts, scores)
            return torch.full_like(scores, float("-inf")).scatter(-1, tokens[:, None], 0.0)

        with _plain(model):
            model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                logits_processor=[drawn],
                do_sample=False,  # it has drawn already: the one finite score is its draw
                max_new_tokens=sampling.most,
                eos_token_id=sorted(sampling.ends),
                pad_token_id=pad,
            )
        yield from texts


@contextmanager
def _plain(model: "PreTrainedModel") -> Iterator[None]:
    """Set a model's own defaults of generation aside: a penalty or a banned token is no part of π."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
