"""Configuration of training: learning rate, batch size, LoRA."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from models.core.errors import ConfigError
from models.core.registry import Frozen

if TYPE_CHECKING:
    from peft import LoraConfig


class Lora(Frozen):
    """Low-rank adapters on every linear layer (2106.09685)."""

    r: PositiveInt = Field(16, description="Rank of the adapters.")
    alpha: PositiveInt = Field(32, description="Scale: an adapter counts alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs left out at random in training.")

    def config(self, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> "LoraConfig":
        """Return peft's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules="all-linear", task_type=task
        )


class TrainingConfig(Frozen):
    """How long and how fast to train."""

    learning_rate: PositiveFloat = Field(
        2e-4, description="Highest learning rate of AdamW; a tenth of the steps warm up, then it falls by a cosine."
    )
    epochs: PositiveFloat = Field(1.0, description="Passes over the rows.")
    batch_size: PositiveInt = Field(16, description="Rows to an optimiser step.")
    max_length: PositiveInt = Field(
        1024, description="Most tokens of prompt and response; longer rows are left out, counted and named."
    )
    lora: Lora | None = Field(Lora(), description="LoRA adapters; with null every weight is trained, and kept.")

    def peft(self, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> "LoraConfig | None":
        """Return peft's configuration of the adapters; None where every weight is trained."""
        return None if self.lora is None else self.lora.config(task)

    def check_lora(self, of: str, why: str) -> None:
        """Raise ConfigError if every weight would be trained `of` what cannot do so, and `why`."""
        if self.lora is None:
            raise ConfigError(f"{of}.lora=null trains every weight, and {why}: leave {of}.lora out")
