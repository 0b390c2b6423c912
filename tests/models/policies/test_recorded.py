"""What sampling has recorded stands for scoring where it is of the same tokens, and nowhere else."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from models.core.data import Pair, Prompt, Response
from models.generators.base import response_of
from models.policies.language_model import LanguageModel
from models.training.dpo import reference_logprob

LONGEST = 6


class Spied(NamedTuple):
    """A model, and how many texts it has read."""

    model: LanguageModel
    read: list[int]

    def count(self) -> int:
        total = sum(self.read)
        self.read.clear()
        return total


@pytest.fixture(params=["plain", "chat"])
def spied(tiny_model: LanguageModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Spied:
    read: list[int] = []
    forward = LanguageModel._token_logprob

    def counted(self: LanguageModel, ids: Any, mask: Any, asked: Any) -> Any:
        read.append(len(ids))
        return forward(self, ids, mask, asked)

    monkeypatch.setattr(LanguageModel, "_token_logprob", counted)
    return Spied(LanguageModel(tiny_model.model, tiny_model.tokenizer, request.param), read)


def drawn_by(model: LanguageModel, count: int) -> list[Response]:
    """Draw sequences of tokens, of which half reach the end, and record log π of them as sampling does."""
    rng, end, rows = np.random.default_rng(0), model.tokenizer.eos_token_id, []
    words = [i for piece, i in model.tokenizer.get_vocab().items() if piece.startswith("▁")]
    for number in range(count):
        # the chat template writes a space before what is drawn, which then goes on with a letter
        drawn = [int(rng.choice(words)) if rng.random() < 0.7 else int(rng.integers(60, 140)) for _ in range(LONGEST)]
        if model.template == "chat" and number % 3:
            drawn[0] = int(rng.integers(60, 140))
        if number % 2:
            drawn = [*drawn[: rng.integers(1, LONGEST)], end]
        prompt = Prompt.of("the film is")
        ids = model.renderer.prompt_ids(prompt.text)
        with torch.no_grad():
            logs = model.model(torch.tensor([[*ids, *drawn]])).logits[0].log_softmax(-1)
        logprob = sum(float(logs[len(ids) + step - 1, token]) for step, token in enumerate(drawn))
        rows.append(response_of(model.renderer, prompt, number, drawn, logprob=logprob))
    return rows


def texts_of(rows: Sequence[Response]) -> list[tuple[str, str]]:
    return [(r.prompt, r.text) for r in rows]


def test_what_is_recorded_of_the_same_tokens_is_what_scoring_says_and_is_not_scored_again(spied: Spied) -> None:
    model, rows = spied.model, drawn_by(spied.model, 200)
    ended = [r.tokens < LONGEST for r in rows]
    scored = model.likelihood(texts_of(rows), ended=ended)
    distinct = len({(r.text, end) for r, end in zip(rows, ended, strict=True)})
    assert spied.count() == distinct, "equal texts are read once"

    found = model.likelihood(texts_of(rows), ended=ended, sampled=rows)
    np.testing.assert_allclose(found.logprob, scored.logprob, atol=1e-4)
    np.testing.assert_array_equal(found.tokens, scored.tokens)
    same = [r.canonical and r.tokens == counted for r, counted in zip(rows, scored.tokens.tolist(), strict=True)]
    assert 20 < sum(same) < 180
    others = {(r.text, end) for r, end, known in zip(rows, ended, same, strict=True) if not known}
    assert spied.count() == len(others)


def test_as_many_tokens_are_not_the_same_tokens(spied: Spied) -> None:
    model, rows = spied.model, drawn_by(spied.model, 200)
    scored = model.likelihood(texts_of(rows), ended=[r.tokens < LONGEST for r in rows])
    off = np.abs([r.logprob for r in rows] - scored.logprob)
    as_many = np.array([r.tokens for r in rows]) == scored.tokens
    canonical = np.array([r.canonical for r in rows])
    assert off[canonical & as_many].max() < 1e-4
    assert off[as_many & ~canonical].max() > 1, "of other tokens, as many of them, π says something else"


def test_a_response_that_ends_with_its_last_token_is_scored_where_it_counts_as_cut_off(spied: Spied) -> None:
    """Rows do not say whether the last token that fits was the end token: it does not count then."""
    model = spied.model
    (row,) = [r for r in drawn_by(spied.model, 200) if r.canonical and 1 < r.tokens < LONGEST][:1]
    cut = model.likelihood(texts_of([row]), ended=[False])
    spied.count()
    found = model.likelihood(texts_of([row]), ended=[False], sampled=[row])
    assert spied.count() == 1
    assert found.logprob[0] == pytest.approx(cut.logprob[0], abs=1e-4) != row.logprob


def test_a_policy_s_own_responses_are_its_own_reference(spied: Spied) -> None:
    model, drawn = spied.model, drawn_by(spied.model, 240)
    start = len(model.renderer.prompt_ids("the film is"))  # else more is summed over, of both of a pair
    rows = [r for r in drawn if model.renderer.encode(r.prompt, r.text).start == start]
    rows = rows[: len(rows) // 2 * 2]
    pairs = [Pair("p", r.prompt, r.text, s.text, 1.0, 0.0, "proxy") for r, s in zip(rows[::2], rows[1::2], strict=True)]
    scored = reference_logprob(model, pairs)
    all_read = spied.count()
    np.testing.assert_allclose(reference_logprob(model, pairs, rows), scored, atol=1e-4)
    reached = {r.text for r in rows if r.canonical and r.sample % 2}
    assert len(reached) > 20
    assert spied.count() == all_read - len(reached), "those that were cut off have no end token, and are read"
    others = [Response.recorded(r.id, r.prompt, r.text) for r in rows]
    np.testing.assert_allclose(reference_logprob(model, pairs, others), scored, atol=1e-4)


def test_what_a_template_writes_after_a_response_is_nobody_s_sample(spied: Spied) -> None:
    """DPO sums over it too, so that its reference is read."""
    model = spied.model
    end = "{% if m['role'] == 'assistant' %}<end>{% endif %}"
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace(end, end + "{{ ' the film' }}")
    rows = drawn_by(model, 40)
    pairs = [Pair("p", r.prompt, r.text, s.text, 1.0, 0.0, "proxy") for r, s in zip(rows[::2], rows[1::2], strict=True)]
    assert any(r.canonical for r in rows)
    scored = reference_logprob(model, pairs)
    all_read = spied.count()
    np.testing.assert_allclose(reference_logprob(model, pairs, rows), scored, atol=1e-4)
    assert (spied.count() == all_read) == (model.template == "chat")
