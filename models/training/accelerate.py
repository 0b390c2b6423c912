"""Train a policy in this process or in several by `accelerate launch`: data-parallel, FSDP, DeepSpeed."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from models.core.arrays import Float32Array
from models.core.data import Demonstration, Pair, from_frame, to_frame
from models.core.errors import ConfigError, ProcessError
from models.core.subprocesses import watched
from models.policies.checkpoint import CACHE, Checkpoint
from models.policies.language_model import LanguageModel
from models.training.config import TrainingConfig
from models.training.dpo import DPO, train_dpo
from models.training.kto import train_kto
from models.training.orpo import train_orpo
from models.training.sft import SFT, train_sft

By = Literal["sft", "dpo", "kto", "orpo"]

_ROWS, _REFERENCE, _SPEC, _FACTS = "rows.parquet", "reference.npy", "training.json", "facts.json"
_PROCESSES, _SPREAD = "processes", "spread"
_STARTS_ONE = ("NO", "MULTI_CPU")
PARTED = ("FSDP", "DEEPSPEED")  # each process holds a part of the model
IN_ONE = ("kto", "orpo")  # what they learn of a row depends on what else is in a process's batch


@dataclass(frozen=True)
class Training:
    """What is trained on: demonstrations (sft) or pairs, with what M_r says of them, (N, 2), for DPO."""

    by: By
    rows: Sequence[Demonstration] | Sequence[Pair]
    recipe: TrainingConfig
    seed: int
    reference: Float32Array | None = None


def train(
    start: Checkpoint, training: Training, folder: Path, *, along: Sequence[Path] = (), config: Path | None = None
) -> dict[str, float]:
    """Train a policy, save what is changed in `folder`, and on the way in those of `along`; return the last metrics.

    With an accelerate `config`, SFT and DPO are trained in the processes that it says. Each takes its part of every batch,
    so that what is learned is what one process learns, up to rounding; but an epoch's last batch, if its rows do not fill
    it, is filled up with the first ones. Raises ConfigError if a batch has no equal parts, and RuntimeError if they fail.
    """
    if config is None or training.by in IN_ONE:
        return _train(start.load_copy(), training, folder, along)
    processes, spread = check_config(config, training.recipe)
    CACHE.release()
    with tempfile.TemporaryDirectory(prefix="ninefold-training-") as scratch:
        place = Path(scratch)
        _write(start, training, folder, along, place)
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(config),
            *_free_port(config),
        ]
        with watched([*command, "-m", "models.training.accelerate", str(place)]) as launcher:
            code = launcher.wait()
        if code:
            raise ProcessError(f"training in {processes} processes by {config} failed ({code}): see above")
        facts: dict[str, Any] = json.loads((place / _FACTS).read_text())
        took_part, by = facts.pop(_PROCESSES), facts.pop(_SPREAD)
        if took_part != processes or (by != spread and spread in PARTED):
            raise ProcessError(
                f"{config} asks for {processes} processes by {spread}, and {took_part} trained by {by}: accelerate spreads "
                "models over GPUs alone"
            )
        return facts


def _free_port(config: Path) -> list[str]:
    """Return what lets accelerate look for a port of its own, where the file names none: others may train beside us."""
    from accelerate.commands.config.config_args import load_config_from_file

    named = getattr(load_config_from_file(str(config)), "main_process_port", None)
    return [] if named is not None else ["--main_process_port", "0"]


def check_config(config: Path, *schedules: TrainingConfig) -> tuple[int, str]:
    """Return how many processes an accelerate configuration starts on this machine, and how it spreads a model.

    Raises ConfigError naming what is wrong with it, or if batches of one of the schedules have no equal parts for them.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    if not config.is_file():
        raise ConfigError(
            f"NINEFOLD_ACCELERATE={config} does not exist: name one of deployments/accelerate/, or your own"
        )
    try:
        found = load_config_from_file(str(config))
        processes, machines = int(found.num_processes), int(found.num_machines)
        spread = str(found.distributed_type or "NO").rpartition(".")[2]  # YAML takes NO for false
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"NINEFOLD_ACCELERATE={config} is no accelerate configuration: {error}") from error
    if machines != 1:
        raise ConfigError(
            f"NINEFOLD_ACCELERATE={config}: num_machines={machines}, and a training stays on one: set it to 1"
        )
    if processes < 1:
        raise ConfigError(
            f"NINEFOLD_ACCELERATE={config}: num_processes must be at least 1: set it to the number of GPUs"
        )
    if processes > 1 and spread in _STARTS_ONE:
        raise ConfigError(
            f"NINEFOLD_ACCELERATE={config}: accelerate starts one process by distributed_type={spread}, whatever "
            f"num_processes={processes} says: use MULTI_GPU, FSDP or DEEPSPEED"
        )
    for schedule in schedules:
        if schedule.batch_size % processes:
            raise ConfigError(
                f"NINEFOLD_ACCELERATE={config} starts {processes} processes, and batch_size={schedule.batch_size} has no "
                "equal parts for them: change one of the two"
            )
    return processes, spread


