"""Evaluators that answer a judging question: one pass with a shared beginning, ensembles, both orders, the EFT examples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.core.data import Demonstration, ScoredExample
from models.core.rubric import Rubric
from models.evaluators.base import Examples, FitContext
from models.evaluators.generative import Generative
from models.evaluators.generative_pairs import GenerativePairs
from models.evaluators.training_data import FitOptions, PointwiseData, cross_fit
from models.policies.checkpoint import Checkpoint
from models.policies.choice_scoring import choice_logprob, next_logits
from models.policies.language_model import LanguageModel
from models.training.config import Lora
from models.training.sft import SFT, train_sft
from tests.contracts.test_evaluators import comparisons, world

LORA = Lora(r=8, alpha=16)
SCHEDULE = SFT(learning_rate=5e-3, epochs=8, batch_size=16, lora=LORA)
BEGINNING = "the film is a warm and witty tale of love and the acting is "


@pytest.fixture
def context(tiny_checkpoint: Checkpoint, tmp_path: Path) -> FitContext:
    return FitContext(tiny_checkpoint, Rubric(name="warmth"), tmp_path, 0)


def next_alone(policy: LanguageModel, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize(
    "texts",
    [
        [
            BEGINNING + "superb",
            BEGINNING + "a mess and bad",
            BEGINNING + "fine",
            BEGINNING + "dull slow boring tedious",
        ],
        [BEGINNING, BEGINNING + "superb", BEGINNING],  # one is the beginning of another
        ["warm", "the plot is dull", "a mess"],  # nothing in common
        [BEGINNING + "superb"],
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_what_comes_next_is_the_same_as_of_each_text_alone(
    tiny_model: LanguageModel, texts: list[str], batch_size: int
) -> None:
    encoded = [list(tiny_model.tokenizer(text)["input_ids"]) for text in texts]
    tokens = [[5, 9 + row, 30] for row in range(len(texts))]
    found = next_logits(tiny_model, encoded, tokens, batch_size=batch_size)
    alone = [next_alone(tiny_model, ids)[wanted].numpy() for ids, wanted in zip(encoded, tokens, strict=True)]
    np.testing.assert_allclose(found, alone, atol=1e-4)
    tiny_model.model.config.final_logit_softcapping = 1.0  # a head that is left to the model
    np.testing.assert_allclose(next_logits(tiny_model, encoded, tokens, batch_size=batch_size), alone, atol=1e-4)


def test_the_common_beginning_is_read_once(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = tiny_model.model.base_model.forward
    monkeypatch.setattr(
        tiny_model.model.base_model,
        "forward",
        lambda **given: read.append(given["input_ids"].numel()) or forward(**given),
    )
    encoded = [list(tiny_model.tokenizer(BEGINNING + end)["input_ids"]) for end in ("superb", "a mess", "fine")]
    next_logits(tiny_model, encoded, [[5, 9]] * 3, batch_size=1)
    assert sum(read) < len(encoded[0]) + 3 * 4


def test_a_model_that_does_not_keep_all_it_reads_is_read_whole(tmp_path: Path, tiny_model: LanguageModel) -> None:
    """A sliding window counts pads: what a text says would depend on its batch."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(tiny_model.tokenizer), sliding_window=12, num_key_value_heads=2, **sizes)
    windowed = replace(tiny_model, model=MistralForCausalLM(config).eval())
    texts = [BEGINNING + "superb", BEGINNING + "a mess and bad", BEGINNING + "fine and a good tale of love with charm"]
    encoded = [list(tiny_model.tokenizer(text)["input_ids"]) for text in texts]
    alone = [next_alone(windowed, ids)[[5, 9]].numpy() for ids in encoded]
    for batch_size in (1, 3):
        found = next_logits(windowed, encoded, [[5, 9]] * 3, batch_size=batch_size)
        np.testing.assert_allclose(found, alone, atol=1e-4)


