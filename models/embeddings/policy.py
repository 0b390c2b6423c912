"""Embedding by the policy's own hidden states."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.errors import ConfigError
from models.embeddings.base import Embedding, Shard
from models.policies.language_model import LanguageModel, Pooling


class PolicyEmbedding(Embedding):
    """The policy's own hidden states, pooled over tokens; of the last layer in the paper (2407.02119, as summarised).

    An early layer costs less, for the layers after it are not run, and may say more.
    """

    kind: Literal["policy"] = "policy"
    pooling: Pooling = Field(
        "last", description="How hidden states become one vector: their mean over tokens, or that of the last token."
    )
    layers: PositiveInt | None = Field(
        None, description="Run only this many of the policy's first layers; all by default."
    )
    max_tokens: PositiveInt | None = Field(
        None, description="Read only this many first tokens of a text; all by default."
    )
    batch_size: int = Field(16, description="Texts embedded at once. It does not change the result.")

    @property
    @override
    def needs_policy(self) -> bool:
        return True

    @override
    def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
        if policy is None:
            raise ConfigError("the policy embedding needs the policy")
        states = policy.hidden_states(
            texts,
            pooling=self.pooling,
            layers=self.layers,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            what="embedding",
        )
        for rows, vectors in states:
            yield Shard(rows, vectors)
