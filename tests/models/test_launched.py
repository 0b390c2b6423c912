"""A training in two processes learns what one process learns, and what cannot be launched is named before."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.policies.dpo import DPO, reference_logprob
from models.policies.language_model import Checkpoint
from models.policies.launched import Training, check_config, train
from models.policies.sft import SFT
from models.policies.training import Lora
from models.preference import Demonstration, Pair
from tests.processes import ROOT

CONFIGS = ROOT / "deployments/accelerate"
WORDS = ("film", "tale", "plot", "cast")
SHOWN = [Demonstration(f"the {word} is", f"warm and witty {word}") for word in WORDS] * 4
PAIRS = [
    Pair("p", f"the {one} is", f"superb {other}", f"awful {other}", 1.0, 0.0, "proxy")
    for one in WORDS
    for other in WORDS
]
SFT_RECIPE = SFT(learning_rate=5e-3, epochs=2, batch_size=4, lora=Lora(r=4, alpha=8))
DPO_RECIPE = DPO(learning_rate=1e-3, epochs=1, batch_size=4, lora=None)


@pytest.fixture(autouse=True)
def _found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")


def assert_alike(one: Path, other: Path) -> None:
    (name,) = (file.name for file in one.glob("*.safetensors"))
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, atol=2e-4, err_msg=key)


def test_two_processes_teach_an_adapter_what_one_does(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    training = Training("sft", SHOWN, SFT_RECIPE, seed=3)
    alone = train(tiny_checkpoint, training, tmp_path / "alone")
    together = train(tiny_checkpoint, training, tmp_path / "together", config=CONFIGS / "cpu.yaml")
    assert_alike(tmp_path / "alone", tmp_path / "together")
    assert (tmp_path / "alone/adapter_config.json").read_text() == (
        tmp_path / "together/adapter_config.json"
    ).read_text()
    assert together["rows"] == alone["rows"] == len(SHOWN)
    assert together["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-3)


def test_every_weight_is_kept_whole_at_the_end_and_on_the_way(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    reference = reference_logprob(tiny_checkpoint.shared(), PAIRS)
    training = Training("dpo", PAIRS, DPO_RECIPE, seed=3, reference=reference)
    for name, config in (("alone", None), ("together", CONFIGS / "cpu.yaml")):
        facts = train(tiny_checkpoint, training, tmp_path / name, along=[tmp_path / f"{name}-half"], config=config)
        assert facts["pairs"] == len(PAIRS)
    assert_alike(tmp_path / "alone", tmp_path / "together")
    assert_alike(tmp_path / "alone-half", tmp_path / "together-half")
    half, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("together-half", "together"))
    assert any((half[key] != whole[key]).any() for key in half)


def test_what_cannot_be_launched_is_named(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    odd = Training("sft", SHOWN, SFT_RECIPE.model_copy(update={"batch_size": 3}), seed=0)
    with pytest.raises(ValueError, match="starts 2 processes, and batch_size=3 has no equal parts"):
        train(tiny_checkpoint, odd, tmp_path, config=CONFIGS / "cpu.yaml")
    with pytest.raises(ValueError, match="NINEFOLD_ACCELERATE=.*nowhere.yaml does not exist"):
        check_config(tmp_path / "nowhere.yaml")
    (tmp_path / "other.yaml").write_text("a: list\nof: [nothing]\n")
    with pytest.raises(ValueError, match="is no accelerate configuration"):
        check_config(tmp_path / "other.yaml")
    failing = Training("sft", SHOWN, SFT_RECIPE.model_copy(update={"max_length": 1}), seed=0)
    with pytest.raises(RuntimeError, match="training in 2 processes by .*cpu.yaml failed"):
        train(tiny_checkpoint, failing, tmp_path, config=CONFIGS / "cpu.yaml")


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero3"])
def test_the_shipped_configurations_are_what_accelerate_reads(name: str) -> None:
    assert check_config(CONFIGS / f"{name}.yaml") == 8