def test_the_choice_is_between_the_answers_alone_and_by_one_token(tiny_model: LanguageModel) -> None:
    found = np.exp(choice_logprob(tiny_model, ["the film is", "a tale of"], ["warm", "dull", "fine"], batch_size=2))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.sum(1), 1.0)
    ids = tiny_model.renderer.encode("the film is", "warm")
    logits = next_alone(tiny_model, ids.ids[: ids.start]).exp()
    words = [tiny_model.renderer.encode("the film is", word).ids[ids.start] for word in ("warm", "dull", "fine")]
    np.testing.assert_allclose(found[0], (logits[words] / logits[words].sum()).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="does not tell the answers .* apart by one token"):
        choice_logprob(tiny_model, ["the"], ["warm a", "warm the", "dull"], batch_size=1)


@pytest.mark.parametrize("ensemble_by", ["adapters", "dropout"])
@pytest.mark.slow
def test_members_of_an_ensemble_differ_and_are_the_same_in_any_batch(context: FitContext, ensemble_by: Any) -> None:
    training = SCHEDULE.model_copy(update={"lora": Lora(r=8, alpha=16, dropout=0.2)})
    evaluator = Generative(training=training, ensemble=3, ensemble_by=ensemble_by)
    shown, scores = world(32, seed=0)
    evaluator.fit(shown, scores, context)
    members = evaluator.predict(shown, context)
    assert members.shape == (3, 32)
    assert (members.std(0) > 1e-4).all()
    few = evaluator.model_copy(update={"batch_size": 3}).predict(shown.take(np.arange(5)), context)
    np.testing.assert_allclose(few, members[:, :5], atol=2e-4)
    trained = [folder.name for folder in context.folder.iterdir() if folder.is_dir()]
    assert len(trained) == (3 if ensemble_by == "adapters" else 4)
    again = replace(context, folder=context.folder / "again")
    again.folder.mkdir()
    evaluator.fit(shown, scores, again)
    np.testing.assert_array_equal(evaluator.predict(shown, again), members)


def test_dropout_needs_something_to_drop() -> None:
    with pytest.raises(ValueError, match="ensemble_by=dropout drops nothing while .*dropout is 0"):
        Generative(ensemble=3, ensemble_by="dropout")


def test_a_judge_may_start_from_the_base_model(context: FitContext) -> None:
    policy = context.policy.load_copy()
    folder = context.folder / "m1"
    train_sft(policy, [Demonstration("the film is", "warm and witty")] * 8, SCHEDULE, folder=folder, seed=0)
    tuned = replace(context, policy=replace(context.policy, adapters=(folder,)))
    shown, _ = world(6, seed=0)
    init_zero_shot = {start: Generative(init_from=start) for start in ("policy", "base")}
    scores = {}
    for start, evaluator in init_zero_shot.items():
        evaluator.init_zero_shot(tuned)
        scores[start] = evaluator.predict(shown, tuned)
    evaluator.init_zero_shot(context)
    np.testing.assert_array_equal(scores["base"], evaluator.predict(shown, context))
    assert (scores["policy"] != scores["base"]).all()


def eft_examples(count: int, seed: int = 5) -> list[ScoredExample]:
    shown, scores = world(count, seed)
    return [ScoredExample(r.prompt, r.text, 100 + 10 * s) for r, s in zip(shown.responses, scores, strict=True)]


@pytest.mark.slow
def test_the_eft_examples_show_what_few_labels_cannot(context: FitContext) -> None:
    few, scores = world(6, seed=0)
    unseen, truth = world(60, seed=1)
    training = SCHEDULE.model_copy(update={"epochs": 20, "batch_size": 8})
    with_seed = replace(context, eft_examples=eft_examples(96))
    found = {}
    for kind in ("none", "raw", "balanced"):
        evaluator = Generative(training=training, eft_examples=kind)
        facts = evaluator.fit(few, scores, with_seed)
        assert facts["eft_examples"] == (0 if kind == "none" else 96)
        predicted = evaluator.predict(unseen, with_seed)[0]
        assert scores.min() - 1e-6 <= predicted.min() <= predicted.max() <= scores.max() + 1e-6, "in the oracle's unit"
        found[kind] = np.corrcoef(predicted, truth)[0, 1]
    assert found["raw"] > 0.5 > found["none"]
    assert found["balanced"] > 0.5


