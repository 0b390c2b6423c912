"""Likelihoods, hidden states and generation: the same for any batch, and equal to what the formulas say."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.core.arrays import Float32Array
from models.core.data import Prompt
from models.core.registry import plugins_of
from models.generators.base import Generator
from models.generators.drawing import draw
from models.generators.hf import Transformers
from models.generators.vllm import VLLM
from models.policies import language_model
from models.policies import lm_head as head
from models.policies.checkpoint import CACHE, Checkpoint
from models.policies.language_model import LanguageModel
from models.policies.resolve import check_reference, locate

TEXTS = [
    ("the film is", "a warm and witty tale"),
    ("good", "bad"),
    ("the plot", "is slow dull boring and lifeless"),
    ("a", "tale of love full of charm"),
]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_likelihood_does_not_depend_on_the_batch(tiny_model: LanguageModel, template: str, batch_size: int) -> None:
    model = LanguageModel(tiny_model.model, tiny_model.tokenizer, template)  # type: ignore[arg-type]
    alone = [model.likelihood([text]).logprob[0] for text in TEXTS]
    assert model.likelihood(TEXTS, batch_size=batch_size).logprob == pytest.approx(alone, abs=1e-4)


def test_a_likelihood_is_the_same_in_pieces_and_through_the_model_s_own_head(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model.likelihood(TEXTS).logprob
    monkeypatch.setattr(head, "PIECE", 3)
    assert tiny_model.likelihood(TEXTS).logprob == pytest.approx(whole, abs=1e-4)
    monkeypatch.setattr(language_model, "has_plain_head", lambda _: False)  # as a model is that transforms its logits
    assert tiny_model.likelihood(TEXTS).logprob == pytest.approx(whole, abs=1e-4)


def test_a_likelihood_is_the_sum_over_completion_tokens_only(tiny_model: LanguageModel) -> None:
    prompt, response = TEXTS[0]
    encoded = tiny_model.renderer.encode(prompt, response)
    assert tiny_model.tokenizer.decode(encoded.ids[: encoded.start]) == prompt
    with torch.no_grad():
        logs = tiny_model.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    expected = sum(float(logs[t - 1, encoded.ids[t]]) for t in range(encoded.start, len(encoded.ids)))
    found = tiny_model.likelihood([TEXTS[0]])
    assert found.logprob[0] == pytest.approx(expected, abs=1e-4)
    assert found.tokens[0] == len(encoded.ids) - encoded.start
    assert encoded.ids[-1] == tiny_model.tokenizer.eos_token_id


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_end_token_does_not_count_in_a_text_that_was_cut_off(tiny_model: LanguageModel, template: str) -> None:
    model = LanguageModel(tiny_model.model, tiny_model.tokenizer, template)  # type: ignore[arg-type]
    cut, whole = zip(*model.likelihood([TEXTS[0], TEXTS[0]], ended=[False, True]), strict=True)
    ids = model.renderer.encode(*TEXTS[0]).up_to(model.tokenizer.eos_token_id, included=True).ids
    with torch.no_grad():
        logs = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert ids[-1] == model.tokenizer.eos_token_id
    assert whole[0] - cut[0] == pytest.approx(float(logs[-2, ids[-1]]), abs=1e-4)
    assert whole[1] - cut[1] == 1


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_does_not_depend_on_the_batch(tiny_model: LanguageModel, pooling: str) -> None:
    texts = [f"{x} {y}" for x, y in TEXTS]

    def embed(batch_size: int) -> np.ndarray:  # type: ignore[type-arg]
        vectors = np.zeros((len(texts), 48), dtype=np.float32)
        for rows, values in tiny_model.hidden_states(texts, pooling=pooling, batch_size=batch_size):  # type: ignore[arg-type]
            vectors[rows] = values
        return vectors

    np.testing.assert_allclose(embed(1), embed(4), atol=1e-5)


PROMPTS = [Prompt.of(text) for text in ("the film is", "good", "the plot of the story is a slow", "a tale", "witty")]


@pytest.mark.parametrize("layers", [1, 2])
def test_an_early_layer_is_read_without_running_the_later_ones(tiny_model: LanguageModel, layers: int) -> None:
    texts = [f"{prompt} {response}" for prompt, response in TEXTS]
    inner = tiny_model.model.model
    assert len(inner.layers) == 2
    calls: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, layer in enumerate(inner.layers)]
    found = dict(_rows(tiny_model.hidden_states(texts, pooling="last", layers=layers)))
    for hook in hooks:
        hook.remove()
    assert calls == list(range(layers))
    for number, text in enumerate(texts):
        ids = torch.tensor([tiny_model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = inner(input_ids=ids, output_hidden_states=True).hidden_states[layers][0, -1]
            expected = states if layers == 2 else inner.norm(states)  # the library's last state is normed already
        np.testing.assert_allclose(found[number], expected.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="layers must be at most the model's 2, got 3"):
        next(tiny_model.hidden_states(texts, pooling="last", layers=3))


def test_only_the_beginning_of_a_long_text_is_read(tiny_model: LanguageModel) -> None:
    whole, beginning = "the film is a warm and witty tale", "the film is"
    tokens = len(tiny_model.tokenizer(beginning)["input_ids"])
    found = dict(_rows(tiny_model.hidden_states([whole], pooling="mean", max_tokens=tokens)))
    expected = dict(_rows(tiny_model.hidden_states([beginning], pooling="mean")))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def _rows(batches: Iterator[tuple[list[int], Float32Array]]) -> Iterator[tuple[int, Float32Array]]:
    for rows, vectors in batches:
        yield from zip(rows, vectors, strict=True)


def test_the_contract_of_generators_covers_every_registered_one() -> None:
    assert plugins_of(Generator) == [Transformers, VLLM]  # vLLM's is in test_vllm.py


def test_a_text_depends_on_its_seed_and_not_on_its_batch(tiny_model: LanguageModel) -> None:
    def texts(batch_size: int, prompts: list[Prompt], seed: int = 0) -> dict[tuple[str, int], str]:
        back_end = Transformers(max_new_tokens=12, batch_size=batch_size, temperature=1.0, top_p=0.95)
        rows = back_end.sample_from(tiny_model, prompts, samples=3, seed=seed, what="test")
        return {(r.prompt, r.sample): r.text for r in rows}

    whole = texts(16, PROMPTS)
    assert texts(2, PROMPTS) == whole
    assert texts(16, PROMPTS[::-1]) == whole
    assert texts(16, PROMPTS[2:3]).items() <= whole.items()
    assert texts(16, PROMPTS, seed=1) != whole
    assert len({whole[PROMPTS[0].text, n] for n in range(3)}) > 1, "samples of a prompt differ"


def test_a_models_own_defaults_of_generation_are_not_in_force(tiny_checkpoint: Checkpoint) -> None:
    policy, back_end = tiny_checkpoint.load_copy(), Transformers(max_new_tokens=12, temperature=1.0)

    def rows() -> list[tuple[str, float]]:
        found = back_end.sample_from(policy, PROMPTS, samples=2, seed=0, what="")
        return [(r.text, r.logprob) for r in found]

    plain, own = rows(), policy.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 3.0, 1, 12
    assert rows() == plain
    assert policy.model.generation_config is own, "it stays the model's, for whoever it is given to"


def test_responses_are_ordered_and_carry_their_own_likelihood(tiny_model: LanguageModel) -> None:
    back_end = Transformers(max_new_tokens=10, batch_size=4)
    rows = back_end.sample_from(tiny_model, PROMPTS, samples=2, seed=0, what="test")
    assert [(r.prompt_id, r.sample) for r in rows] == [(p.id, s) for p in PROMPTS for s in range(2)]
    assert len({r.id for r in rows}) == len(rows)
    assert all(1 <= r.tokens <= 10 for r in rows)
    finished = [r for r in rows if r.tokens < 10 and r.text]
    for row in finished[:3]:
        ids = tiny_model.renderer.prompt_ids(row.prompt)
        again = tiny_model.renderer.encode(row.prompt, row.text)
        if len(again.ids) - len(ids) == row.tokens:  # the text encodes to the tokens that were sampled
            assert tiny_model.likelihood([(row.prompt, row.text)]).logprob[0] == pytest.approx(row.logprob, abs=1e-3)


def greedy(model: LanguageModel, prompt: str, steps: int) -> list[int]:
    """The plain loop: the likeliest token, again and again, up to the end token."""
    ids, drawn = model.renderer.prompt_ids(prompt), list[int]()
    while len(drawn) < steps and model.tokenizer.eos_token_id not in drawn:
        with torch.no_grad():
            drawn.append(int(model.model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    return drawn


def test_generation_stops_at_the_end_token(tiny_model: LanguageModel) -> None:
    """Near zero temperature the texts are those of the plain greedy loop, which stops there."""
    head = tiny_model.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    likeliest = greedy(tiny_model, PROMPTS[0].text, 12)[8]
    with torch.no_grad():  # the end token wins wherever that token would have
        head.weight[tiny_model.tokenizer.eos_token_id] = 1.2 * head.weight[likeliest]
    rows = Transformers(max_new_tokens=12, temperature=1e-4).sample_from(
        tiny_model, PROMPTS, samples=1, seed=0, what="test"
    )
    expected = [greedy(tiny_model, p.text, 12) for p in PROMPTS]
    assert [r.tokens for r in rows] == [len(drawn) for drawn in expected]
    assert [r.text for r in rows] == [
        tiny_model.tokenizer.decode(drawn, skip_special_tokens=True).strip() for drawn in expected
    ]
    assert rows[0].tokens < 12, "this one ended by itself"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5)])
def test_draws_follow_the_tempered_nucleus_distribution(temperature: float, top_p: float) -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=20) * 2, dtype=torch.float32)
    draws = 20_000
    uniforms = torch.as_tensor(rng.random((draws, 40)))
    chosen = draw(logits.repeat(draws, 1), uniforms, temperature=temperature, top_p=top_p).tokens.numpy()
    probability = torch.softmax(logits / temperature, -1).numpy()
    order = np.argsort(-probability)
    kept = order[: int(np.searchsorted(np.cumsum(probability[order]), top_p) + 1)]
    expected = np.zeros(20)
    expected[kept] = probability[kept] / probability[kept].sum()
    assert np.bincount(chosen, minlength=20) / draws == pytest.approx(expected, abs=0.012)


def test_a_model_reference_that_leads_nowhere_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a directory, nor 'smollm2-135m-instruct', nor a hub id"):
        locate(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no .safetensors file"):
        locate(str(tmp_path / "empty"))
    check_reference("org/name@main")


def test_a_model_is_known_by_its_bytes_not_its_place(tiny_model_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model_path, tmp_path / "copy")
    assert locate(str(copy)).digest == locate(str(tiny_model_path)).digest
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert locate(str(copy)).digest != locate(str(tiny_model_path)).digest


def test_a_hub_model_is_known_by_its_commit(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own local copy, as it lies there after a download; a branch that moves is another model."""
    from huggingface_hub import constants

    from models.core import hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copy = tmp_path / "models--org--tiny"
    (copy / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_model_path, copy / "snapshots" / commit)
        (copy / "refs" / "main").write_text(commit)
        hub.folder.cache_clear()
        located = locate("org/tiny")
        assert located.digest == locate("org/tiny@main").digest == f"hub-org/tiny-{commit}"
    assert locate(f"org/tiny@{'a' * 40}").digest == f"hub-org/tiny-{'a' * 40}"
    assert Checkpoint(located.source, (), "float32", "plain").load_copy().likelihood([TEXTS[0]]).logprob[0] < 0
    with pytest.raises(FileNotFoundError, match="neither on the hub nor in the local copy"):
        locate("org/tiny@missing")


