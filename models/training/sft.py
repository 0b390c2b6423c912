"""Supervised fine-tuning (SFT) on demonstrations: M_0 → M_1 (step 1)."""

from collections.abc import Sequence
from pathlib import Path

from models.core.data import Demonstration
from models.policies.language_model import LanguageModel
from models.training.config import TrainingConfig
from models.training.cpu_kernels import use_cpu_kernels
from models.training.trainer import (
    fits_max_length,
    metrics_of,
    save_trained,
    to_train,
    train_with_progress,
    trainer_kwargs,
)


class SFT(TrainingConfig):
    """TRL's SFTTrainer, with LoRA or on every weight; the loss is on the response's tokens only."""


def train_sft(
    policy: LanguageModel, seed_examples: Sequence[Demonstration], recipe: SFT, *, folder: Path, seed: int
) -> dict[str, float]:
    """Train on the demonstrations, save what it changes in `folder` and return the trainer's last metrics."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    fits = fits_max_length(policy.renderer, [(d.prompt, d.response) for d in seed_examples], recipe.max_length, "SFT")
    kept = [d for d, fit in zip(seed_examples, fits, strict=True) if fit]
    rows = [policy.renderer.row(d.prompt, completion=d.response) for d in kept]
    trainer = SFTTrainer(
        model=to_train(policy.model, recipe),
        args=SFTConfig(**trainer_kwargs(recipe, seed, len(rows))),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=recipe.peft("CAUSAL_LM"),
    )
    use_cpu_kernels(trainer)
    train_with_progress(trainer)
    save_trained(trainer, folder)
    return {"rows": float(len(trainer.train_dataset)), "too_long": float(fits.count(False))} | metrics_of(
        trainer.state.log_history, ["train_loss", "mean_token_accuracy", "train_runtime"]
    )
