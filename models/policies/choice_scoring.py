"""Score the next token after many texts with a common prefix, which is read once.

A judging question begins with the rubric, the same for every tuple; its keys and values are kept and shared by all rows.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from models.core.arrays import FloatArray
from models.core.errors import ConfigError
from models.policies.language_model import LanguageModel
from models.policies.lm_head import has_plain_head

if TYPE_CHECKING:
    import torch

WORTH_SHARING = 8  # tokens


def choice_logprob(
    policy: LanguageModel, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int, what: str = ""
) -> FloatArray:
    """Return log p(answer | prompt) among `answers`, in nats, shape (N, A), in one pass without sampling.

    The answers begin alike; what follows the common beginning tells them apart by one token. Raises ConfigError if it takes
    this tokenizer more.
    """
    from scipy.special import log_softmax

    if not prompts:
        return np.zeros((0, len(answers)))
    undecided = [_undecided(policy, prompt, answers) for prompt in prompts]
    encoded, decisive = [ids for ids, _ in undecided], [tokens for _, tokens in undecided]
    return np.asarray(log_softmax(next_logits(policy, encoded, decisive, batch_size=batch_size, what=what), axis=1))


def next_logits(
    policy: LanguageModel,
    encoded: Sequence[list[int]],
    tokens: Sequence[Sequence[int]],
    *,
    batch_size: int,
    what: str = "",
) -> FloatArray:
    """Return the logits of A `tokens` each, (N, A), as what comes after each of N texts.

    The figures are those of each text alone, up to rounding: pads are masked, and on the left. Logits are summed in float32,
    whatever the model's weights: in bfloat16 those of one question differ by steps that would tie its answers.
    """
    import torch

    found = np.zeros((len(encoded), len(tokens[0]) if len(tokens) else 0))
    shared, kept = _kept(policy, _common(encoded))
    for rows, ids, mask in policy.batches([text[len(shared) :] for text in encoded], batch_size, what, pads="left"):
        cache = deepcopy(kept)
        if cache is not None:
            cache.batch_repeat_interleave(len(rows))
        with torch.inference_mode():
            given = {
                "input_ids": ids,
                "attention_mask": torch.cat([mask.new_ones(len(rows), len(shared)), mask], dim=1),
                "position_ids": len(shared) + (mask.cumsum(1) - 1).clamp(min=0),
                **({} if cache is None else {"past_key_values": cache}),
                "use_cache": cache is not None,
            }
            found[rows] = _logits(policy, given, torch.tensor([tokens[row] for row in rows], device=ids.device)).cpu()
    return found


def _logits(policy: LanguageModel, given: dict[str, Any], tokens: "torch.Tensor") -> "torch.Tensor":
    """Return the logits of tokens, (rows, A), as the last one's successors."""
    import torch

    if has_plain_head(policy.model):
        states = policy.model.base_model(**given).last_hidden_state[:, -1].float()
        weight = policy.model.get_output_embeddings().weight[tokens].float()
        return torch.einsum("nd,nad->na", states, weight)
    return policy.model(**given, logits_to_keep=1).logits[:, -1].float().gather(1, tokens)


def _common(encoded: Sequence[list[int]]) -> list[int]:
    """Return the ids that all texts begin with and that are worth keeping; at least one id of each text is left."""
    if len(encoded) < 2:
        return []
    least, most = min(encoded), max(encoded)  # in the order of dictionaries: what these two share, all share
    shortest = min(len(text) for text in encoded)
    alike = next((place for place, pair in enumerate(zip(least, most, strict=False)) if pair[0] != pair[1]), shortest)
    shared = least[: min(alike, shortest - 1)]
    return shared if len(shared) >= WORTH_SHARING else []


def _kept(policy: LanguageModel, ids: list[int]) -> tuple[list[int], Any]:
    """Return the ids and their keys and values, of one row; nothing where the model does not keep them all.

    A layer with a sliding window (GPT-Neo calls it local, and keeps all the same) counts pads, which stand between the
    beginning and the rest; one with a state cannot be repeated. Such models read every text whole.
    """
    import torch

    from models.policies.growing_cache import keeps_all

    if not ids or "local" in getattr(policy.model.config, "attention_layers", ()):
        return [], None
    with torch.inference_mode():
        row = torch.tensor([ids], device=policy.model.device)
        output = policy.model(input_ids=row, use_cache=True, logits_to_keep=1)
        kept = getattr(output, "past_key_values", None)  # a model with a state keeps something else
    return (ids, kept) if keeps_all(kept) else ([], None)


def _undecided(policy: LanguageModel, prompt: str, answers: Sequence[str]) -> tuple[list[int], tuple[int, ...]]:
    """Return the ids up to where the answers part, and the id with which each goes on."""
    encoded = [policy.renderer.encode(prompt, answer).ids for answer in answers]
    shared = next(place for place, ids in enumerate(zip(*encoded, strict=False)) if len(set(ids)) > 1)
    decisive = tuple(ids[shared] for ids in encoded)
    if len(set(decisive)) < len(answers):
        raise ConfigError(
            f"this tokenizer does not tell the answers {list(answers)} apart by one token: use another evaluator, "
            "or scoring: sampled"
        )
    return encoded[0][:shared], decisive
