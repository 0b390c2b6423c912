"""Contract of embeddings: texts to vectors, for coverage and as features of evaluators."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from models.core.arrays import Float32Array
from models.core.data import Response
from models.core.errors import ConfigError
from models.core.registry import Plugin
from models.core.rubric import Rubric
from models.policies.language_model import LanguageModel

View = Literal["instruction", "response", "evaluation"]


class Shard(NamedTuple):
    """Vectors of some rows, in any order of rows; shape (len(rows), dimensions)."""

    rows: Sequence[int]
    vectors: Float32Array


def texts_of(view: View, responses: Sequence[Response], rubric: Rubric) -> list[str]:
    """Return the text of each tuple in a view: x (instruction), x + y (response), or rubric + x + y (evaluation).

    The paper's coreset_ift measures coverage in the instruction view, coreset_eft in the evaluation view.
    """
    if view == "instruction":
        return [r.prompt for r in responses]
    if view == "response":
        return [f"{r.prompt} {r.text}" for r in responses]
    return [rubric.render(r.prompt, r.text) for r in responses]


class Embedding(Plugin):
    """An encoder. Concrete encoders declare `kind` and implement `encode`."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    normalise: bool = Field(True, description="Whether vectors are scaled to unit length.")

    def shards(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
        """Yield the vectors of distinct texts in shards, float32, of unit length where `normalise`."""
        for shard in self.encode(texts, policy):
            vectors = np.ascontiguousarray(shard.vectors, dtype=np.float32)
            if not np.isfinite(vectors).all():
                bad = shard.rows[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
                raise ConfigError(f"embedding of text {texts[bad][:60]!r} is not finite")
            if self.normalise:
                norm = np.linalg.norm(vectors, axis=1, keepdims=True)
                if not norm.all():
                    empty = shard.rows[int(np.flatnonzero(norm == 0)[0])]
                    raise ConfigError(
                        f"embedding of text {texts[empty][:60]!r} is zero and has no direction: set embedding.normalise to "
                        "false, or remove the text"
                    )
                vectors = vectors / norm
            yield Shard(shard.rows, vectors)

    def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
        """Yield raw vectors; `policy` is None unless `needs_policy`."""
        raise NotImplementedError

    @property
    def needs_policy(self) -> bool:
        """Whether the vectors come from the policy's own layers (and so change with it)."""
        return False

    def digest_inputs(self) -> str:
        """Return a digest of the encoder itself, so that one retrained in place is not mistaken for the old one."""
        return self.digest()

    def check(self) -> None:
        """Raise FileNotFoundError, before anything is bought, if the encoder is not there."""

    def reads_at_most(self) -> int | None:
        """Return the most tokens that an encoder of its own reads of a text; None where its files here do not say."""
        return None
