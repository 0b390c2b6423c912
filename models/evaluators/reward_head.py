"""A scalar head on the language model, trained by Bradley–Terry with TRL's RewardTrainer and LoRA."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_decided, check_trainable
from models.last_layer import draw_heads
from models.policies.cpu_kernels import use_cpu_kernels
from models.policies.language_model import LanguageModel
from models.policies.training import Schedule, arguments, fitting, metrics_of, run, save_adapter
from models.preference import Response

_ADAPTER, _HEADS = "reward_head", "heads.safetensors"


class RewardHead(Evaluator):
    """Every two labelled tuples with different scores are a comparison, whether or not they share the prompt.

    That is our choice: the expert scores single tuples on one scale, so any two are ordered. Members are heads drawn from
    the Laplace approximation around the trained one, on its trunk (models/last_layer.py).
    """

    learns_pairs: ClassVar[bool] = True

    kind: Literal["reward_head"] = "reward_head"
    schedule: Schedule = Schedule(learning_rate=3e-4, epochs=2.0)
    pairs_per_label: PositiveInt = Field(6, description="comparisons drawn per label")
    ensemble: PositiveInt = Field(8, description="heads on the one trained trunk")
    batch_size: PositiveInt = Field(32, description="texts at once")

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_trainable(scores)
        policy, rng = bench.policy.load(), np.random.default_rng(bench.seed)
        fits = self._fitting(policy, tuples.responses)
        pairs = _draw_pairs(np.where(fits, scores, np.nan), self.pairs_per_label * len(scores), rng)
        return self._train(policy, tuples.responses, pairs, bench)

    def fit_pairs(self, first: Tuples, second: Tuples, preference: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_decided(preference)
        policy, count = bench.policy.load(), len(preference)
        responses = [*first.responses, *second.responses]
        fits = self._fitting(policy, responses)
        decided = np.flatnonzero(fits[:count] & fits[count:] & (preference != 0)).tolist()
        pairs = [(n, n + count) if preference[n] > 0 else (n + count, n) for n in decided]
        return self._train(policy, responses, pairs, bench)

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        from peft import PeftModel
        from safetensors.numpy import load_file

        policy = bench.policy.load()
        model = PeftModel.from_pretrained(
            _with_head(policy, bench.seed), bench.folder / _ADAPTER, use_safetensors=True
        ).eval()
        states = _states(model, policy, tuples.responses, self.batch_size)
        return np.asarray(load_file(bench.folder / _HEADS)["heads"] @ states.T)

    def _fitting(self, policy: LanguageModel, responses: Sequence[Response]) -> NDArray[np.bool_]:
        texts = [(r.prompt, r.text) for r in responses]
        return np.array(fitting(policy.renderer, texts, self.schedule.max_length, "reward head"))

    def _train(
        self, policy: LanguageModel, responses: Sequence[Response], pairs: Sequence[tuple[int, int]], bench: Bench
    ) -> dict[str, float]:
        """Train on pairs (better, worse) of rows, and save the adapter and the heads."""
        from datasets import Dataset
        from safetensors.numpy import save_file
        from trl import RewardConfig, RewardTrainer

        texts = [policy.renderer.row(r.prompt, completion=r.text) for r in responses]
        whole = [text["prompt"] + text["completion"] for text in texts]
        trainer = RewardTrainer(
            model=_with_head(policy, bench.seed),
            args=RewardConfig(**arguments(self.schedule, bench.seed, len(pairs))),
            train_dataset=Dataset.from_list([{"chosen": whole[b], "rejected": whole[w]} for b, w in pairs]),
            processing_class=policy.tokenizer,
            peft_config=self.schedule.lora.config("SEQ_CLS"),
        )
        use_cpu_kernels(trainer)
        run(trainer)
        save_adapter(trainer.model, bench.folder / _ADAPTER)
        used, rows = np.unique(pairs, return_inverse=True)
        states = _states(trainer.model.eval(), policy, [responses[row] for row in used], self.batch_size)
        better, worse = rows.reshape(-1, 2).T
        rng = np.random.default_rng(bench.seed)
        heads = draw_heads(_head(trainer.model), states[better] - states[worse], self.ensemble, rng)
        save_file({"heads": heads}, bench.folder / _HEADS)
        return {"pairs": float(len(trainer.train_dataset))} | metrics_of(
            trainer.state.log_history, ["train_loss", "accuracy", "margin", "train_runtime"]
        )


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


def _head(model: Any) -> Floats:  # noqa: ANN401
    """Return the trained head's weights, shape (d,)."""
    import torch

    head = model.base_model.model.score
    parameter = next(head.parameters())
    with torch.inference_mode():
        columns = head(torch.eye(parameter.shape[1], dtype=parameter.dtype, device=parameter.device))
    return np.asarray(columns.squeeze(-1).double().cpu().numpy())


def _states(model: Any, policy: LanguageModel, responses: Sequence[Response], batch_size: int) -> Floats:  # noqa: ANN401
    """Return what the head reads, shape (N, d)."""
    import torch

    trunk, pad = model.base_model.model.base_model, policy.tokenizer.pad_token_id
    encoded = [policy.renderer.encode(r.prompt, r.text).ids for r in responses]
    found = np.zeros((len(encoded), trunk.config.hidden_size))
    for rows, ids, mask in policy.batches(encoded, batch_size, "scoring"):
        with torch.inference_mode():
            states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
            # Where the library reads it in training: at the last token whose id is not the pad's, which is the token
            # before the end token for tokenizers that pad with the end token.
            last = ((ids != pad) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
            found[rows] = states[torch.arange(len(rows)), last].double().cpu().numpy()
    return found
