"""What else teaches a policy by preference pairs, through TRL: KTO, which forgets who stood against whom, and ORPO."""

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from models.core.data import Pair
from models.policies.language_model import LanguageModel
from models.training.cpu_kernels import use_cpu_kernels
from models.training.dpo import DPO, fitting_pairs
from models.training.trainer import arguments, metrics_of, run, save_trained, to_train


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
        args=KTOConfig(beta=recipe.beta, **arguments(recipe, seed, len(rows))),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=recipe.peft("CAUSAL_LM"),
    )
    return _trained(trainer, len(kept), len(pairs), folder, along)


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
    given = arguments(recipe, seed, len(kept))
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
    return _trained(trainer, len(kept), len(pairs), folder, along)


def _as_rendered(policy: LanguageModel) -> Any:  # noqa: ANN401
    """Return the tokenizer without a begin token where the renderer writes none: this trainer would put one first."""
    tokenizer = policy.tokenizer
    if tokenizer.bos_token_id is None or policy.renderer.encode("a", "b").ids[:1] == [tokenizer.bos_token_id]:
        return tokenizer
    plain = deepcopy(tokenizer)
    plain.bos_token = None
    return plain


def _trained(trainer: Any, kept: int, pairs: int, folder: Path, along: Sequence[Path]) -> dict[str, float]:  # noqa: ANN401
    use_cpu_kernels(trainer)
    run(trainer, along)
    save_trained(trainer, folder)
    names = [
        "train_loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
        "train_runtime",
    ]
    return {"pairs": float(kept), "too_long": float(pairs - kept)} | metrics_of(trainer.state.log_history, names)