def test_what_is_trained_is_never_what_is_read(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CACHE, "models", {})
    kept = tiny_checkpoint.load_cached()
    assert tiny_checkpoint.load_cached() is kept
    own = tiny_checkpoint.load_copy().model
    with torch.no_grad():
        own.lm_head.weight.zero_()
    assert own.lm_head.weight is own.model.embed_tokens.weight, "tied, as it was"
    assert tiny_checkpoint.load_cached() is kept
    assert kept.model.lm_head.weight.abs().max() > 0

    other = Checkpoint(tiny_checkpoint.source, (), "bfloat16", "plain")
    monkeypatch.setattr(CACHE, "room", other._bytes())  # for one
    assert other.load_cached() is other.load_cached()
    assert list(CACHE.models) == [other], "the last one used"
    assert other.load_copy() is not other.load_copy()
    assert not CACHE.models, "two at a time would be too many"


@pytest.mark.slow
def test_the_packaged_model_converts_and_continues_english() -> None:
    located = locate("smollm2-135m-instruct")
    model = Checkpoint(located.source, (), "bfloat16", "plain").load_copy()
    english, noise = model.likelihood(
        [("The capital of France is", "Paris."), ("The capital of France is", "qz vx jk.")]
    ).logprob
    assert english > noise + 5
