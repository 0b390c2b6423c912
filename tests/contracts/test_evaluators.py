"""One contract for every evaluator: it learns an order it was shown, scores alike in any batch, and refuses ties."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.core.data import Response
from models.core.registry import plugins_of
from models.core.rubric import Rubric
from models.evaluators.base import Evaluator, Examples, FitContext
from models.evaluators.generative import Generative
from models.evaluators.generative_pairs import GenerativePairs
from models.evaluators.length import Length
from models.evaluators.linear import Linear
from models.evaluators.ordinal import levels_of
from models.evaluators.reward_head import RewardHead
from models.generators.base import response_id
from models.policies.checkpoint import Checkpoint
from models.training.config import Lora, TrainingConfig
from models.training.sft import SFT
from ninefold.testing import check_evaluator

LORA = Lora(r=8, alpha=16)
REWARD = TrainingConfig(learning_rate=5e-3, epochs=3, batch_size=16, lora=LORA)
EVALUATORS: list[Evaluator] = [
    Linear(),
    Linear(prompt_effect=0.0, style=0.0, length=0.0),
    Linear(loss="bradley_terry"),
    Length(),
    RewardHead(training=REWARD, pairs_per_label=8),
    RewardHead(training=REWARD, pairs_per_label=8, margin=True, center_rewards_coefficient=0.01),
    RewardHead(training=REWARD.model_copy(update={"epochs": 12}), loss="regression"),
    RewardHead(training=REWARD.model_copy(update={"epochs": 12}), loss="ordinal"),
    Generative(training=SFT(learning_rate=5e-3, epochs=30, batch_size=8, lora=LORA)),
    GenerativePairs(training=SFT(learning_rate=5e-3, epochs=16, batch_size=16, lora=LORA)),
]
LEARN_SCORES = [e for e in EVALUATORS if e.supports_pointwise]
every_evaluator = pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: f"{e.kind}-{getattr(e, 'loss', '')}")
GOOD = ["warm", "witty", "wonderful", "great", "superb", "delight", "charm", "good"]
BAD = ["dull", "boring", "tedious", "awful", "mess", "bad", "worst", "lifeless"]


def world(count: int, seed: int) -> tuple[Examples, np.ndarray[Any, Any]]:
    """Responses whose score is the share of good words; features are word counts."""
    rng = np.random.default_rng(seed)
    responses, features, scores = [], [], []
    for number in range(count):
        good = rng.integers(0, 5)
        words = [*rng.choice(GOOD, good), *rng.choice(BAD, 4 - good)]
        text = " ".join(rng.permutation(words))
        prompt = ["the film is", "the story is a"][number % 2]
        responses.append(Response(response_id(str(number), 0, text), str(number), prompt, 0, text, 5, -5.0))
        features.append([words.count(w) for w in [*GOOD, *BAD]])
        scores.append(good / 2 - 1)
    return Examples(responses, np.array(features, dtype=np.float32)), np.array(scores)


@pytest.fixture
def context(tiny_checkpoint: Checkpoint, tmp_path: Path) -> FitContext:
    return FitContext(tiny_checkpoint, Rubric(name="warmth"), tmp_path, 0)


def test_the_contract_covers_every_registered_evaluator() -> None:
    assert set(plugins_of(Evaluator)) == {type(e) for e in EVALUATORS}


@pytest.mark.parametrize("evaluator", [Linear(), Linear(loss="bradley_terry"), Length()], ids=repr)
def test_evaluators_without_a_model_keep_the_published_contract(evaluator: Evaluator) -> None:
    check_evaluator(evaluator)


def test_the_length_control_learns_length_and_nothing_else(context: FitContext) -> None:
    shown, _ = world(40, seed=0)
    characters = np.array([len(r.text) for r in shown.responses])
    Length().fit(shown, -np.log1p(characters), context)
    assert Length().predict(shown, context)[0] == pytest.approx(-np.log1p(characters))


def trained_evaluator(evaluator: Evaluator, count: int, context: FitContext) -> None:
    """Train on scores, or on comparisons where it learns from them alone."""
    if evaluator.supports_pointwise:
        evaluator.fit(*world(count, seed=0), context)
    else:
        first, second, _, preference = comparisons(count, seed=0)
        evaluator.fit_pairs(first, second, preference, context)


@pytest.mark.parametrize("evaluator", [e for e in LEARN_SCORES if not isinstance(e, Length)], ids=repr)
@pytest.mark.slow
def test_it_learns_the_order_it_was_shown(evaluator: Evaluator, context: FitContext) -> None:
    shown, scores = world(96, seed=0)
    facts = evaluator.fit(shown, scores, context)
    unseen, truth = world(40, seed=1)
    members = evaluator.predict(unseen, context)
    assert members.shape[1] == 40
    assert np.corrcoef(members.mean(0), truth)[0, 1] > 0.5
    assert all(np.isfinite(value) for value in facts.values())


@every_evaluator
def test_a_score_does_not_depend_on_the_batch_the_company_or_the_padding(
    evaluator: Evaluator, context: FitContext, tmp_path: Path
) -> None:
    trained_evaluator(evaluator, 24, context)
    first, second, _, _ = comparisons(9, seed=1)
    unseen = first.joined(second)
    whole = evaluator.predict(unseen, context)
    of_one_prompt = np.array([4, 13])
    asked = of_one_prompt[:1] if evaluator.supports_pointwise else of_one_prompt
    np.testing.assert_allclose(evaluator.predict(unseen.take(asked), context), whole[:, asked], atol=2e-4)
    if "batch_size" in type(evaluator).model_fields:
        for size in (1, 2, 8):
            other = evaluator.model_copy(update={"batch_size": size})
            np.testing.assert_allclose(other.predict(unseen, context), whole, atol=2e-4)
    for side in ("left", "right"):
        source = shutil.copytree(context.policy.source, tmp_path / side)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": side}))
        padded = replace(context, policy=replace(context.policy, source=str(source)))
        assert padded.policy.load_copy().tokenizer.padding_side == side
        np.testing.assert_allclose(evaluator.predict(unseen, padded), whole, atol=2e-4)


@pytest.mark.parametrize("evaluator", LEARN_SCORES, ids=repr)
def test_tied_labels_are_refused_with_the_reason(evaluator: Evaluator, context: FitContext) -> None:
    shown, _ = world(6, seed=0)
    with pytest.raises(ValueError, match="all 6 labels are 1: tied scores hold no preference"):
        evaluator.fit(shown, np.ones(6), context)
    with pytest.raises(ValueError, match="needs at least 2 labels, got 1"):
        evaluator.fit(Examples(shown.responses[:1], shown.features), np.ones(1), context)


@every_evaluator
@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores(evaluator: Evaluator, context: FitContext) -> None:
    import torch

    found = []
    for number in range(2):
        torch.manual_seed(number)  # what others have drawn does not matter
        place = replace(context, folder=context.folder / str(number))
        place.folder.mkdir()
        trained_evaluator(evaluator, 24, place)
        found.append(evaluator.predict(world(9, seed=1)[0], place))
    np.testing.assert_array_equal(*found)


@every_evaluator
def test_nothing_is_saved_but_safetensors_and_json(evaluator: Evaluator, context: FitContext) -> None:
    trained_evaluator(evaluator, 24, context)
    assert {file.suffix for file in context.folder.rglob("*") if file.is_file()} <= {".safetensors", ".json"}


@pytest.mark.parametrize("loss", ["ridge", "bradley_terry"])
def test_members_disagree_more_where_nothing_was_labelled(context: FitContext, loss: Any) -> None:
    rng = np.random.default_rng(0)
    near = rng.normal(size=(60, 8)).astype(np.float32)
    near[:, 4:] = 0
    scores = near[:, 0] + 0.3 * rng.normal(size=60)
    evaluator = Linear(loss=loss, style=0.0, length=0.0)
    responses = world(60, seed=0)[0].responses
    evaluator.fit(Examples(responses, near), scores, context)
    inside = evaluator.predict(Examples(responses, near), context).std(0).mean()
    outside = evaluator.predict(Examples(responses, near * 5), context).std(0).mean()
    assert outside > 2 * inside


def test_an_evaluator_of_shuffled_labels_knows_nothing(context: FitContext) -> None:
    shown, scores = world(300, seed=0)
    unseen, truth = world(200, seed=1)
    Linear().fit(shown, np.random.default_rng(0).permutation(scores), context)
    found = np.corrcoef(Linear().predict(unseen, context).mean(0), truth)[0, 1]
    assert abs(found) < 0.5
    Linear().fit(shown, scores, context)
    assert np.corrcoef(Linear().predict(unseen, context).mean(0), truth)[0, 1] > 0.95


def test_sampled_judgements_are_parsed_and_the_unparsable_are_left_out(context: FitContext) -> None:
    shown, scores = world(24, seed=0)
    trained = Generative(training=SFT(learning_rate=5e-3, epochs=30, batch_size=8, lora=LORA), scoring="sampled")
    trained.fit(shown, scores, context)
    assert np.isfinite(trained.predict(shown, context)).any()
    untrained = Generative(training=SFT(learning_rate=1e-9, epochs=1, lora=LORA), scoring="sampled", num_samples=1)
    untrained.fit(shown, scores, context)
    assert np.isnan(untrained.predict(shown, context)).all(), "word salad holds no score line"


def test_levels_have_equal_size_and_keep_the_order() -> None:
    scores = np.random.default_rng(0).exponential(size=600)
    levels = levels_of(scores)
    assert np.bincount(levels).tolist() == [100] * 6
    assert (np.diff(levels[np.argsort(scores)]) >= 0).all()


@pytest.mark.parametrize("pad", ["<pad>", "<end>"])
def test_the_reward_head_is_read_where_training_read_it(context: FitContext, pad: str) -> None:
    """Also for tokenizers that pad with the end token: the library's own forward gives the same scores."""
    import torch

    from models.evaluators.reward_head import _head, _states, _with_head

    policy = context.policy.load_copy()
    policy.tokenizer.pad_token = pad
    model = _with_head(policy, 0).eval()

    class Wrapped:
        base_model = type("Inner", (), {"model": model})

    texts = [("the film is", "warm"), ("good", "a tale of love and")]
    rows = [Response(str(n), "p", prompt, 0, text, 1, -1.0) for n, (prompt, text) in enumerate(texts)]
    found = _states(Wrapped, policy, rows, batch_size=2) @ _head(Wrapped)[0]
    for row, score in zip(rows, found, strict=True):
        ids = policy.renderer.encode(row.prompt, row.text).ids
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert score == pytest.approx(expected, abs=1e-5)


