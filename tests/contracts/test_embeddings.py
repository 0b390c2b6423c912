"""What every encoder's vectors are held to, and the views they are made of."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.core.data import Response
from models.core.rubric import Rubric
from models.embeddings import sentence
from models.embeddings.base import Embedding, Shard, texts_of
from models.embeddings.sentence import SentenceEmbedding
from models.policies.checkpoint import CACHE
from models.policies.language_model import LanguageModel


def encoder(*rows: Sequence[float], **settings: Any) -> Embedding:
    """An encoder that returns these vectors."""

    class Given(Embedding):
        def encode(self, texts: Sequence[str], policy: LanguageModel | None) -> Iterator[Shard]:
            yield Shard(range(len(texts)), np.array(rows, dtype=np.float32))

    return Given(**settings)


def test_vectors_have_unit_length_unless_told_otherwise() -> None:
    (shard,) = encoder([3, 4], [0, 2]).shards(["a", "b"], None)
    np.testing.assert_allclose(shard.vectors, [[0.6, 0.8], [0, 1]], atol=1e-7)
    (shard,) = encoder([3, 4], [0, 0], normalise=False).shards(["a", "b"], None)
    assert shard.vectors.tolist() == [[3, 4], [0, 0]]


def test_a_vector_without_direction_or_value_is_refused_by_its_text() -> None:
    with pytest.raises(ValueError, match="embedding of text 'b' is zero and has no direction: set embedding.normalise"):
        list(encoder([3, 4], [0, 0]).shards(["a", "b"], None))
    with pytest.raises(ValueError, match="embedding of text 'b' is not finite"):
        list(encoder([3, 4], [0, float("nan")]).shards(["a", "b"], None))


def test_the_views_are_instruction_response_and_what_the_evaluator_is_asked() -> None:
    tuples = [Response("r", "p", "name a film", 0, "Ran", 1, -1.0)]
    rubric = Rubric()
    assert texts_of("instruction", tuples, rubric) == ["name a film"]
    assert texts_of("response", tuples, rubric) == ["name a film Ran"]
    assert texts_of("evaluation", tuples, rubric) == [rubric.render("name a film", "Ran")]


@pytest.mark.parametrize("nowhere", ["/missing", "./missing", "missing"])
def test_an_encoder_that_is_nowhere_is_refused_before_it_is_needed(nowhere: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"embedding model '{nowhere}' is neither a directory, a hub id, nor"):
        SentenceEmbedding(model=nowhere).check()
    SentenceEmbedding(model="org/encoder@v1").check()


def test_an_encoder_from_the_hub_is_known_by_its_commit_and_read_from_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own local copy, as it lies there after a download."""
    from huggingface_hub import constants
    from safetensors.torch import load_file

    from models.core import hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copy, found = tmp_path / "models--org--encoder", SentenceEmbedding(model="org/encoder")
    (copy / "refs").mkdir(parents=True)
    packaged = SentenceEmbedding()
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(packaged._source(), copy / "snapshots" / commit)
        (copy / "refs" / "main").write_text(commit)
        hub.folder.cache_clear()
        assert found.digest_inputs() == f"hub-org/encoder-{commit}"
    (one,), (other,) = found.shards(["warm"], None), packaged.shards(["warm"], None)
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)

    weights = copy / "snapshots" / commit / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        list(found.shards(["warm"], None))


def test_an_encoder_is_loaded_once_and_again_if_it_was_trained_meanwhile_or_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentence_transformers
    from safetensors.torch import load_file, save_file

    loaded: list[str] = []

    class Counted(sentence_transformers.SentenceTransformer):  # type: ignore[misc]
        def __init__(self, source: str, **settings: Any) -> None:
            loaded.append(source)
            super().__init__(source, **settings)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Counted)
    folder = tmp_path / "encoder"
    shutil.copytree(SentenceEmbedding()._source(), folder)
    found = SentenceEmbedding(model=str(folder))
    (before,), (again,) = (list(found.shards(["warm"], None)) for _ in range(2))
    np.testing.assert_array_equal(before.vectors, again.vectors)
    assert len(loaded) == 1

    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (after,) = found.shards(["warm"], None)
    assert len(loaded) == 2
    assert np.abs(after.vectors - before.vectors).max() > 1e-3
    CACHE.release()
    list(found.shards(["warm"], None))
    assert len(loaded) == 3

    monkeypatch.setattr(sentence, "_KEPT", 0)
    for _ in range(2):
        list(found.shards(["warm"], None))
    assert len(loaded) == 4, "the one at hand is let go of, and what is too large to keep is loaded each time"