def test_a_balanced_seed_has_every_level_as_often(context: FitContext) -> None:
    skewed = [ScoredExample("the film is", f"warm {n}", 4.0) for n in range(80)]
    skewed += [ScoredExample("the film is", f"dull {n}", score) for n, score in enumerate([1.0, 2.0, 3.0] * 4)]
    counts = {}
    for kind in ("raw", "balanced"):
        examples = Generative(eft_examples=kind)._seed_examples(replace(context, eft_examples=skewed), 6)
        answers = [example.response for example in examples]
        counts[kind] = sorted(answers.count(answer) for answer in set(answers))
    assert counts["raw"] == [4, 4, 4, 80]
    assert len(counts["balanced"]) == 4
    assert min(counts["balanced"]) > 10


@pytest.mark.parametrize("levels", [2, 4, 6])
def test_few_scores_of_a_seed_reach_from_the_lowest_level_to_the_highest(context: FitContext, levels: int) -> None:
    seed = [ScoredExample("the film is", f"word {n}", float(n % 2)) for n in range(20)]
    examples = Generative(eft_examples="raw")._seed_examples(replace(context, eft_examples=seed), levels)
    assert {e.response for e in examples} == {context.rubric.answer(0), context.rubric.answer(levels - 1)}


def test_the_gate_is_not_told_by_the_seed_what_it_asks(context: FitContext) -> None:
    shown, scores = world(40, seed=0)
    rows = [replace(r, prompt=f"{r.prompt} {r.prompt_id}") for r in shown.responses]
    seed = [ScoredExample(r.prompt, r.text, s) for r, s in zip(rows, scores, strict=True)]
    seen: list[set[str]] = []

    class Watching(Generative):
        def fit(self, tuples: Examples, scores: Any, context: FitContext) -> dict[str, float]:
            seen.append({row.prompt for row in context.eft_examples})
            assert seen[-1] == {r.prompt for r in tuples.responses}
            return {}

        def predict(self, tuples: Examples, context: FitContext) -> Any:
            assert not seen[-1] & {r.prompt for r in tuples.responses}
            return np.zeros((1, len(tuples.responses)))

    data = PointwiseData(Examples(rows), scores)
    assert (
        len(cross_fit(Watching(eft_examples="raw"), data, replace(context, eft_examples=seed), FitOptions(seed=0), 4))
        == 40
    )
    assert len(seen) == 4


def test_an_answer_may_be_as_long_as_the_longest_that_was_taught(context: FitContext) -> None:
    shown, scores = world(4, seed=0)
    evaluator = Generative(scoring="sampled", training=SCHEDULE.model_copy(update={"epochs": 1}))
    for words, least in ((3, 128), (200, 202)):
        told = replace(shown, remarks=["warm " * words] * 4)
        evaluator.fit(told, scores, context)
        assert json.loads((context.folder / "levels.json").read_text())["answer_tokens"] >= least


