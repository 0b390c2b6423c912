"""Memory estimates: sizes are read from the files alone, and what a stage takes grows with what it is given."""

from pathlib import Path

from models.policies.checkpoint import Checkpoint
from models.training.config import Lora
from models.training.memory import generating, shape_of, training, weights


def test_sizes_are_those_of_the_loaded_model(tiny_checkpoint: Checkpoint) -> None:
    from peft import get_peft_model

    shape = shape_of(Path(tiny_checkpoint.source))
    assert shape is not None
    model = tiny_checkpoint.load_copy().model
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert weights(shape, "float32") == sum(p.numel() * p.element_size() for p in model.parameters())
    assert (shape.layers, shape.hidden, shape.inner, shape.keys) == (2, 48, 96, 24)
    adapted = get_peft_model(model, Lora(r=3).config("CAUSAL_LM"))
    assert 3 * shape.adapted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_what_cannot_be_read_is_not_guessed(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    assert shape_of(tmp_path) is None
    (tmp_path / "config.json").write_text((Path(tiny_checkpoint.source) / "config.json").read_text())
    assert shape_of(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert shape_of(tmp_path) is None


def test_more_at_once_and_more_to_train_take_more(tiny_checkpoint: Checkpoint) -> None:
    shape = shape_of(Path(tiny_checkpoint.source))
    assert shape is not None

    def train(rows: int = 4, tokens: int = 64, lora: Lora | None = Lora(), pieces: bool = True) -> int:  # noqa: B008
        return training(shape, "bfloat16", rows=rows, tokens=tokens, lora=lora, head_in_pieces=pieces)

    assert train() < train(rows=8) == train(tokens=128)
    assert train(lora=Lora(r=4)) < train(lora=Lora(r=8))
    assert train(pieces=False) - train() == 4 * 64 * shape.vocabulary * 12
    full = train(lora=None) - train(rows=0, lora=None)
    assert full == train() - train(rows=0), "activations are the same"
    assert train(rows=0, lora=None) - weights(shape, "bfloat16") == 4 * weights(shape, "float32"), "with its moments"
    assert generating(shape, "float32", rows=8, tokens=64) < generating(shape, "float32", rows=8, tokens=128)
