"""Generation with transformers: every text is what a plain loop draws for it alone, and nothing is computed twice."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from models.core import progress
from models.core.data import Prompt, Response
from models.core.randomness import stream
from models.generators import decoding
from models.generators.drawing import ATTEMPTS, draw
from models.generators.hf import Transformers
from models.policies import growing_cache
from models.policies.language_model import LanguageModel

WORDS = """film warm witty tale love charm wonderful great acting superb delight dull boring tedious awful mess
bad""".split()  # noqa: SIM905
# of one token to sixty, in no order
PROMPTS = [Prompt.of(" ".join(WORDS[n % 5 :][:n])) for n in (3, 1, 14, 2, 7, 5)] + [Prompt.of(" ".join(WORDS * 3))]
LONGER = [prompt for prompt in PROMPTS if len(prompt.text.split()) > 1]  # a pass over one column is then a step
SAMPLING = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.95}


@pytest.fixture
def policy(tiny_model: LanguageModel) -> LanguageModel:
    """The tiny model, ending its texts sooner: after one token, after a few, or not within two dozen."""
    return ending(tiny_model)


def ending(policy: LanguageModel) -> LanguageModel:
    vocabulary, hidden = policy.model.lm_head.weight.shape
    head = torch.nn.Linear(hidden, vocabulary)
    with torch.no_grad():
        head.weight.copy_(policy.model.lm_head.weight)
        head.bias.zero_()
        head.bias[policy.tokenizer.eos_token_id] = 3.0
    policy.model.lm_head = head
    return policy


def alone(
    policy: LanguageModel, prompt: str, random: np.random.Generator, back_end: Transformers
) -> tuple[list[int], float]:
    """The plain loop: the whole text is read again for each token of one text. No cache, no batch."""
    ids, drawn, logprob = policy.renderer.prompt_ids(prompt), list[int](), 0.0
    while len(drawn) < back_end.max_new_tokens and policy.tokenizer.eos_token_id not in drawn:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([ids + drawn]), use_cache=False).logits[:, -1]
        uniforms = torch.as_tensor(random.random((1, ATTEMPTS)))
        one = draw(logits, uniforms, temperature=back_end.temperature, top_p=back_end.top_p)
        drawn.append(int(one.tokens))
        logprob += float(one.logprob)
    return drawn, logprob


def plainly(
    policy: LanguageModel, prompts: Sequence[Prompt], back_end: Transformers, samples: int
) -> list[tuple[str, int, str, int, float]]:
    found = []
    for prompt in prompts:
        for number in range(samples):
            drawn, logprob = alone(policy, prompt.text, stream(3, number, f"generate {prompt.id}"), back_end)
            text = policy.tokenizer.decode(drawn, skip_special_tokens=True).strip()
            found.append((prompt.id, number, text, len(drawn), pytest.approx(logprob, abs=1e-3)))
    return found


def shown(responses: Sequence[Response]) -> list[tuple[str, int, str, int, float]]:
    return [(r.prompt_id, r.sample, r.text, r.tokens, r.logprob) for r in responses]


@pytest.mark.parametrize(("batch_size", "samples"), [(1, 2), (2, 5), (4, 3), (5, 4), (64, 3)])
def test_every_text_is_what_a_plain_loop_draws_for_it_alone(
    policy: LanguageModel, batch_size: int, samples: int
) -> None:
    back_end = Transformers(batch_size=batch_size, **SAMPLING)
    found = back_end.sample_from(policy, PROMPTS, samples=samples, seed=3, what="test")
    assert shown(found) == plainly(policy, PROMPTS, back_end, samples)
    lengths = {r.tokens for r in found}
    assert len(lengths) > 3, "they end at different lengths"
    assert back_end.max_new_tokens in lengths, "and some are cut off"


@pytest.mark.parametrize("most", [1, 2])
def test_a_text_of_one_token_comes_from_reading_its_prompt(policy: LanguageModel, most: int) -> None:
    back_end = Transformers(batch_size=4, **{**SAMPLING, "max_new_tokens": most})
    found = back_end.sample_from(policy, PROMPTS, samples=3, seed=3, what="test")
    assert shown(found) == plainly(policy, PROMPTS, back_end, 3)


def test_one_prompt_alone_has_more_samples_than_there_is_room_for(policy: LanguageModel) -> None:
    back_end = Transformers(batch_size=3, **SAMPLING)
    found = back_end.sample_from(policy, PROMPTS[:1], samples=20, seed=3, what="test")
    assert shown(found) == plainly(policy, PROMPTS[:1], back_end, 20)


def test_no_prompts_have_no_texts(policy: LanguageModel) -> None:
    assert Transformers().sample_from(policy, [], samples=2, seed=0, what="test") == []


def test_an_empty_prompt_is_read_as_what_follows_an_end(policy: LanguageModel) -> None:
    back_end = Transformers(batch_size=4, **SAMPLING)
    empty, after_end = Prompt("p", ""), Prompt("p", policy.tokenizer.eos_token)
    assert policy.renderer.prompt_ids("") == []

    def texts(prompt: Prompt) -> list[tuple[str, float]]:
        rows = back_end.sample_from(policy, [*PROMPTS, prompt], samples=2, seed=0, what="test")
        return [(r.text, pytest.approx(r.logprob, abs=1e-3)) for r in rows]

    assert policy.renderer.prompt_ids(after_end.text) == [policy.tokenizer.eos_token_id]
    assert texts(empty) == texts(after_end)


@pytest.mark.parametrize("ahead", [1, 2, 32])
def test_a_cache_that_runs_out_of_columns_goes_on_in_a_larger_one(
    policy: LanguageModel, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_cache, "AHEAD", ahead)
    back_end = Transformers(batch_size=4, **{**SAMPLING, "max_new_tokens": 70})
    found = back_end.sample_from(policy, PROMPTS, samples=2, seed=3, what="test")
    assert shown(found) == plainly(policy, PROMPTS, back_end, 2)


class Passes:
    """The passes through a model: rows and columns of each."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        self.shapes.append(tuple(given["input_ids"].shape))

    def rows(self, of: Callable[[int], bool]) -> list[int]:
        return [rows for rows, columns in self.shapes if of(columns)]


