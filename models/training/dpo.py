"""Direct Preference Optimization (DPO) training, through TRL: M_1 → M_2 (step 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from models.core.arrays import Float32Array
from models.core.data import Pair, Response
from models.core.errors import ConfigError
from models.policies.chat_template import Encoded, Renderer
from models.policies.language_model import LanguageModel
from models.policies.recorded import recorded
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

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer


class DPO(TrainingConfig):
    """TRL's DPOTrainer, on adapters or every weight (2305.18290, eq. 7), or another `algorithm` on the same pairs."""

    learning_rate: PositiveFloat = Field(1e-4, description="Highest learning rate of AdamW.")
    beta: PositiveFloat = Field(
        0.1, description="β, the weight of the KL term; higher stays closer to the reference. Ours, not the paper's."
    )
    algorithm: Literal["dpo", "kto", "orpo"] = Field(
        "dpo", description="Algorithm that learns from the pairs, through TRL."
    )

    @model_validator(mode="after")
    def _kto_compares_rows(self) -> Self:
        if self.algorithm == "kto" and self.batch_size < 2:
            raise ConfigError(
                "dpo.algorithm=kto holds the rows of a batch against one another: set dpo.batch_size to 2 or more"
            )
        if self.algorithm == "kto":
            self.check_lora("dpo", "KTO's reference is the policy without its adapter")
        return self


def reference_logprob(policy: LanguageModel, pairs: Sequence[Pair], sampled: Sequence[Response] = ()) -> Float32Array:
    """Return Σ log π_ref of each pair's chosen and rejected response, in nats, shape (N, 2).

    Over the tokens that training sums over: all that the template writes after the response too, and for both from where the
    first of them leaves the prompt. Of responses that the policy has `sampled` itself, what is recorded of the same tokens
    is taken for it.
    """
    encoded, by_text = [], {(r.prompt, r.text): r for r in sampled if r.canonical}
    for p in pairs:
        both = [policy.renderer.encode(p.prompt, text) for text in (p.chosen, p.rejected)]
        encoded += [Encoded(e.ids, min(one.start for one in both)) for e in both]
    known = recorded(encoded, [by_text.get((p.prompt, text)) for p in pairs for text in (p.chosen, p.rejected)])
    return policy.logprob(encoded, known=known, what="reference").reshape(-1, 2).astype(np.float32)


def train_dpo(
    policy: LanguageModel,
    pairs: Sequence[Pair],
    reference: Float32Array,
    recipe: DPO,
    *,
    folder: Path,
    seed: int,
    along: Sequence[Path] = (),
) -> dict[str, float]:
    """Train on the pairs, save what it changes in `folder` and return the trainer's last metrics; `along` is that of `run`.

    `reference` is what `reference_logprob` says of the policy before: it stays as it is, whatever the epoch.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    fits = _fits(policy, pairs, recipe)
    kept = [p for p, fit in zip(pairs, fits, strict=True) if fit]
    rows = [policy.renderer.row(p.prompt, chosen=p.chosen, rejected=p.rejected) for p in kept]
    for row, (chosen, rejected) in zip(rows, reference[fits].tolist(), strict=True):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _precompute_ref_logps(self, dataset: "Dataset", name: str, batch_size: int) -> "Dataset":
            """Return the rows as they are: the reference is among their columns."""
            return dataset

    # without adapters the trainer would load a model for reference, unless it is to compute the columns itself
    given = trainer_kwargs(recipe, seed, len(rows)) | {"precompute_ref_log_probs": recipe.lora is None}
    trainer = Trainer(
        model=to_train(policy.model, recipe),
        args=DPOConfig(beta=recipe.beta, **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=recipe.peft("CAUSAL_LM"),
    )
    trainer.precompute_ref_logps = True  # they are among the columns
    return train_on_pairs(
        trainer,
        kept=len(kept),
        pairs=len(pairs),
        folder=folder,
        along=along,
        metrics=("logps/chosen", "logps/rejected"),
    )


def train_on_pairs(
    trainer: "Trainer",
    *,
    kept: int,
    pairs: int,
    folder: Path,
    along: Sequence[Path],
    metrics: Sequence[str] = ("rewards/chosen", "rewards/rejected"),
) -> dict[str, float]:
    """Train, save what has changed in `folder`, and return the last metrics and how many of the pairs were kept."""
    use_cpu_kernels(trainer)
    train_with_progress(trainer, along)
    save_trained(trainer, folder)
    names = ["train_loss", "rewards/accuracies", "rewards/margins", *metrics, "train_runtime"]
    return {"pairs": float(kept), "too_long": float(pairs - kept)} | metrics_of(trainer.state.log_history, names)


def fitting_pairs(policy: LanguageModel, pairs: Sequence[Pair], recipe: DPO) -> list[Pair]:
    """Return the pairs of which both responses fit into `max_length` tokens; warn of the others as `fitting` does."""
    return [p for p, fit in zip(pairs, _fits(policy, pairs, recipe), strict=True) if fit]


def _fits(policy: LanguageModel, pairs: Sequence[Pair], recipe: DPO) -> list[bool]:
    longer = [(p.prompt, _longer(policy.renderer, p)) for p in pairs]
    return fits_max_length(policy.renderer, longer, recipe.max_length, recipe.algorithm.upper())


def _longer(renderer: Renderer, pair: Pair) -> str:
    return max(pair.chosen, pair.rejected, key=lambda text: len(renderer.encode(pair.prompt, text).ids))
