"""Reward-head evaluator: a scalar head on the language model, by LoRA, with an ensemble of heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from typing_extensions import override

from models.core.arrays import BoolArray, FloatArray, IntArray
from models.core.data import Response
from models.core.errors import ConfigError
from models.evaluators.base import Evaluator, Examples, FitContext, check_decided, check_trainable
from models.evaluators.laplace import draw_heads, of_comparisons, of_texts
from models.evaluators.ordinal import levels_of
from models.metrics.agreement import group_ids
from models.metrics.calibration import temperature
from models.policies.language_model import LanguageModel
from models.training.classifier import save_classifier
from models.training.config import TrainingConfig
from models.training.cpu_kernels import use_cpu_kernels
from models.training.reward_losses import Loss, information, ordinal_head, proportional_odds, squared_error
from models.training.trainer import fits_max_length, metrics_of, save_adapter, train_with_progress, trainer_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

_ADAPTER, _HEADS = "reward_head", "heads.safetensors"


class _Comparisons(NamedTuple):
    """Pairs of rows (better, worse), (P, 2), and the margin of each, (P,)."""

    pairs: IntArray
    margin: FloatArray


class RewardHead(Evaluator):
    """A reward r(x, y), trained on one of three losses (models/training/reward_losses.py).

    `bradley_terry`: every two labelled tuples with different scores are a comparison, whether or not they share the prompt.
    That is our choice: the oracle scores single tuples on one scale, so any two are ordered. `regression`: the scores.
    `ordinal`: levels 0…5 of the scores, cut at their quantiles. Members are heads drawn from the Laplace approximation
    around the trained one, on its trunk (models/evaluators/laplace.py).
    """

    exports_classifier: ClassVar[bool] = True

    kind: Literal["reward_head"] = "reward_head"
    loss: Loss = Field("bradley_terry", description="What is learned from: comparisons, scores, or levels of scores.")
    training: TrainingConfig = TrainingConfig(learning_rate=3e-4, epochs=2.0)
    pairs_per_label: PositiveInt = Field(6, description="Comparisons drawn for each label.")
    margin: bool = Field(
        False,
        description="Whether the better reward is to lead by the difference of the scores, in units of their spread.",
    )
    center_rewards_coefficient: NonNegativeFloat = Field(
        0.0, description="Weight of (r + r')², which keeps rewards about 0 (2312.09244); TRL's name."
    )
    ensemble: PositiveInt = Field(8, description="Heads of the ensemble on the one trained trunk.")
    batch_size: PositiveInt = Field(32, description="Texts scored at once. It does not change the result.")

    @model_validator(mode="after")
    def _of_comparisons_alone(self) -> Self:
        self.training.check_lora(
            "evaluator.training", "a reward head is kept with the adapter that it was trained with"
        )
        if self.loss != "bradley_terry" and (self.margin or self.center_rewards_coefficient):
            raise ConfigError(
                f"evaluator.margin and evaluator.center_rewards_coefficient are of comparisons, and "
                f"evaluator.loss={self.loss} makes none: leave them out, or set evaluator.loss to bradley_terry"
            )
        return self

    @property
    @override
    def supports_pairwise(self) -> bool:
        return self.loss == "bradley_terry"

    @override
    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        check_trainable(scores)
        policy, rng = context.policy.load_copy(), np.random.default_rng(context.seed)
        fits = self._fitting(policy, tuples.responses)
        level, spread = float(scores.mean()), float(scores.std())
        standard = (scores - level) / spread
        if self.loss == "bradley_terry":
            drawn = _draw_pairs(np.where(fits, standard, np.nan), self.pairs_per_label * len(scores), rng)
            return {"too_long": float((~fits).sum())} | self._compare(policy, tuples.responses, drawn, context)
        kept = np.flatnonzero(fits)
        check_trainable(scores[kept])
        found = self._regress(policy, tuples.take(kept), standard[kept], context, level=level, spread=spread)
        return {"too_long": float((~fits).sum())} | found

    @override
    def fit_pairs(
        self, first: Examples, second: Examples, preference: FloatArray, context: FitContext
    ) -> dict[str, float]:
        check_decided(preference)
        policy, count = context.policy.load_copy(), len(preference)
        responses = [*first.responses, *second.responses]
        fits = self._fitting(policy, responses)
        decided = np.flatnonzero(fits[:count] & fits[count:] & (preference != 0))
        sides = np.stack([decided, decided + count], axis=1)
        pairs = np.where(preference[decided, None] > 0, sides, sides[:, ::-1])
        compared = _Comparisons(pairs, np.abs(preference[decided]))
        too_long = float((~(fits[:count] & fits[count:])).sum())
        return {"too_long": too_long} | self._compare(policy, responses, compared, context)

    @override
    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        model, policy, saved = _trained(context)
        states = _states(model, policy, tuples.responses, self.batch_size)
        return np.asarray(saved["heads"] @ states.T + saved["offsets"][:, None])

    @override
    def write_classifier(self, folder: Path, context: FitContext) -> None:
        model, policy, saved = _trained(context)
        save_classifier(model.merge_and_unload(), saved["heads"].mean(0), policy, folder)

    @override
    def temperature(self, context: FitContext) -> float:
        from safetensors.numpy import load_file

        return float(load_file(context.folder / _HEADS)["temperature"])

    def _fitting(self, policy: LanguageModel, responses: Sequence[Response]) -> BoolArray:
        texts = [(r.prompt, r.text) for r in responses]
        return np.array(fits_max_length(policy.renderer, texts, self.training.max_length, "reward head"))

    def _compare(
        self, policy: LanguageModel, responses: Sequence[Response], drawn: _Comparisons, context: FitContext
    ) -> dict[str, float]:
        """Train on comparisons and save the heads, whose rewards are logits, though with a margin they lead by more."""
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        texts = [policy.renderer.row(r.prompt, completion=r.text) for r in responses]
        whole = [text["prompt"] + text["completion"] for text in texts]
        rows = [{"chosen": whole[better], "rejected": whole[worse]} for better, worse in drawn.pairs.tolist()]
        if self.margin:
            rows = [row | {"margin": margin} for row, margin in zip(rows, drawn.margin.tolist(), strict=True)]
        trainer = RewardTrainer(
            model=_with_head(policy, context.seed),
            args=RewardConfig(
                **trainer_kwargs(self.training, context.seed, len(rows)),
                center_rewards_coefficient=self.center_rewards_coefficient or None,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
            peft_config=self.training.peft("SEQ_CLS"),
        )
        self._train(trainer, context)
        used, sides = np.unique(drawn.pairs, return_inverse=True)
        states = _states(trainer.model, policy, [responses[row] for row in used], self.batch_size)
        better, worse = sides.reshape(-1, 2).T
        head, _ = _head(trainer.model)
        curvature = of_comparisons(head, states[better] - states[worse], drawn.margin if self.margin else 0.0)
        self._save(head, curvature, states.mean(0), context)
        return {"pairs": float(len(trainer.train_dataset))} | metrics_of(
            trainer.state.log_history, ["train_loss", "accuracy", "margin", "train_runtime"]
        )

    def _regress(
        self,
        policy: LanguageModel,
        tuples: Examples,
        standard: FloatArray,
        context: FitContext,
        *,
        level: float,
        spread: float,
    ) -> dict[str, float]:
        """Train on standardised scores, or on their levels, and save the heads; those of scores in the oracle's unit."""
        import torch
        from datasets import Dataset
        from peft import get_peft_model
        from transformers import DataCollatorWithPadding, Trainer
        from trl import RewardConfig

        ordinal, levels = self.loss == "ordinal", levels_of(standard)
        thresholds = int(levels.max()) if ordinal else 0
        labels = (levels if ordinal else standard).tolist()
        texts = [policy.renderer.encode(r.prompt, r.text).ids for r in tuples.responses]
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            start = _with_head(policy, context.seed, thresholds)
            model = get_peft_model(start, self.training.peft("SEQ_CLS"))
        trainer = Trainer(
            model=model,
            args=RewardConfig(**trainer_kwargs(self.training, context.seed, len(labels)), remove_unused_columns=False),
            train_dataset=Dataset.from_list(
                [{"input_ids": i, "labels": y} for i, y in zip(texts, labels, strict=True)]
            ),
            data_collator=DataCollatorWithPadding(policy.tokenizer),
            compute_loss_func=proportional_odds if ordinal else squared_error,
        )
        self._train(trainer, context)
        states = _states(trainer.model, policy, tuples.responses, self.batch_size)
        head, between = _head(trainer.model)
        told = information(self.loss, states @ head, standard, between)
        prompt = group_ids([r.prompt_id for r in tuples.responses])
        rng = np.random.default_rng(context.seed)
        # of labels that it was trained on, so the evaluator looks surer than it is: the gate's calibration knows better
        known = temperature(states @ head, standard, prompt, rng)
        middle = np.average(states, axis=0, weights=told)
        unit = {} if ordinal else {"level": level, "spread": spread}
        self._save(head, of_texts(states, told), middle, context, thresholds=thresholds, temperature=known, **unit)
        return {"rows": float(len(labels)), "thresholds": float(thresholds), "temperature": known} | metrics_of(
            trainer.state.log_history, ["train_loss", "train_runtime"]
        )

    @staticmethod
    def _train(trainer: "Trainer", context: FitContext) -> None:
        use_cpu_kernels(trainer)
        train_with_progress(trainer)
        trainer.model.eval()
        save_adapter(trainer.model, context.folder / _ADAPTER)

    def _save(
        self,
        head: FloatArray,
        curvature: FloatArray,
        middle: FloatArray,
        context: FitContext,
        *,
        thresholds: int = 0,
        temperature: float = 1.0,
        level: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        """Save the ensemble, which agrees on the text in the `middle`: what all texts share tells none from another."""
        from safetensors.numpy import save_file

        heads = draw_heads(head, curvature, self.ensemble, np.random.default_rng(context.seed))
        saved = {
            "heads": heads * spread,
            "offsets": level - (heads - head) @ middle * spread,
            "thresholds": np.array(float(thresholds)),
            "temperature": np.array(temperature * spread),
        }
        save_file(saved, context.folder / _HEADS)


def _trained(context: FitContext) -> tuple[Any, LanguageModel, dict[str, Any]]:
    """Return the trained trunk, its policy, and what the heads are."""
    from peft import PeftModel
    from safetensors.numpy import load_file

    policy, saved = context.policy.load_copy(), load_file(context.folder / _HEADS)
    start = _with_head(policy, context.seed, int(saved["thresholds"]))
    return PeftModel.from_pretrained(start, context.folder / _ADAPTER, use_safetensors=True).eval(), policy, saved


def _draw_pairs(scores: FloatArray, most: int, rng: np.random.Generator) -> _Comparisons:
    better, worse = np.nonzero(scores[:, None] > scores[None, :])  # false wherever one is NaN
    drawn = rng.permutation(len(better))[:most]
    pairs = np.stack([better[drawn], worse[drawn]], axis=1)
    return _Comparisons(pairs, scores[pairs[:, 0]] - scores[pairs[:, 1]])


def _with_head(policy: LanguageModel, seed: int, thresholds: int = 0) -> "PreTrainedModel":
    """Return the policy's trunk under a new scalar head (the adapter carries the trained head)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = policy.model.config.__class__.from_dict(policy.model.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = config.get_text_config().pad_token_id = policy.tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=policy.model.dtype)
    model.base_model.load_state_dict(policy.model.base_model.state_dict())
    if thresholds:
        model.score = ordinal_head()(model.score.weight.detach(), thresholds)
    return model.to(policy.model.device)


def _head(model: "PreTrainedModel") -> tuple[FloatArray, FloatArray]:
    """Return the trained head's weights, shape (d,), and the thresholds of its levels (of an ordinal one)."""
    import torch

    head = model.base_model.model.score
    parameter = next(head.parameters())
    width = parameter.shape[-1]
    with torch.inference_mode():
        columns = head(torch.eye(width, dtype=parameter.dtype, device=parameter.device)).double().cpu().numpy()
    return columns[:, 0], columns[0, 1:]


def _states(
    model: "PreTrainedModel", policy: LanguageModel, responses: Sequence[Response], batch_size: int
) -> FloatArray:
    """Return what the head reads, shape (N, d)."""
    import torch

    trunk, pad = model.base_model.model.base_model, policy.tokenizer.pad_token_id
    encoded = [policy.renderer.encode(r.prompt, r.text).ids for r in responses]
    found = np.zeros((len(encoded), policy.model.get_output_embeddings().weight.shape[-1]))  # as its own head reads
    for rows, ids, mask in policy.batches(encoded, batch_size, "scoring"):
        with torch.inference_mode():
            states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
            # Where the library reads it in training: at the last token whose id is not the pad's, which is the token
            # before the end token for tokenizers that pad with the end token.
            last = ((ids != pad) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
            found[rows] = states[torch.arange(len(rows)), last].double().cpu().numpy()
    return found
