"""What a training step and generation take of memory, beside what models/training/memory.py says of them.

python benchmarks/memory.py: the packaged model in float32, each in a process of its own, the largest resident size less what
the libraries took before.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CASES = ("train 4 256", "train 8 512", "generate 32 128")


def main() -> None:
    """Measure every case, or the one that is named."""
    if len(sys.argv) > 1:
        return measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print("stage, texts, tokens: GB measured, GB said, said / measured", flush=True)
    for case in CASES:
        subprocess.run([sys.executable, __file__, *case.split()], check=True, stderr=subprocess.DEVNULL)
    return None


def measure(stage: str, rows: int, tokens: int) -> None:
    """Run one case here and print what it took."""
    import psutil
    import trl  # noqa: F401 - what the libraries take is not the model's
    from trl import SFTTrainer  # noqa: F401

    from models.core.data import Demonstration, Prompt
    from models.generators.hf import Transformers
    from models.policies.checkpoint import Checkpoint
    from models.policies.resolve import PACKAGED, locate
    from models.training.memory import generating, shape_of, training
    from models.training.sft import SFT, train_sft

    checkpoint = Checkpoint(locate(PACKAGED).source, (), "float32", "plain")
    shape, process = shape_of(Path(checkpoint.source)), psutil.Process()
    assert shape is not None  # noqa: S101
    before, largest = process.memory_info().rss, [0]

    def watch() -> None:
        while True:
            largest[0] = max(largest[0], process.memory_info().rss)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    model = checkpoint.load_copy()
    if stage == "train":
        text = "film story " * (tokens // 2 - 4)
        recipe = SFT(batch_size=rows, max_length=2 * tokens)
        tokens = len(model.renderer.encode("the film is", text).ids)
        with tempfile.TemporaryDirectory() as folder:
            train_sft(model, [Demonstration("the film is", text)] * rows, recipe, folder=Path(folder), seed=0)
        said = training(shape, "float32", rows=rows, tokens=tokens, lora=recipe.lora, head_in_pieces=True)
    else:
        generator = Transformers(max_new_tokens=tokens, batch_size=rows, temperature=1.5, top_p=1.0)
        prompts = [Prompt.of(f"the film {number} is") for number in range(rows)]
        generator.sample_from(model, prompts, samples=1, seed=0, what="")
        said = generating(shape, "float32", rows=rows, tokens=tokens + 5)
    took = largest[0] - before
    print(f"{stage}, {rows}, {tokens}: {took / 1e9:.2f}, {said / 1e9:.2f}, {said / took:.2f}", flush=True)


if __name__ == "__main__":
    main()