def test_what_one_member_could_not_say_the_others_say_for_it(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, scores = world(3, seed=0)
    evaluator = Generative(scoring="sampled", ensemble=2, training=SCHEDULE.model_copy(update={"epochs": 1}))
    evaluator.fit(shown, scores, context)
    said = iter([np.array([1.0, np.nan, np.nan]), np.array([2.0, 4.0, np.nan])])
    monkeypatch.setattr(Generative, "_sampled", lambda *_: next(said))
    np.testing.assert_array_equal(evaluator.predict(shown, context), [[1.0, 4.0, np.nan], [2.0, 4.0, np.nan]])


def test_a_control_is_not_taught_by_the_seed_either(context: FitContext) -> None:
    rows = eft_examples(200)
    shuffled = FitOptions(seed=0, shuffle=True).eft_examples(rows)
    assert [r.response for r in shuffled] == [r.response for r in rows]
    assert sorted(r.score for r in shuffled) == sorted(r.score for r in rows)
    assert abs(np.corrcoef([r.score for r in shuffled], [r.score for r in rows])[0, 1]) < 0.2
    assert FitOptions(seed=0).eft_examples(rows) is rows


@pytest.mark.slow
def test_the_seed_alone_teaches_a_policy_that_judges_itself(context: FitContext) -> None:
    evaluator = Generative(training=SCHEDULE.model_copy(update={"epochs": 20, "batch_size": 8}), eft_examples="raw")
    with_seed = replace(context, eft_examples=eft_examples(96))
    evaluator.init_zero_shot(with_seed)
    unseen, truth = world(60, seed=1)
    scores = evaluator.predict(unseen, with_seed)[0]
    assert np.corrcoef(scores, truth)[0, 1] > 0.5
    assert 0 <= scores.min() <= scores.max() <= 5


@pytest.mark.slow
def test_the_justification_is_taught_where_it_is_to_be_sampled(context: FitContext) -> None:
    shown, scores = world(32, seed=0)
    told = replace(shown, remarks=["superb charm" if score > 0 else "dull mess" for score in scores])
    evaluator = Generative(scoring="sampled", training=SCHEDULE.model_copy(update={"epochs": 30}))
    evaluator.fit(told, scores, context)
    policy = evaluator._judges(context)[0].load_copy()
    questions = [context.rubric.render(r.prompt, r.text) for r in shown.responses]
    remarked = [
        context.rubric.answer(0, "superb charm"),
        context.rubric.answer(0, "dull mess"),
        context.rubric.answer(0),
    ]
    likelihood = [policy.likelihood([(q, answer) for q in questions]).logprob.mean() for answer in remarked]
    assert min(likelihood[:2]) > likelihood[2], "it has learned to justify first"
    assert np.isfinite(evaluator.predict(shown, context)).any()


def test_shuffled_scores_take_their_justifications_along() -> None:
    shown, scores = world(40, seed=0)
    seen: list[Examples] = []

    class Watching(Generative):
        def fit(self, tuples: Examples, scores: Any, context: FitContext) -> dict[str, float]:
            seen.append(tuples)
            assert tuples.remarks == [str(score) for score in scores]
            return {}

    given = PointwiseData(replace(shown, remarks=[str(score) for score in scores]), scores)
    nowhere = FitContext(Checkpoint(""), Rubric(), Path(), 0)
    given.fit(Watching(), nowhere, FitOptions(seed=0, shuffle=True))
    given.fit(Watching(), nowhere, FitOptions(seed=0, balance=True))
    assert seen[0].responses == shown.responses
    assert seen[1].responses != shown.responses


@pytest.mark.parametrize("k", [2, 4])
def test_the_place_bias_is_measured_and_taken_out_of_the_mean(k: int, make_response: Any) -> None:
    rng = np.random.default_rng(0)
    quality, bias, prompts = rng.normal(size=(10, k)), 0.7, 10
    tuples = Examples([make_response(n * k + m, prompt=f"p{n}") for n in range(prompts) for m in range(k)])
    gap = quality[:, :, None] - quality[:, None, :]
    off = bias * (1 - np.eye(k))
    members = np.stack([(gap + off).mean(2).ravel(), (gap - off).mean(2).ravel()])
    assert GenerativePairs().diagnostics(members, tuples)["position_bias"] == pytest.approx(bias)
    np.testing.assert_allclose(members.mean(0), (quality - quality.mean(1, keepdims=True)).ravel())


def test_a_pairwise_judge_compares_within_prompts_in_both_orders(context: FitContext) -> None:
    first, second, _, _ = comparisons(6, seed=0)
    evaluator = GenerativePairs()
    evaluator.init_zero_shot(context)
    both = first.joined(second)
    members = evaluator.predict(both, context)
    assert members.shape == (2, 12)
    np.testing.assert_allclose(members.mean(0)[:6], -members.mean(0)[6:], atol=1e-6)
    assert (evaluator.predict(first, context) == 0).all(), "a response alone is compared with nothing"
    assert np.isfinite(evaluator.diagnostics(members, both)["position_bias"])
    assert evaluator.diagnostics(members[:, :6], first) == {}
    turned = evaluator.predict(second.joined(first), context)
    np.testing.assert_allclose(turned[:, 6:], members[:, :6], atol=1e-5)