@pytest.mark.parametrize(("batch_size", "samples", "tokens"), [(4, 2, 512), (8, 3, 512), (3, 9, 512), (64, 2, 40)])
def test_a_prompt_is_read_once_and_no_text_is_stepped_after_its_end(
    policy: LanguageModel, batch_size: int, samples: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "READ", tokens)
    passes = Passes(policy.model)
    back_end = Transformers(batch_size=batch_size, **SAMPLING)
    found = back_end.sample_from(policy, LONGER, samples=samples, seed=3, what="test")
    assert passes.shapes.pop(0) == (1, 1), "one token, to see what the model keeps"
    read, stepped = passes.rows(lambda columns: columns > 1), passes.rows(lambda columns: columns == 1)
    assert sum(read) == len(LONGER)
    assert sum(stepped) == sum(r.tokens - 1 for r in found), "the first token comes from reading the prompt"
    assert max(stepped) <= batch_size
    assert all(rows == 1 or rows * columns <= tokens for rows, columns in passes.shapes)


def test_others_take_the_place_of_texts_that_have_ended(policy: LanguageModel) -> None:
    passes = Passes(policy.model)
    back_end = Transformers(batch_size=8, **SAMPLING)
    back_end.sample_from(policy, LONGER, samples=8, seed=3, what="test")
    steps = passes.rows(lambda columns: columns == 1)[1:]  # the first sees what the model keeps
    last_full = max(place for place, rows in enumerate(steps) if rows == 8)
    assert set(steps[: last_full + 1]) == {8}, "it stays filled up as long as texts wait"
    assert len(steps) > last_full + 1, "and empties at the end"


def test_progress_counts_responses_and_tells_tokens_a_second(
    policy: LanguageModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)  # a line for each step instead of each half minute
    with caplog.at_level(logging.INFO):
        Transformers(batch_size=4, **SAMPLING).sample_from(policy, PROMPTS, samples=2, seed=3, what="writing")
    assert caplog.messages[-1].startswith("writing 14/14 responses, ")
    assert "tokens/s" in caplog.messages[-1]


def sliding(config: dict[str, Any]) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**config, num_attention_heads=4, num_key_value_heads=2, sliding_window=6))


