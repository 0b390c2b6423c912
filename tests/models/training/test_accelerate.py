"""A training in two processes learns what one process learns, and what cannot be launched is named before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from models.core.data import Demonstration, Pair
from models.policies.checkpoint import Checkpoint
from models.training.accelerate import Training, check_config, train
from models.training.config import Lora
from models.training.dpo import DPO, reference_logprob
from models.training.sft import SFT
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

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


@pytest.fixture(params=["ddp", "fsdp"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped configuration, for two processes on processors."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/tests/support/cpu_accelerate:{ROOT}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return written(tmp_path, request.param, num_processes=2)


def written(folder: Path, name: str, **changes: Any) -> Path:
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    (folder / "here.yaml").write_text(yaml.safe_dump(shipped | changes))
    return folder / "here.yaml"


def assert_alike(one: Path, other: Path) -> None:
    (name,) = (file.name for file in one.glob("*.safetensors"))
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, atol=2e-4, err_msg=key)


def test_two_processes_teach_an_adapter_what_one_does(
    tiny_checkpoint: Checkpoint, tmp_path: Path, config: Path
) -> None:
    training = Training("sft", SHOWN, SFT_RECIPE, seed=3)
    alone = train(tiny_checkpoint, training, tmp_path / "alone")
    together = train(tiny_checkpoint, training, tmp_path / "together", config=config)
    assert_alike(tmp_path / "alone", tmp_path / "together")
    assert (tmp_path / "alone/adapter_config.json").read_text() == (
        tmp_path / "together/adapter_config.json"
    ).read_text()
    assert together["rows"] == alone["rows"] == len(SHOWN)
    del together["train_runtime"], alone["train_runtime"]
    assert together == pytest.approx(alone, abs=1e-3)


def test_every_weight_is_kept_whole_at_the_end_and_on_the_way(
    tiny_checkpoint: Checkpoint, tmp_path: Path, config: Path
) -> None:
    reference = reference_logprob(tiny_checkpoint.load_cached(), PAIRS)
    training = Training("dpo", PAIRS, DPO_RECIPE, seed=3, reference=reference)
    for name, by in (("alone", None), ("together", config)):
        facts = train(tiny_checkpoint, training, tmp_path / name, along=[tmp_path / f"{name}-half"], config=by)
        assert facts["pairs"] == len(PAIRS)
    assert_alike(tmp_path / "alone", tmp_path / "together")
    assert_alike(tmp_path / "alone-half", tmp_path / "together-half")
    half, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("together-half", "together"))
    assert any((half[key] != whole[key]).any() for key in half)


def test_what_cannot_be_launched_is_named(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    odd = Training("sft", SHOWN, SFT_RECIPE.model_copy(update={"batch_size": 3}), seed=0)
    with pytest.raises(ValueError, match="starts 2 processes, and batch_size=3 has no equal parts"):
        train(tiny_checkpoint, odd, tmp_path, config=written(tmp_path, "ddp", num_processes=2))
    with pytest.raises(ValueError, match="NINEFOLD_ACCELERATE=.*nowhere.yaml does not exist"):
        check_config(tmp_path / "nowhere.yaml")
    (tmp_path / "other.yaml").write_text("a: list\nof: [nothing]\n")
    with pytest.raises(ValueError, match="is no accelerate configuration"):
        check_config(tmp_path / "other.yaml")
    for kind in ("MULTI_CPU", "NO"):
        with pytest.raises(
            ValueError, match=f"starts one process by distributed_type={kind}, whatever num_processes=8"
        ):
            check_config(written(tmp_path, "ddp", distributed_type=kind))
    (tmp_path / "other.yaml").write_text("distributed_type: NO\nnum_processes: 2\n")
    with pytest.raises(ValueError, match="starts one process by distributed_type=NO, whatever num_processes=2"):
        check_config(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("a: [list\n")
    with pytest.raises(ValueError, match="is no accelerate configuration"):
        check_config(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="num_processes must be at least 1"):
        check_config(written(tmp_path, "ddp", num_processes=0))
    with pytest.raises(ValueError, match="num_machines=2, and a training stays on one"):
        check_config(written(tmp_path, "fsdp", num_machines=2))


@pytest.mark.parametrize("config", ["fsdp"], indirect=True)
def test_a_model_that_was_not_spread_is_named(
    tiny_checkpoint: Checkpoint, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as accelerate is by itself
    training = Training("sft", SHOWN, SFT_RECIPE, seed=3)
    with pytest.raises(RuntimeError, match="asks for 2 processes by FSDP, and [12] trained by (NO|MULTI_CPU)"):
        train(tiny_checkpoint, training, tmp_path / "together", config=config)


@pytest.mark.parametrize("config", ["ddp"], indirect=True)
def test_a_training_that_fails_names_its_configuration(
    tiny_checkpoint: Checkpoint, tmp_path: Path, config: Path
) -> None:
    failing = Training("sft", SHOWN, SFT_RECIPE.model_copy(update={"max_length": 1}), seed=0)
    with pytest.raises(RuntimeError, match="training in 2 processes by .*here.yaml failed"):
        train(tiny_checkpoint, failing, tmp_path, config=config)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero3"])
def test_the_shipped_configurations_are_what_accelerate_reads(name: str) -> None:
    assert check_config(CONFIGS / f"{name}.yaml")[0] == 8
