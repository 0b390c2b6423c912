"""A scalar head on the language model, trained by Bradley–Terry with TRL's RewardTrainer and LoRA."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_decided, check_trainable
from models.policies.language_model import LanguageModel
from models.policies.training import Schedule, arguments, fitting, metrics_of, run, save_adapter

_ADAPTER = "reward_head"


class RewardHead(Evaluator):
    """Every two labelled tuples with different scores are a comparison, whether or not they share the prompt.

    That is our choice: the expert scores single tuples on one scale, so any two are ordered.
    """

    learns_pairs: ClassVar[bool] = True

    kind: Literal["reward_head"] = "reward_head"
    schedule: Schedule = Schedule(learning_rate=3e-4, epochs=2.0)
    pairs_per_label: PositiveInt = Field(6, description="comparisons drawn per label")
    batch_size: PositiveInt = 32

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_trainable(scores)
        policy = bench.policy.load()
        fits = self._fitting(policy, tuples)
        rng = np.random.default_rng(bench.seed)
        pairs = _draw_pairs(np.where(fits, scores, np.nan), self.pairs_per_label * len(scores), rng)
        whole = _whole(policy, tuples)
        return self._train(policy, [(whole[better], whole[worse]) for better, worse in pairs], bench)

    def fit_pairs(self, first: Tuples, second: Tuples, preference: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_decided(preference)
        policy = bench.policy.load()
        fits = np.array(self._fitting(policy, first)) & np.array(self._fitting(policy, second))
        both = list(zip(_whole(policy, first), _whole(policy, second), strict=True))
        decided = np.flatnonzero(fits & (preference != 0))
        return self._train(policy, [both[n] if preference[n] > 0 else both[n][::-1] for n in decided], bench)

    def _fitting(self, policy: LanguageModel, tuples: Tuples) -> list[bool]:
        texts = [(r.prompt, r.text) for r in tuples.responses]
        return fitting(policy.renderer, texts, self.schedule.max_length, "reward head")

    def _train(self, policy: LanguageModel, pairs: Sequence[tuple[str, str]], bench: Bench) -> dict[str, float]:
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        trainer = RewardTrainer(
            model=_with_head(policy, bench.seed),
            args=RewardConfig(**arguments(self.schedule, bench.seed)),
            train_dataset=Dataset.from_list([{"chosen": better, "rejected": worse} for better, worse in pairs]),
            processing_class=policy.tokenizer,
            peft_config=self.schedule.lora.config("SEQ_CLS"),
        )
        run(trainer)
        save_adapter(trainer.model, bench.folder / _ADAPTER)
        return {"pairs": float(len(trainer.train_dataset))} | metrics_of(
            trainer.state.log_history, ["train_loss", "accuracy", "margin", "train_runtime"]
        )

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        from peft import PeftModel

        policy = bench.policy.load()
        model = PeftModel.from_pretrained(
            _with_head(policy, bench.seed), bench.folder / _ADAPTER, use_safetensors=True
        ).eval()
        encoded = [policy.renderer.encode(r.prompt, r.text).ids for r in tuples.responses]
        return _score(model, policy, encoded, self.batch_size)[None, :]


def _whole(policy: LanguageModel, tuples: Tuples) -> list[str]:
    texts = [policy.renderer.row(r.prompt, completion=r.text) for r in tuples.responses]
    return [text["prompt"] + text["completion"] for text in texts]


def _draw_pairs(scores: Floats, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    better, worse = np.nonzero(scores[:, None] > scores[None, :])  # false wherever one is NaN
    drawn = rng.permutation(len(better))[:most]
    return list(zip(better[drawn].tolist(), worse[drawn].tolist(), strict=True))


def _with_head(policy: LanguageModel, seed: int) -> Any:  # noqa: ANN401
    """Return the policy's trunk under a new scalar head (the adapter carries the trained head)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = policy.model.config.__class__.from_dict(policy.model.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = policy.tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=policy.model.dtype)
    model.base_model.load_state_dict(policy.model.base_model.state_dict())
    return model.to(policy.model.device)


def _score(model: Any, policy: LanguageModel, encoded: Sequence[list[int]], batch_size: int) -> Floats:  # noqa: ANN401
    import torch

    trunk, head, pad = model.base_model.model.base_model, model.base_model.model.score, policy.tokenizer.pad_token_id
    scores = np.zeros(len(encoded))
    for rows, ids, mask in policy.batches(encoded, batch_size, "scoring"):
        with torch.inference_mode():
            states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
            # Where the library reads it in training: at the last token whose id is not the pad's, which is the token
            # before the end token for tokenizers that pad with the end token.
            last = ((ids != pad) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
            scores[rows] = head(states[torch.arange(len(rows)), last]).squeeze(-1).float().cpu().numpy()
    return scores