def state_space(config: dict[str, Any]) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(**config, state_size=4))


def rope_by_length(config: dict[str, Any]) -> Any:
    """Turns that stretch with the longest text of a batch: beside a longer one a text would be another."""
    from transformers import LlamaConfig, LlamaForCausalLM

    turns = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config |= {"max_position_embeddings": 512}
    return LlamaForCausalLM(LlamaConfig(**config, num_attention_heads=4, num_key_value_heads=2, rope_parameters=turns))


def other(make: Callable[[dict[str, Any]], Any], like: LanguageModel) -> LanguageModel:
    torch.manual_seed(1)
    config = {
        "vocab_size": like.model.config.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": like.tokenizer.eos_token_id,
        "pad_token_id": like.tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return LanguageModel(make(config).eval(), like.tokenizer, "plain")


@pytest.mark.parametrize("make", [sliding, state_space, rope_by_length])
def test_a_model_that_does_not_keep_every_token_writes_the_same_texts_batch_by_batch(
    tiny_model: LanguageModel, make: Callable[[dict[str, Any]], Any]
) -> None:
    policy = other(make, tiny_model)
    back_end = Transformers(batch_size=4, **SAMPLING)
    assert not decoding.can_step(policy.model)
    found = back_end.sample_from(policy, PROMPTS, samples=2, seed=3, what="test")
    assert shown(found) == plainly(policy, PROMPTS, back_end, 2)


def test_a_plain_model_is_stepped(policy: LanguageModel) -> None:
    assert decoding.can_step(policy.model)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5), (1.0, 0.05)])
@pytest.mark.parametrize("attempts", [1, 2, 16])
def test_draws_follow_the_tempered_nucleus_whatever_the_attempts(
    temperature: float, top_p: float, attempts: int
) -> None:
    """Over a vocabulary of several blocks, the last of them not full, with tokens that cannot be drawn."""
    rng = np.random.default_rng(0)
    logits = torch.full((700,), float("-inf"))
    possible = np.sort(rng.choice(700, size=20, replace=False))
    logits[possible] = torch.tensor(rng.normal(size=20) * 2, dtype=torch.float32)
    draws = 20_000
    found = draw(
        logits.repeat(draws, 1), torch.as_tensor(rng.random((draws, attempts))), temperature=temperature, top_p=top_p
    )
    probability = torch.softmax(logits / temperature, -1).numpy()
    order = np.argsort(-probability)
    kept = order[: int(np.searchsorted(np.cumsum(probability[order]), min(top_p, 1 - 1e-6)) + 1)]
    expected = np.zeros(700)
    expected[kept] = probability[kept] / probability[kept].sum()
    assert np.bincount(found.tokens, minlength=700) / draws == pytest.approx(expected, abs=0.012)
    assert set(found.tokens.tolist()) <= set(kept.tolist())
    np.testing.assert_allclose(found.logprob, torch.log_softmax(logits, -1)[found.tokens].numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(40, 49_152)) * 2.5, dtype=dtype)
    uniforms = torch.as_tensor(rng.random((40, 4)))
    together = draw(logits, uniforms, temperature=0.9, top_p=0.9)
    for row in range(0, 40, 3):
        by_itself = draw(logits[row : row + 1], uniforms[row : row + 1], temperature=0.9, top_p=0.9)
        assert (by_itself.tokens.item(), by_itself.logprob.item()) == (together.tokens[row], together.logprob[row])


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1, 0)])
def test_the_first_and_the_last_number_draw_what_can_be_drawn(uniform: float) -> None:
    logits = torch.full((1, 600), float("-inf"))
    logits[0, [100, 300, 400]] = torch.tensor([0.0, -40.0, -90.0])
    found = draw(logits, torch.full((1, 2), uniform, dtype=torch.float64), temperature=1.0, top_p=1.0)
    assert logits[0, found.tokens.item()] > float("-inf")


def test_tokens_as_probable_as_the_last_of_the_nucleus_are_in_it() -> None:
    uniforms = torch.linspace(0, 0.999, 200, dtype=torch.float64)[:, None]
    found = draw(torch.zeros(200, 4), uniforms, temperature=1.0, top_p=0.3)
    assert set(found.tokens.tolist()) == {0, 1, 2, 3}
