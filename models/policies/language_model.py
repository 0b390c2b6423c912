"""A causal language model in memory: what generates, scores, embeds and is trained."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from models.core import progress
from models.core.arrays import Float32Array, FloatArray, IntArray
from models.core.data import Response
from models.core.errors import ConfigError
from models.policies.chat_template import Encoded, Renderer, Template
from models.policies.lm_head import has_plain_head
from models.policies.lm_head import logprob as head_logprob
from models.policies.recorded import recorded

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"
# Rows and tokens read at once. The packaged model, on two cores in bfloat16, read 912 texts of 20 tokens in 7.9 s by 16
# rows, in 7.4, 6.5, 5.7 and 5.6 s by 512, 1,024, 2,048 and 4,096 tokens.
AT_LEAST, AT_ONCE = 16, 2048
Pooling = Literal["mean", "last"]


class Likelihood(NamedTuple):
    """Σ log π(y_t | x, y_<t) in nats and the number of completion tokens, one entry per text."""

    logprob: FloatArray
    tokens: IntArray


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model. `model` is on its device and in eval mode."""

    model: Any
    tokenizer: Any
    template: Template

    @property
    def renderer(self) -> Renderer:
        """Return the renderer of (prompt, response) for this tokenizer."""
        return Renderer(self.tokenizer, self.template)

    def likelihood(
        self,
        texts: Sequence[tuple[str, str]],
        *,
        ended: Sequence[bool] | None = None,
        sampled: Sequence[Response] = (),
        batch_size: int | None = None,
        what: str = "",
    ) -> Likelihood:
        """Return the log-probability of each response given its prompt, completion tokens only (2402.08114 eq. 5).

        The end token counts unless `ended` says of a response that it was cut off before it. Pads are masked, so the
        figures do not depend on the batch, up to rounding. Where the model has `sampled` the texts itself, what is recorded
        of the same tokens is taken for it.
        """
        whole = ended if ended is not None else [True] * len(texts)
        encoded = [
            self.renderer.encode(prompt, response).up_to(self.tokenizer.eos_token_id, included=end)
            for (prompt, response), end in zip(texts, whole, strict=True)
        ]
        tokens = np.array([e.completion for e in encoded], dtype=np.int64)
        known = recorded(encoded, sampled) if sampled else None
        return Likelihood(self.logprob(encoded, known=known, batch_size=batch_size, what=what), tokens)

    def logprob(
        self,
        encoded: Sequence[Encoded],
        *,
        known: FloatArray | None = None,
        batch_size: int | None = None,
        what: str = "",
    ) -> FloatArray:
        """Return log p of each completion to its last token, (N,): `known`, or else (NaN) read, equal ones once."""
        import torch

        found = np.full(len(encoded), np.nan) if known is None else known.copy()
        alike: dict[tuple[int, ...], list[int]] = {}
        for row in np.flatnonzero(np.isnan(found)).tolist():
            alike.setdefault((encoded[row].start, *encoded[row].ids), []).append(row)
        same, distinct = list(alike.values()), [encoded[rows[0]] for rows in alike.values()]
        for batch, ids, mask in self.batches([e.ids for e in distinct], batch_size, what):
            asked = torch.zeros_like(ids, dtype=torch.bool)
            for position, one in enumerate(batch):
                asked[position, max(1, distinct[one].start) : len(distinct[one].ids)] = True
            with torch.inference_mode():
                each = self._token_logprob(ids, mask, asked).double().split(asked.sum(1).tolist())
            for one, of_tokens in zip(batch, each, strict=True):
                found[same[one]] = float(of_tokens.sum())
        return found

    def _token_logprob(self, ids: "torch.Tensor", mask: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return log p of the tokens asked for, row by row, shape (asked,)."""
        import torch

        before, tokens = asked[:, 1:], ids[asked]
        if has_plain_head(self.model):
            states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[
                :, :-1
            ]
            return head_logprob(states[before], self.model.get_output_embeddings().weight, tokens)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][before].float()
        return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")

    def hidden_states(
        self,
        texts: Sequence[str],
        *,
        pooling: Pooling,
        layers: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = 16,
        what: str = "",
    ) -> Iterator[tuple[list[int], Float32Array]]:
        """Yield (row numbers, vectors of shape (rows, hidden size)) of the hidden states, batch by batch.

        Only the first `layers` are run (all by default), and the final norm after them; only the first `max_tokens` of a
        text are read. Raises ConfigError if the model has fewer layers.
        """
        import torch

        trunk = self._trunk(layers)
        encoded = [list(self.tokenizer(text)["input_ids"])[:max_tokens] for text in texts]
        for rows, ids, mask in self.batches(encoded, batch_size, what):
            with torch.inference_mode():
                states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            if pooling == "mean":
                weights = mask.unsqueeze(-1).float()
                pooled = (states * weights).sum(1) / weights.sum(1)
            else:
                pooled = states[torch.arange(len(rows)), mask.sum(1) - 1]
            yield rows, pooled.cpu().numpy()

    def _trunk(self, layers: int | None) -> "torch.nn.Module":
        """Return the model below its head with only its first layers, sharing their weights."""
        whole = self.model.get_decoder()
        if layers is None:
            return whole
        most = self.model.config.get_text_config().num_hidden_layers
        if layers > most:
            raise ConfigError(f"layers must be at most the model's {most}, got {layers}")
        trunk, (name, blocks) = copy(whole), _blocks(whole, most)
        trunk._modules = {**whole._modules, name: blocks[:layers]}
        return trunk

    def batches(
        self,
        encoded: Sequence[list[int]],
        batch_size: int | None,
        what: str = "",
        *,
        pads: Literal["left", "right"] = "right",
    ) -> Iterator[tuple[list[int], Any, Any]]:
        """Yield (row numbers, ids, mask) on the model's device, longest first.

        Without a batch size as many rows at once as have about AT_ONCE tokens, and no fewer than AT_LEAST.
        """
        import torch

        longest_first = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))
        pad = self.tokenizer.pad_token_id
        with progress.bar(total=len(encoded), desc=what, unit="text", disable=not what) as bar:
            while longest_first:
                width = len(encoded[longest_first[0]])
                count = batch_size or max(AT_LEAST, AT_ONCE // max(1, width))
                rows, longest_first = longest_first[:count], longest_first[count:]
                ids = torch.full((len(rows), width), pad)
                mask = torch.zeros((len(rows), width), dtype=torch.long)
                for position, row in enumerate(rows):
                    length = len(encoded[row])
                    begin_at = width - length if pads == "left" else 0
                    ids[position, begin_at : begin_at + length] = torch.tensor(encoded[row])
                    mask[position, begin_at : begin_at + length] = 1
                yield rows, ids.to(self.model.device), mask.to(self.model.device)
                bar.update(len(rows))


def _blocks(decoder: "torch.nn.Module", number: int) -> "tuple[str, torch.nn.ModuleList]":
    """Return the list of a decoder's layers, and by what name it holds it: `layers`, `h`, `blocks`."""
    import torch

    for name, part in decoder.named_children():
        if isinstance(part, torch.nn.ModuleList) and len(part) == number:
            return name, part
    raise ConfigError(
        f"the layers of a {type(decoder).__name__} were not found, so that it cannot be read to an early one: leave "
        "embedding.layers out"
    )