def test_heads_of_a_reward_model_disagree_and_average_to_the_trained_one(context: FitContext) -> None:
    shown, scores = world(24, seed=0)
    evaluator = next(e for e in EVALUATORS if isinstance(e, RewardHead))
    evaluator.fit(shown, scores, context)
    members = evaluator.predict(shown, context)
    assert members.shape == (evaluator.ensemble, 24)
    assert (members.std(0) > 0).all()
    evaluator.model_copy(update={"ensemble": 1}).fit(shown, scores, context)
    np.testing.assert_allclose(members.mean(0), evaluator.predict(shown, context)[0], atol=1e-6)


def test_a_reward_is_in_the_oracles_unit_where_scores_are_learnt(context: FitContext) -> None:
    shown, scores = world(96, seed=0)
    evaluator = next(e for e in EVALUATORS if isinstance(e, RewardHead) and e.loss == "regression")
    evaluator.fit(shown, 100 + 7 * scores, context)
    found = evaluator.predict(shown, context).mean(0)
    assert found.mean() == pytest.approx(100 + 7 * scores.mean(), abs=2)
    assert np.std(found) == pytest.approx(7 * scores.std(), rel=0.5)
    plain = context.folder / "plain"
    plain.mkdir()
    other = replace(context, folder=plain)
    evaluator.fit(shown, scores, other)
    np.testing.assert_allclose(100 + 7 * evaluator.predict(shown, other).mean(0), found, atol=1e-3)
    assert evaluator.temperature(context) == pytest.approx(7 * evaluator.temperature(other))


