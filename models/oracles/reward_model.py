"""Oracle: any sequence-classification reward model with one output, local or from the hub."""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.allowlist import FolderOrName
from models.core.money import MicroUsd
from models.core.rubric import Rubric
from models.oracles.base import Oracle, Verdict
from models.policies.chat_template import Renderer, Template
from models.policies.checkpoint import CACHE
from models.policies.dtypes import Dtype
from models.policies.model_files import ModelFiles, files_at_hand
from models.policies.resolve import check_reference, locate

_loading = Lock()


class RewardModel(Oracle):
    """Score the rendered (prompt, response) with the model's one output, in its own unit; the rubric is not read.

    A text of more than `max_tokens`, or than the model reads, is quarantined with its length, never cut. Safetensors only,
    no remote code.
    """

    description: ClassVar[str] = "a reward model"
    billed_on_failure: ClassVar[bool] = False

    kind: Literal["reward_model"] = "reward_model"
    model: Annotated[str, FolderOrName] = Field(description="The reward model: a local directory or a hub id.")
    template: Template = Field(
        "chat", description="How prompt and response are rendered: by the chat template, or as plain text."
    )
    dtype: Dtype = Field("bfloat16", description="Type of the weights.")
    max_tokens: PositiveInt = Field(4096, description="Most tokens of a text; longer ones are quarantined.")
    micro_usd: MicroUsd = 0

    @property
    @override
    def uses_device(self) -> bool:
        return True

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        import torch

        loaded = _loaded(self)
        ids = Renderer(loaded.tokenizer, self.template).encode(prompt, response).ids
        if len(ids) > self.max_tokens:
            raw = f"not judged: {len(ids)} tokens, and max_tokens is {self.max_tokens}"
            return Verdict(float("nan"), raw, self.micro_usd, len(ids))
        if loaded.context is not None and len(ids) > loaded.context:
            raw = f"not judged: {len(ids)} tokens, and the model reads {loaded.context}"
            return Verdict(float("nan"), raw, self.micro_usd, len(ids))
        with torch.inference_mode():
            score = float(loaded.model(input_ids=torch.tensor([ids], device=loaded.model.device)).logits[0, 0])
        return Verdict(score, f"{score:.6g}", self.micro_usd, len(ids))

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self.micro_usd

    @override
    def identity(self) -> list[Any]:
        return [locate(self.model).digest, self.template, self.dtype, self.max_tokens]

    @override
    def check(self) -> None:
        check_reference(self.model)
        if files := files_at_hand(self.model):  # else when it is fetched
            self.check_files(files)

    def check_files(self, files: ModelFiles) -> None:
        """Raise ConfigError if the model's files say that it cannot score what it would be given."""
        files.check_scores("oracle.model")
        if self.template == "chat":
            files.check_template("oracle.template")


class _Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    context: int | None


def _loaded(oracle: RewardModel) -> _Loaded:
    with _loading:  # several workers ask at once; the first of them loads
        return _load(oracle)


@lru_cache(maxsize=1)
def _load(oracle: RewardModel) -> _Loaded:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = locate(oracle.model).source
    files = ModelFiles(oracle.model, Path(source))
    oracle.check_files(files)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=getattr(torch, oracle.dtype), use_safetensors=True, trust_remote_code=False
    )
    if torch.cuda.is_available():
        model = model.to("cuda")
    return _Loaded(model.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False), files.context)


CACHE.releases.append(_load.cache_clear)
