"""A reward model as the oracle, on a tiny one of its own."""

import json
import math
from pathlib import Path

import pytest
import torch

from models.core.rubric import Rubric
from models.oracles import reward_model
from models.oracles.reward_model import RewardModel
from models.policies.checkpoint import CACHE


@pytest.fixture(scope="module")
def folder(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model_path, tmp_path_factory.mktemp("reward"), outputs=1)


def save(source: Path, folder: Path, *, outputs: int) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=outputs)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_score_is_the_models_own_output(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    oracle = RewardModel(model=str(folder), template="plain", dtype="float32", micro_usd=3)
    verdict = oracle.judge("the film is", "warm and witty", Rubric())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"the film is warm and witty{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(folder)(input_ids=ids).logits[0, 0]
    assert verdict.score == pytest.approx(float(expected), abs=1e-5)
    assert (verdict.micro_usd, verdict.tokens) == (3, ids.shape[1])


def test_a_text_that_is_too_long_is_quarantined_not_cut(folder: Path) -> None:
    verdict = RewardModel(model=str(folder), template="plain", max_tokens=5).judge("the film is", "warm", Rubric())
    assert not math.isnan(verdict.score)
    verdict = RewardModel(model=str(folder), template="plain", max_tokens=5).judge("the film is", "so warm", Rubric())
    assert math.isnan(verdict.score)
    assert "tokens, and max_tokens is 5" in verdict.raw


def test_a_classifier_with_several_outputs_is_no_reward_model(tiny_model_path: Path, tmp_path: Path) -> None:
    save(tiny_model_path, tmp_path, outputs=3)
    with pytest.raises(ValueError, match="has 3 outputs, and one is needed"):
        RewardModel(model=str(tmp_path), template="plain").judge("the film is", "warm", Rubric())


def test_its_memory_is_let_go_of_with_the_others(folder: Path) -> None:
    RewardModel(model=str(folder), template="plain").judge("the film is", "warm", Rubric())
    assert reward_model._load.cache_info().currsize == 1
    CACHE.release()
    assert reward_model._load.cache_info().currsize == 0


def test_a_text_beyond_the_context_is_quarantined_too(folder: Path) -> None:
    verdict = RewardModel(model=str(folder), template="plain").judge("the film is", "~" * 1200, Rubric())
    assert math.isnan(verdict.score)
    assert "tokens, and the model reads 1024" in verdict.raw


def _edit(folder: Path, name: str, **fields: object) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_its_files_tell_is_said_before_anything_is_bought(
    folder: Path, tiny_model_path: Path, tmp_path: Path
) -> None:
    RewardModel(model=str(folder)).check()
    with pytest.raises(
        ValueError, match="LlamaForCausalLM, which has no sequence-classification head: set oracle.model"
    ):
        RewardModel(model=str(tiny_model_path)).check()
    several = save(tiny_model_path, tmp_path / "several", outputs=2)
    with pytest.raises(ValueError, match="has 2 outputs, and one is needed"):
        RewardModel(model=str(several)).check()
    bare = save(tiny_model_path, tmp_path / "bare", outputs=1)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template: set oracle\.template to plain"):
        RewardModel(model=str(bare)).check()
    RewardModel(model=str(bare), template="plain").check()
    _edit(bare, "config.json", model_type="of_its_own")
    with pytest.raises(ValueError, match="model_type 'of_its_own', which has no sequence-classification head"):
        RewardModel(model=str(bare), template="plain").check()