def _train(model: LanguageModel, training: Training, folder: Path, along: Sequence[Path]) -> dict[str, float]:
    rows: Any = training.rows
    recipe: Any = training.recipe
    if training.by == "sft":
        return train_sft(model, rows, recipe, folder=folder, seed=training.seed)
    if training.by == "dpo" and training.reference is not None:
        return train_dpo(model, rows, training.reference, recipe, folder=folder, seed=training.seed, along=along)
    variant = {"kto": train_kto, "orpo": train_orpo}[training.by]
    return variant(model, rows, recipe, folder=folder, seed=training.seed, along=along)


def _write(start: Checkpoint, training: Training, folder: Path, along: Sequence[Path], place: Path) -> None:
    """Write a training for the processes to read: JSON, Parquet and a matrix; nothing is pickled."""
    cls = Demonstration if training.by == "sft" else Pair
    to_frame(training.rows, cls).to_parquet(place / _ROWS, index=False)  # type: ignore[type-var]
    if training.reference is not None:
        np.save(place / _REFERENCE, training.reference, allow_pickle=False)
    checkpoint = {"source": start.source, "dtype": start.dtype, "template": start.template, "weights": start.weights}
    spec = {
        "by": training.by,
        "recipe": training.recipe.model_dump(mode="json"),
        "seed": training.seed,
        "checkpoint": checkpoint,
        "adapters": [str(adapter) for adapter in start.adapters],
        "folders": [str(place) for place in (folder, *along)],
    }
    (place / _SPEC).write_text(json.dumps(spec))


def main(place: Path) -> None:
    """Take part in a training that `train` has written; the first process says what came of it."""
    import pandas as pd

    spec = json.loads((place / _SPEC).read_text())
    cls: Any = Demonstration if spec["by"] == "sft" else Pair
    reference = place / _REFERENCE
    training = Training(
        by=spec["by"],
        rows=from_frame(pd.read_parquet(place / _ROWS), cls),
        recipe=(SFT if spec["by"] == "sft" else DPO).model_validate(spec["recipe"]),
        seed=spec["seed"],
        reference=np.load(reference, allow_pickle=False) if reference.exists() else None,
    )
    start = Checkpoint(adapters=tuple(map(Path, spec["adapters"])), **spec["checkpoint"])
    folder, *along = map(Path, spec["folders"])
    facts = _train(start.load_on_cpu(), training, folder, along)
    if os.environ.get("RANK", "0") == "0":
        from accelerate.state import AcceleratorState

        state = AcceleratorState()  # the trainer's
        took_part = {_PROCESSES: state.num_processes, _SPREAD: state.distributed_type.value}
        (place / _FACTS).write_text(json.dumps(facts | took_part))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
