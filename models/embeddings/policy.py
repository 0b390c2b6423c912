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
    pooling: Pooling = Field("last", description="of the hidden states: mean over tokens, or the last")
    layers: PositiveInt | None = Field(None, description="run only the first so many of the policy's layers")
    max_tokens: PositiveInt | None = Field(None, description="read only the first so many tokens of a text")
    batch_size: int = Field(16, description="texts at once")

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
