"""RewardBench (2403.13787) by its own command, in an environment of its own."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.core import hub
from models.core.arrays import FloatArray
from models.core.data import QuestionResult
from models.core.errors import ConfigError

_HUB, _SPLIT = "allenai/reward-bench", "filtered"
_INSTALL = (
    "python -m venv rewardbench; rewardbench/bin/pip install rewardbench==0.1.4 trl==0.19.1 'setuptools<81', then "
    "NINEFOLD_REWARDBENCH=rewardbench/bin/rewardbench"
)
# The command needs none of the keys that are in this process's environment.
_PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_OFFLINE")
# Its pipeline sends every batch to a GPU, there or not.
_LAUNCH = """
import torch, transformers
if not torch.cuda.is_available():
    move = transformers.BatchEncoding.to
    transformers.BatchEncoding.to = lambda batch, device, **options: move(batch, "cpu", **options)
from rewardbench.rewardbench import main
main()
"""
_VERSION = "from importlib.metadata import version; print(version('rewardbench'))"
_WEIGHTS = "import json; from rewardbench.constants import *; print(json.dumps([EXAMPLE_COUNTS, SUBSET_MAPPING]))"


class Contrast(NamedTuple):
    """An instruction with a better and a worse answer to it; `subset` is "" for pairs that are not RewardBench's."""

    prompt: str
    chosen: str
    rejected: str
    subset: str = ""


def contrasts(path: Path | None) -> list[Contrast]:
    """Return the pairs of a JSON file (prompt, chosen, rejected), or RewardBench's own from the hub.

    Raises ConfigError naming what is wrong.
    """
    if path is None:
        try:
            rows = list(hub.rows(_HUB, None, _SPLIT))
        except OSError as error:
            raise ConfigError(f"the hub's dataset {_HUB} cannot be fetched and is not cached: {error}") from error
    else:
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"pairs {path} must be a JSON list of prompt, chosen and rejected: {error}") from error
    try:
        found = [Contrast(row["prompt"], row["chosen"], row["rejected"], row.get("subset", "")) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"pairs {path or _HUB} must have prompt, chosen and rejected: {error}") from error
    if not found or not all(isinstance(text, str) for pair in found for text in pair):
        raise ConfigError(f"pairs {path or _HUB} must have prompt, chosen and rejected as texts, at least one of each")
    return found


def command(named: Path | None) -> Path:
    """Return the command: `named`, or the one on the path; raise ConfigError with the remedy if there is none."""
    found = named or shutil.which("rewardbench")
    if found is None or not Path(found).is_file():
        missing = "is not on the path" if named is None else f"is not at {named}"
        raise ConfigError(f"RewardBench's command {missing}: {_INSTALL}")
    program = Path(found).resolve()  # a link to it has another Python beside it
    if not program.with_name("python").is_file():
        raise ConfigError(f"RewardBench's command at {found} has no Python beside it: {_INSTALL}")
    return program


def version_of(program: Path) -> str:
    """Return the version of the command's package; raise ConfigError if its Python has none."""
    return _run(program, _VERSION, [], Path.cwd()).strip()


def grade(
    program: Path,
    write_classifier: Callable[[Path], None],
    pairs: Sequence[Contrast],
    *,
    batch_size: int,
    max_length: int,
) -> list[QuestionResult]:
    """Return 1 for every pair whose better answer the classifier scores higher, else 0, as the program says.

    Texts of more than `max_length` tokens lose their beginning. Raises ConfigError if the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="ninefold-rewardbench-") as scratch:
        folder = Path(scratch)
        write_classifier(folder / "model")
        told = [
            {"chosen": _turns(pair.prompt, pair.chosen), "rejected": _turns(pair.prompt, pair.rejected)}
            for pair in pairs
        ]
        (folder / "pairs.json").write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
        places = ["--model", "model", "--dataset", "pairs.json", "--load_json", "--output_dir", "out/"]
        numbers = ["--torch_dtype", "float32", "--not_quantized", "--batch_size", str(batch_size)]
        _run(program, _LAUNCH, [*places, *numbers, "--max_length", str(max_length), "--force_truncation"], folder)
        lines = (folder / "out" / "model_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    if len(lines) != len(pairs):
        raise ConfigError(f"RewardBench has graded {len(lines)} of {len(pairs)} pairs")
    return [
        QuestionResult(pair.subset, number, "accuracy", float(json.loads(line)["results"]))
        for number, (pair, line) in enumerate(zip(pairs, lines, strict=True))
    ]


def weights(program: Path, pairs: Sequence[Contrast]) -> FloatArray:
    """Return the weight of every pair in the score, of mean 1: a section counts as any other, a subset by its examples.

    Pairs without a subset weigh the same.
    """
    if not any(pair.subset for pair in pairs):
        return np.ones(len(pairs))
    counts, sections = json.loads(_run(program, _WEIGHTS, [], Path.cwd()).splitlines()[-1])
    subsets = [pair.subset for pair in pairs]
    share = {}
    for section in sections.values():
        there = [subset for subset in section if subset in set(subsets)]
        for subset in there:
            share[subset] = counts[subset] / sum(counts[other] for other in there)
    if unknown := set(subsets) - share.keys():
        raise ConfigError(f"RewardBench has no subset {sorted(unknown)[0]!r}: leave it out of the pairs")
    found = np.array([share[subset] / subsets.count(subset) for subset in subsets])
    return np.asarray(found / found.mean())


def _turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _run(program: Path, script: str, arguments: list[str], folder: Path) -> str:
    """Return what a script has said that the program's Python runs; raise ConfigError if it fails."""
    passed = {name: value for name, value in os.environ.items() if name in _PASSED}
    quiet = {
        "PYTHONSAFEPATH": "1",
        "WANDB_MODE": "disabled",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    asked = [str(program.with_name("python")), "-c", script, *arguments]
    done = subprocess.run(asked, cwd=folder, env=passed | quiet, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{program} has failed with {done.returncode}: it says above why")
    return done.stdout
