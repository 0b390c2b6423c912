"""Kahneman-Tversky Optimization (KTO) training, through TRL."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.core.data import Pair
from models.policies.language_model import LanguageModel
from models.training.dpo import DPO, fitting_pairs, train_on_pairs
from models.training.trainer import to_train, trainer_kwargs


def train_kto(
    policy: LanguageModel, pairs: Sequence[Pair], recipe: DPO, *, folder: Path, seed: int, along: Sequence[Path] = ()
) -> dict[str, float]:
    """Train by KTO (2402.01306) on every chosen response as desirable and every rejected one as undesirable.

    The reference is the policy before. Saves what it changes in `folder` and returns the trainer's last metrics.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    kept, rows = fitting_pairs(policy, pairs, recipe), []
    order = np.random.default_rng(seed).permutation(len(kept))
    # The trainer takes rows as they come, and answers of neighbours as answers to another prompt (its estimate of the KL):
    # a chosen and a rejected response in turn, of pairs far from one another.
    for one, other in zip(order, np.roll(order, len(kept) // 2), strict=True):
        for pair, text, desirable in ((kept[one], kept[one].chosen, True), (kept[other], kept[other].rejected, False)):
            rows.append(policy.renderer.row(pair.prompt, completion=text) | {"label": desirable})
    trainer = KTOTrainer(
        model=to_train(policy.model, recipe),
        args=KTOConfig(beta=recipe.beta, **trainer_kwargs(recipe, seed, len(rows))),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=recipe.peft("CAUSAL_LM"),
    )
    return train_on_pairs(trainer, kept=len(kept), pairs=len(pairs), folder=folder, along=along)
