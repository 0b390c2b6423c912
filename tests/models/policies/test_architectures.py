"""Every part of the method finds the layers and the heads of models of many architectures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.core.data import Demonstration, Pair, Prompt, Response
from models.core.rubric import Rubric
from models.evaluators.base import Examples, FitContext
from models.evaluators.reward_head import RewardHead
from models.generators.hf import Transformers
from models.policies.checkpoint import CACHE, Checkpoint
from models.policies.choice_scoring import choice_logprob
from models.training.config import Lora
from models.training.dpo import DPO, reference_logprob, train_dpo
from models.training.sft import SFT, train_sft
from tests.support.architectures import ARCHITECTURES, write_model

TEXTS = [("the film is", "a warm and witty tale"), ("good", "bad"), ("the plot", "is slow dull boring"), ("a", "tale")]
QUICK = {"learning_rate": 3e-3, "batch_size": 4, "max_length": 128, "lora": Lora(r=4, alpha=8)}


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield Checkpoint(str(write_model(tmp_path_factory.mktemp(request.param), request.param)), (), "float32", "chat")
    CACHE.release()


def test_likelihoods_and_generation_are_those_of_the_whole_model(policy: Checkpoint) -> None:
    model = policy.load_cached()
    found = model.likelihood(TEXTS).logprob
    for (prompt, response), value in zip(TEXTS, found, strict=True):
        encoded = model.renderer.encode(prompt, response).up_to(1, included=True)
        with torch.no_grad():
            logs = model.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        expected = sum(float(logs[t - 1, encoded.ids[t]]) for t in range(encoded.start, len(encoded.ids)))
        assert value == pytest.approx(expected, abs=2e-3)

    def texts(batch_size: int) -> list[str]:
        engine = Transformers(max_new_tokens=8, temperature=1.0, batch_size=batch_size)
        asked = [Prompt.of(prompt) for prompt, _ in TEXTS]
        return [r.text for r in engine.sample_from(model, asked, samples=2, seed=0, what="")]

    assert texts(1) == texts(4)


def test_texts_are_embedded_by_the_last_layer_and_by_an_early_one(policy: Checkpoint) -> None:
    model, text = policy.load_cached(), "the film is a warm tale"
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True).hidden_states
    ((_, last),) = model.hidden_states([text], pooling="last")
    np.testing.assert_allclose(last[0], states[-1][0, -1].numpy(), atol=1e-4)
    ((_, early),) = model.hidden_states([text], pooling="last", layers=1)
    assert early.shape == last.shape
    assert np.abs(early - last).max() > 1e-3
    with pytest.raises(ValueError, match="layers must be at most the model's 2, got 3"):
        next(model.hidden_states([text], pooling="last", layers=3))


def test_a_choice_does_not_depend_on_what_is_asked_beside_it(policy: Checkpoint) -> None:
    model, rubric = policy.load_cached(), Rubric(name="warmth")
    asked, answers = [rubric.render(*text) for text in TEXTS], [rubric.answer(level) for level in range(6)]
    together = choice_logprob(model, asked, answers, batch_size=4)
    alone = np.concatenate([choice_logprob(model, [one], answers, batch_size=1) for one in asked])
    np.testing.assert_allclose(together, alone, atol=1e-3)


@pytest.mark.slow
def test_it_is_trained_and_read_again(policy: Checkpoint, tmp_path: Path) -> None:
    before = policy.load_cached().likelihood(TEXTS).logprob
    train_sft(
        policy.load_copy(), [Demonstration(*text) for text in TEXTS], SFT(**QUICK), folder=tmp_path / "sft", seed=0
    )
    tuned = Checkpoint(policy.source, (tmp_path / "sft",), "float32", "chat")
    assert np.abs(tuned.load_copy().likelihood(TEXTS).logprob - before).max() > 1e-3
    pairs = [Pair(prompt, prompt, response, "awful mess", 1.0, 0.0, "proxy") for prompt, response in TEXTS]
    model = policy.load_copy()
    facts = train_dpo(model, pairs, reference_logprob(model, pairs), DPO(**QUICK), folder=tmp_path / "dpo", seed=0)
    assert np.isfinite(facts["train_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bradley_terry", "ordinal"])
def test_a_reward_head_is_trained_on_it(policy: Checkpoint, loss: str, tmp_path: Path) -> None:
    tuples = Examples([Response(f"r{n}", f"p{n}", x, 0, y, 5, -9.0) for n, (x, y) in enumerate(TEXTS)])
    context = FitContext(policy, Rubric(), tmp_path, 0)
    evaluator = RewardHead(loss=loss, training=QUICK, ensemble=2)  # type: ignore[arg-type]
    evaluator.fit(tuples, np.array([1.0, 2.0, 3.0, 4.0]), context)
    members = evaluator.predict(tuples, context)
    assert np.isfinite(members).all()
    alone = evaluator.model_copy(update={"batch_size": 1}).predict(tuples, context)
    np.testing.assert_allclose(members, alone, atol=1e-3)
