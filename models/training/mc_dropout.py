"""MC dropout (1506.02142): an ensemble from one trained adapter."""

import shutil
from pathlib import Path

import numpy as np

from models.training.trainer import CONFIG, WEIGHTS

_INPUTS = ".lora_A.weight"  # shape (rank, inputs)


def drop_inputs(adapter: Path, folder: Path, share: float, rng: np.random.Generator) -> None:
    """Write a copy of a LoRA adapter that sees 1 − `share` of each layer's inputs, scaled up by as much.

    What is dropped is drawn once, for all texts and positions (as in 1512.05287), so that a score is the same in any batch.
    """
    from safetensors.numpy import load_file, save_file

    weights = load_file(adapter / WEIGHTS)
    for name in sorted(weights):
        if name.endswith(_INPUTS):
            kept = rng.random(weights[name].shape[1]) >= share
            weights[name] = (weights[name] * kept / (1 - share)).astype(weights[name].dtype)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter / CONFIG, folder / CONFIG)
    save_file(weights, folder / WEIGHTS)
