"""Estimate a model's memory for inference and training from safetensors headers alone.

Estimates, each of the largest moment of a stage: weights and what is kept beside them, not the libraries (about 1 GB of a
process). A term's source is beside it.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from models.policies.dtypes import Dtype
from models.training.config import Lora

_BYTES = {"bfloat16": 2, "float32": 4}
_ADAM = 2  # moments to a trained weight
_ADAPTER = 4 * (2 + _ADAM)  # bytes to a weight of an adapter, which is float32, with its gradient
# Of a token in a layer, kept for the way back, in numbers: what norms, projections, attention (fused: no scores) and gate
# read and write (2205.05198, §4, for a gated network without dropout); benchmarks/memory.py measures it.
_OF_HIDDEN, _OF_KEYS, _OF_INNER = 13, 4, 4
_LOGITS = 3 * 4  # bytes to a position's logit in training: itself in float32, its softmax, its gradient
_SAMPLED = 32  # bytes to a logit where it is sampled: itself, its probability, what these are made of
_AHEAD = 32  # columns of keys and values that are made before there is a token for them (growing_cache.py)


class Shape(NamedTuple):
    """A decoder's sizes: weights in all, layers, widths, vocabulary; `adapted` sums in + out over the linear layers."""

    parameters: int
    layers: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int
    adapted: int


def shape_of(folder: Path) -> Shape | None:
    """Return the sizes of a model in a folder; None if they cannot be read there."""
    try:
        whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = whole.get("text_config", whole)
        shapes = [entry["shape"] for file in sorted(folder.glob("*.safetensors")) for entry in _header(file)]
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        sizes = (config["num_hidden_layers"], config["hidden_size"], config.get("intermediate_size") or 0)
        keys, vocabulary = (config.get("num_key_value_heads") or heads) * width, config["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    linear = [shape for shape in shapes if len(shape) == 2 and vocabulary not in shape]
    return Shape(sum(map(math.prod, shapes)), *sizes, keys, vocabulary, sum(map(sum, linear))) if shapes else None


def _header(file: Path) -> list[dict[str, Any]]:
    """Return what a safetensors file says of its tensors: eight bytes of length, and as much JSON."""
    with file.open("rb") as read:
        length = int.from_bytes(read.read(8), "little")
        entries = json.loads(read.read(min(length, 100 << 20)))
    return [entry for name, entry in entries.items() if name != "__metadata__"]


def weights(shape: Shape, dtype: Dtype) -> int:
    """Return the bytes of the weights."""
    return shape.parameters * _BYTES[dtype]


def generating(shape: Shape, dtype: Dtype, *, rows: int, tokens: int) -> int:
    """Return the bytes of sampling so many rows at once, up to so many tokens with the prompt's."""
    kept = 2 * shape.layers * shape.keys * _BYTES[dtype] * rows * (tokens + _AHEAD)
    return weights(shape, dtype) + kept + rows * shape.vocabulary * _SAMPLED


def training(
    shape: Shape, dtype: Dtype, *, rows: int, tokens: int, lora: Lora | None, head_in_pieces: bool, parts: int = 1
) -> int:
    """Return the bytes of a training step in one process; of every weight without `lora`.

    `head_in_pieces`: logits are made a few positions at a time (cpu_kernels.py), and not all at once. `parts`: processes
    that hold a part each of weights, gradients and moments (1910.02054, §5.3); one layer is gathered at a time.
    """
    each = _BYTES[dtype]
    if lora is None:  # in float32, with gradients; what is computed with is a copy in the model's own numbers
        trained = shape.parameters * 4 * (1 + 1 + _ADAM) - (0 if each < 4 else weights(shape, dtype))
    else:
        trained = lora.r * shape.adapted * _ADAPTER
    of_token = shape.layers * (_OF_HIDDEN * shape.hidden + _OF_KEYS * shape.keys + _OF_INNER * shape.inner)
    logits = 0 if head_in_pieces else rows * tokens * shape.vocabulary * _LOGITS
    held = weights(shape, dtype) + trained
    gathered = weights(shape, dtype) // shape.layers if parts > 1 else 0
    return held // parts + gathered + rows * tokens * of_token * each + logits