def test_heads_agree_on_what_all_texts_share(context: FitContext) -> None:
    """A constant that a member adds to every reward is no doubt about any of them."""
    shown, scores = world(48, seed=0)
    for evaluator in (e for e in EVALUATORS if isinstance(e, RewardHead)):
        evaluator.fit(shown, scores, context)
        members = evaluator.predict(shown, context)
        offsets = members.mean(1) - members.mean()
        assert offsets.std() < 0.5 * (members - members.mean(1, keepdims=True)).std(0).mean()


def test_a_margin_pushes_rewards_apart_and_centring_keeps_them_about_zero(context: FitContext) -> None:
    shown, scores = world(64, seed=0)
    plain = RewardHead(training=REWARD, pairs_per_label=8)
    lead, level = {}, {}
    for name, changes in {
        "plain": {},
        "margin": {"margin": True},
        "centred": {"center_rewards_coefficient": 1.0},
    }.items():
        evaluator = plain.model_copy(update=changes)
        evaluator.fit(shown, scores, context)
        rewards = evaluator.predict(shown, context).mean(0)
        lead[name] = rewards[scores > 0].mean() - rewards[scores < 0].mean()
        level[name] = np.abs(rewards).mean()
    assert lead["margin"] > lead["plain"]
    assert level["centred"] < level["plain"]


def test_labels_of_texts_too_long_to_learn_from_are_counted(context: FitContext) -> None:
    shown, scores = world(24, seed=0)
    long = replace(shown.responses[0], text=" ".join(["warm"] * 60))
    given = Examples([long, *shown.responses[1:]], shown.features)
    short = REWARD.model_copy(update={"max_length": 40, "epochs": 1})
    for loss in ("bradley_terry", "regression", "ordinal"):
        assert RewardHead(training=short, loss=loss).fit(given, scores, context)["too_long"] == 1
    first, second, _, preference = comparisons(24, seed=0)
    sides = Examples([long, *first.responses[1:]]), second
    assert RewardHead(training=short).fit_pairs(*sides, preference, context)["too_long"] == 1


