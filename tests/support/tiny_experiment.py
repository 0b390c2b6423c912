"""A tiny experiment: everything real but small. `python -m tests.support.tiny_experiment` writes it and runs it."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.tiny_model import write_tiny_model

WORDS = ["film", "story", "tale", "plot", "cast", "ending", "music", "acting", "director", "mess"]
KINDS = ["warm", "witty", "dull", "boring", "good", "bad", "fresh", "tired", "clever", "silly"]


def tiny_experiment(folder: Path, model: Path) -> dict[str, Any]:
    """Write the prompts and demonstrations to a folder, and return the experiment."""
    prompts = [f"the {kind} {word} is" for kind in KINDS for word in WORDS]
    for name, rows in (("pool", prompts[:40]), ("held", prompts[40:52])):
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    seeds = [
        {"prompt": p, "response": f"{KINDS[n % 10]} and {KINDS[(n + 3) % 10]}"} for n, p in enumerate(prompts[60:])
    ]
    (folder / "seed.jsonl").write_text("\n".join(json.dumps(s) for s in seeds) + "\n")
    train = {"learning_rate": 3e-3, "batch_size": 8, "max_length": 64, "lora": {"r": 4, "alpha": 8}}
    return {
        "name": "tiny",
        "prompts": {
            "kind": "files",
            "pool": str(folder / "pool.txt"),
            "held_out": str(folder / "held.txt"),
            "demonstrations": str(folder / "seed.jsonl"),
        },
        "policy": {
            "model": str(model),
            "template": "plain",
            "dtype": "float32",
            "max_prompt_tokens": 32,
            "sft": train,
        },
        "generation": {
            "kind": "transformers",
            "samples": 2,
            "temperature": 1.0,
            "max_new_tokens": 8,
            "batch_size": 32,
        },
        "embedding": {"kind": "policy", "pooling": "mean"},
        "labelling": {
            "acquisition": {"kind": "coreset_eft"},
            "oracle": {"kind": "gold", "micro_usd": 10_000},
            "rubric": {"name": "warmth"},
            "queries": 10,
            "max_micro_usd": 100_000,
        },
        "evaluator": {"kind": "linear", "ensemble": 4},
        "dpo": train,
        "evaluation": {"samples": 2, "max_micro_usd": 1_000_000},
    }


def main() -> None:
    """Run it in the home that this process has: of a clone, it then is one with a finished run in it."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny_model(folder / "model")
        file = folder / "tiny.yaml"
        file.write_text(json.dumps(tiny_experiment(folder, folder / "model")))  # JSON is YAML
        subprocess.run([sys.executable, "-m", "flows.cli.main", "run", str(file)], check=True)


if __name__ == "__main__":
    main()
