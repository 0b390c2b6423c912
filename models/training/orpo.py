"""Odds Ratio Preference Optimization (ORPO) training, through TRL."""

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from models.core.data import Pair
from models.policies.language_model import LanguageModel
from models.training.dpo import DPO, fitting_pairs, train_on_pairs
from models.training.trainer import to_train, trainer_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_orpo(
    policy: LanguageModel, pairs: Sequence[Pair], recipe: DPO, *, folder: Path, seed: int, along: Sequence[Path] = ()
) -> dict[str, float]:
    """Train by ORPO (2403.07691): supervised on the chosen response, with `beta` times its log odds ratio to the other.

    It has no reference. Saves what it changes in `folder` and returns the trainer's last metrics.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    kept = fitting_pairs(policy, pairs, recipe)
    given = trainer_kwargs(recipe, seed, len(kept))
    given["gradient_checkpointing"] = given.pop("activation_checkpointing")  # its own name for it
    trainer = ORPOTrainer(
        model=to_train(policy.model, recipe),
        args=ORPOConfig(beta=recipe.beta, max_completion_length=recipe.max_length, **given),
        train_dataset=Dataset.from_list(
            [policy.renderer.row(p.prompt, chosen=p.chosen, rejected=p.rejected) for p in kept]
        ),
        processing_class=_as_rendered(policy),
        peft_config=recipe.peft("CAUSAL_LM"),
    )
    return train_on_pairs(trainer, kept=len(kept), pairs=len(pairs), folder=folder, along=along)


def _as_rendered(policy: LanguageModel) -> "PreTrainedTokenizerBase":
    """Return the tokenizer without a begin token where the renderer writes none: this trainer would put one first."""
    tokenizer = policy.tokenizer
    if tokenizer.bos_token_id is None or policy.renderer.encode("a", "b").ids[:1] == [tokenizer.bos_token_id]:
        return tokenizer
    plain = deepcopy(tokenizer)
    plain.bos_token = None
    return plain
