"""A tiny experiment: everything real but small (a 60k-parameter model, a real server, a real ledger)."""

from pathlib import Path
from typing import Any

import pytest
import yaml

WORDS = ["film", "story", "tale", "plot", "cast", "ending", "music", "acting", "director", "mess"]
KINDS = ["warm", "witty", "dull", "boring", "good", "bad", "fresh", "tired", "clever", "silly"]


@pytest.fixture
def tiny_settings(tmp_path: Path, tiny_model_path: Path) -> dict[str, Any]:
    import json

    prompts = [f"the {kind} {word} is" for kind in KINDS for word in WORDS]
    for name, rows in (("pool", prompts[:40]), ("held", prompts[40:52])):
        (tmp_path / f"{name}.txt").write_text("\n".join(rows) + "\n")
    seeds = [
        {"prompt": p, "response": f"{KINDS[n % 10]} and {KINDS[(n + 3) % 10]}"} for n, p in enumerate(prompts[60:])
    ]
    (tmp_path / "seed.jsonl").write_text("\n".join(json.dumps(s) for s in seeds) + "\n")
    train = {"learning_rate": 3e-3, "batch_size": 8, "max_length": 64, "lora": {"r": 4, "alpha": 8}}
    return {
        "name": "tiny",
        "prompts": {
            "kind": "files",
            "pool": str(tmp_path / "pool.txt"),
            "held_out": str(tmp_path / "held.txt"),
            "seed": str(tmp_path / "seed.jsonl"),
        },
        "policy": {
            "model": str(tiny_model_path),
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


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path