def test_scores_and_levels_are_not_learnt_from_comparisons() -> None:
    trained = {loss: RewardHead(loss=loss).supports_pairwise for loss in ("bradley_terry", "regression", "ordinal")}
    assert trained == {"bradley_terry": True, "regression": False, "ordinal": False}
    with pytest.raises(ValueError, match="are of comparisons, and evaluator.loss=ordinal makes none"):
        RewardHead(loss="ordinal", margin=True)


def test_tied_labels_keep_their_order_in_levels() -> None:
    few = np.array([3.0] * 10 + [4.0] * 31 + [5.0] * 7)
    assert [int(levels_of(few)[i]) for i in (0, 10, 47)] == [0, 1, 2]
    assert set(levels_of(np.array([0.0] * 45 + [5.0] * 3))) == {0, 1}
    mostly = np.array([5.0] * 60 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert len(set(levels_of(mostly))) >= 2
    assert levels_of(mostly)[0] > levels_of(mostly)[-1]


def comparisons(count: int, seed: int) -> tuple[Examples, Examples, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pairs of responses, the first one's advantage, and the preference of a pairwise oracle."""
    (first, one), (second, other) = world(count, seed), world(count, seed + 100)
    return first, second, one - other, np.sign(one - other)


LEARN_PAIRS = [e for e in EVALUATORS if e.supports_pairwise]


@pytest.mark.parametrize("evaluator", LEARN_PAIRS, ids=repr)
@pytest.mark.slow
def test_it_learns_from_comparisons(evaluator: Evaluator, context: FitContext) -> None:
    first, second, _, preference = comparisons(96, seed=0)
    facts = evaluator.fit_pairs(first, second, preference, context)
    one, other, advantage, _ = comparisons(40, seed=1)
    scores = evaluator.predict(one.joined(other), context).mean(0)
    assert np.corrcoef(scores[:40] - scores[40:], advantage)[0, 1] > 0.5
    assert all(np.isfinite(value) for value in facts.values())
    assert evaluator.temperature(context) > 0


@pytest.mark.parametrize("evaluator", LEARN_PAIRS, ids=repr)
def test_undecided_comparisons_are_refused_and_one_is_enough(evaluator: Evaluator, context: FitContext) -> None:
    first, second, _, preference = comparisons(6, seed=0)
    with pytest.raises(ValueError, match="none of 6 comparisons was decided"):
        evaluator.fit_pairs(first, second, np.zeros(6), context)
    one = int(np.flatnonzero(preference)[0])
    sides = [
        Examples(t.responses[one : one + 1], t.features[one : one + 1])
        for t in (first, second)
        if t.features is not None
    ]
    evaluator.fit_pairs(*sides, preference[one : one + 1], context)
    scores = evaluator.predict(sides[0].joined(sides[1]), context).mean(0)
    assert (scores[0] - scores[1]) * preference[one] > 0


@pytest.mark.parametrize("loss", ["ridge", "bradley_terry"])
def test_a_preference_is_learnt_alike_whichever_response_comes_first(context: FitContext, loss: Any) -> None:
    first, second, advantage, _ = comparisons(80, seed=0)
    preference = np.tanh(advantage)  # soft: 2σ(2Δ) − 1
    evaluator, (unseen, _) = Linear(loss=loss), world(40, seed=1)
    evaluator.fit_pairs(first, second, preference, context)
    scores = evaluator.predict(unseen, context)
    evaluator.fit_pairs(second, first, -preference, context)
    turned = evaluator.predict(unseen, context)
    np.testing.assert_allclose(scores - scores.mean(1)[:, None], turned - turned.mean(1)[:, None], atol=1e-3)


def test_bradley_terry_needs_no_table_of_all_pairs(context: FitContext) -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    shown, _ = world(6000, seed=0)
    tracemalloc.start()
    Linear(loss="bradley_terry", ensemble=1, style=0.0).fit(shown, rng.normal(size=6000), context)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000**2 * 2


CLASSIFIERS = [e for e in EVALUATORS if e.exports_classifier]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("evaluator", CLASSIFIERS, ids=lambda e: f"{e.loss}-{e.margin}")
def test_the_classifier_it_writes_ranks_as_it_does(
    evaluator: Evaluator, template: Any, context: FitContext, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    context = replace(context, policy=replace(context.policy, template=template))
    trained_evaluator(evaluator, 24, context)
    unseen, _ = world(12, seed=1)
    folder = tmp_path / "classifier"
    evaluator.write_classifier(folder, context)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    logits = []
    for row in unseen.responses:
        turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.text}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits.append(float(model(input_ids=ids).logits[0, 0]))
    ours = evaluator.predict(unseen, context).mean(0)
    np.testing.assert_allclose(np.array(logits) - np.mean(logits), ours - ours.mean(), atol=2e-3)


def test_what_is_no_classifier_writes_none(context: FitContext, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        Linear().write_classifier(tmp_path / "none", context)
