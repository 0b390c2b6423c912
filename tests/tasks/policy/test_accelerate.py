"""Trainings as stages by accelerate: in the processes that it says, in bfloat16, and no other result than one process's."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from prefect import flow
from safetensors.numpy import load_file

from models.core.data import Demonstration
from models.policies.resolve import locate
from models.training import accelerate as launched
from models.training.accelerate import Training, train
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store
from tasks.policy.fine_tune import fine_tune
from tasks.policy.policy_ref import Policy
from tests.models.training.test_accelerate import SFT_RECIPE, SHOWN, written
from tests.support.processes import ROOT

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


@flow
def trained(policy: Policy, examples: Ref) -> Ref:
    return fine_tune(policy, examples, SFT_RECIPE, seed=3).ref


def test_a_stage_trains_in_two_processes_and_one_finds_what_they_have_learnt(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Mock(wraps=launched.watched)
    monkeypatch.setattr(launched, "watched", watched)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/tests/support/cpu_accelerate:{ROOT}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    weights = locate(str(tiny_model_path)).digest
    policy = Policy(model=str(tiny_model_path), weights=weights, dtype="bfloat16", template="plain")
    examples = store().write_rows("seed", SHOWN, Demonstration)

    monkeypatch.setenv("NINEFOLD_ACCELERATE", str(written(tmp_path, "ddp", num_processes=2)))
    settings.cache_clear()
    together = trained(policy, examples)
    assert watched.call_count == 1
    assert "accelerate.commands.launch" in watched.call_args.args[0]

    monkeypatch.delenv("NINEFOLD_ACCELERATE")
    settings.cache_clear()
    assert trained(policy, examples) == together, "from the cache: how it is spread is no part of what it is"
    train(policy.checkpoint(), Training("sft", SHOWN, SFT_RECIPE, seed=3), tmp_path / "alone")
    assert watched.call_count == 1
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "alone", store().folder(together))
    )
    for name, value in ours.items():  # of bfloat16's rounding, which a step of Adam does not make smaller
        apart = np.linalg.norm(theirs[name] - value) / np.linalg.norm(value)
        assert apart < 0.02, f"{name}: {apart}"
