"""The plan's words on memory: what stages take, what may not fit, and what several processes share."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.experiment import Experiment
from flows.planning.memory import memory_lines, needs
from models.policies.resolve import folder_at_hand
from models.training.memory import shape_of
from tasks.engine.settings import settings
from tests.support.processes import ROOT


def read(given: dict[str, Any], **changes: Any) -> Experiment:
    return Experiment.model_validate(given | changes)


def taken(x: Experiment) -> dict[str, int]:
    folder = folder_at_hand(x.policy.model)
    assert folder is not None
    shape = shape_of(folder)
    assert shape is not None
    return {need.stage: need.bytes for need in needs(x, shape)}


def test_the_plan_says_what_stages_take_and_what_may_not_fit(tiny_settings: dict[str, Any]) -> None:
    (line,) = memory_lines(read(tiny_settings))
    assert line.startswith("memory     at most generate 0.0 GB, fine_tune 0.0 GB, align 0.0 GB; ")
    large = tiny_settings["generation"] | {"batch_size": 1_000_000_000}
    _, warned = memory_lines(read(tiny_settings, generation=large))
    assert warned.strip() == (
        "generate (1000000000 texts of 40 tokens at once) may not fit: lower its batch_size, or the tokens"
    )


def test_a_model_that_is_not_here_is_said_not_to_be(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    hub = tiny_settings["policy"] | {"model": "org/never-fetched"}
    assert memory_lines(read(tiny_settings, policy=hub)) == [
        "memory     not known before the model is here; it is fetched when the run starts"
    ]
    bare = tiny_settings["policy"] | {"model": str(tmp_path)}
    assert memory_lines(read(tiny_settings, policy=bare)) == [
        "memory     not known: the model's files do not say its sizes"
    ]


def test_processes_share_the_rows_and_by_fsdp_the_model(
    tiny_settings: dict[str, Any], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_weight = read(tiny_settings, dpo=tiny_settings["dpo"] | {"lora": None})
    alone = taken(every_weight)
    found = {}
    for name in ("ddp", "fsdp"):
        shipped = yaml.safe_load((ROOT / f"deployments/accelerate/{name}.yaml").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(shipped | {"num_processes": 2}))
        monkeypatch.setenv("NINEFOLD_ACCELERATE", str(tmp_path / f"{name}.yaml"))
        settings.cache_clear()
        found[name] = taken(every_weight)
    assert alone["generate"] == found["ddp"]["generate"] == found["fsdp"]["generate"]
    assert alone["align"] > found["ddp"]["align"] > found["fsdp"]["align"] > alone["align"] / 2
