"""Shared parts of TRL trainers: arguments, progress, deterministic saving."""

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.core import progress
from models.core.errors import ConfigError
from models.policies.chat_template import Renderer
from models.policies.language_model import ADAPTER
from models.training.config import TrainingConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

_STEPS_TO_WARM_UP, _NAMED = 10, 5
CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"

log = logging.getLogger(__name__)


def trainer_kwargs(schedule: TrainingConfig, seed: int, rows: int) -> dict[str, Any]:
    """Return the arguments common to SFTConfig, DPOConfig and RewardConfig; nothing is written by the trainer."""
    import torch

    steps = schedule.epochs * math.ceil(rows / schedule.batch_size)
    return {
        "output_dir": str(Path(tempfile.gettempdir()) / "ninefold-trainer"),  # required, unused
        "learning_rate": schedule.learning_rate,
        "num_train_epochs": schedule.epochs,
        "per_device_train_batch_size": schedule.batch_size // int(os.environ.get("WORLD_SIZE", "1")),
        "max_length": schedule.max_length,
        # a share of all steps, rounded up, and the rate of the first is 0: a run of one step would learn nothing
        "warmup_steps": 0.1 if steps >= _STEPS_TO_WARM_UP else 0,
        "lr_scheduler_type": "cosine",
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        # An adapter is float32, on weights of their own dtype. Where every weight is trained they are float32 too, for steps
        # of a usual rate are lost in bfloat16's rounding, and are computed with in bfloat16 where that is fast.
        "bf16": schedule.lora is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": False,  # recomputation, and generation without its cache afterwards
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,  # the bar is that of `run`
        "logging_steps": 5,
    }


def fits_max_length(renderer: Renderer, texts: Sequence[tuple[str, str]], max_length: int, what: str) -> list[bool]:
    """Return which (prompt, response) texts fit into `max_length` tokens; warn of the others, by number and first texts.

    Left to themselves the trainers cut them or leave them out, in silence.
    """
    fits = [len(renderer.encode(prompt, response).ids) <= max_length for prompt, response in texts]
    if long := fits.count(False):
        named = [" ".join(text)[:60] for text, fit in zip(texts, fits, strict=True) if not fit][:_NAMED]
        log.warning(
            "%s: %d of %d rows are longer than max_length=%d tokens and were left out: %s",
            *(what, long, len(texts), max_length, named),
        )
    if not any(fits):
        raise ConfigError(f"{what}: every row is longer than max_length={max_length} tokens: raise it")
    return fits


def train_with_progress(trainer: "Trainer", along: Sequence[Path] = ()) -> None:
    """Train under a bar of steps; save the adapter as it is at equal distances on the way, one in each folder of `along`."""
    from transformers import PrinterCallback, TrainerCallback

    class Keep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
        ) -> None:
            """Save what is due; log the last steps too, or their loss would be the first process's alone."""
            control.should_log |= state.global_step == state.max_steps
            for number, folder in enumerate(along, start=1):
                if state.global_step == max(1, round(state.max_steps * number / (len(along) + 1))):
                    save_trained(trainer, folder)

    class Tell(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
        ) -> None:
            """Say how many steps there are."""
            bar.reset(total=state.max_steps)

        def on_step_end(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
        ) -> None:
            """Count the step."""
            bar.update(state.global_step - bar.n)

        def on_log(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            logs: dict[str, float] | None = None,
            **_: object,
        ) -> None:
            """Show the loss beside the bar; the other metrics are the report's."""
            if logs and "loss" in logs:
                bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Keep)
    with progress.bar(desc="training", unit="step", disable=not trainer.is_world_process_zero()) as bar:
        trainer.add_callback(Tell)
        trainer.train()


def metrics_of(history: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Return the last logged value of each of a trainer's metrics, `/` written as `_`."""
    found: dict[str, float] = {}
    for entry in history:
        found |= {name.replace("/", "_"): float(entry[name]) for name in names if name in entry}
    return found


def save_trained(trainer: "Trainer", folder: Path) -> None:
    """Save what training has changed: the adapter, or every weight with the configuration.

    Where several processes train, all of them give their parts, and the first one writes.
    """
    from accelerate.utils import DistributedType

    model, weights = trainer.model, None
    if trainer.accelerator.distributed_type != DistributedType.NO:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.accelerator.is_main_process:
            return None
    if hasattr(model, "peft_config"):
        return save_adapter(model, folder, weights)
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    loaded = model.config.dtype
    kept = getattr(torch, str(loaded).removeprefix("torch."))
    tied = model.all_tied_weights_keys  # gathered, they are no longer seen to be one
    whole = {name: weight.to(kept) for name, weight in (weights or model.state_dict()).items() if name not in tied}
    model.save_pretrained(folder, state_dict=whole, safe_serialization=True)
    model.config.dtype = loaded  # saving has set it to that of training, and there may be more to save
    return None


def to_train(model: "PreTrainedModel", schedule: TrainingConfig) -> "PreTrainedModel":
    """Return a model as it is trained: in float32 where every weight is."""
    if schedule.lora is not None:
        return model
    loaded = model.dtype
    model = model.float()
    model.config.dtype = loaded
    return model


def save_adapter(model: "PreTrainedModel", folder: Path, weights: "dict[str, torch.Tensor] | None" = None) -> None:
    """Save a LoRA adapter's weights and configuration, and nothing else, byte-identical for identical weights.

    peft writes the base model's path, and its target modules in the order of a set: neither is part of the adapter.
    `weights` are the model's, where it does not hold them whole itself.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, safe_serialization=True, state_dict=weights)
        config = json.loads((Path(scratch) / CONFIG).read_text())
        config["base_model_name_or_path"] = None
        for name, value in config.items():
            if isinstance(value, list):
                config[name] = sorted(value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, sort_keys=True, indent=1))
        shutil.copyfile(Path(scratch) / WEIGHTS, folder / WEIGHTS)
