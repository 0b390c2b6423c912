"""What benchmarks name in texts, where no type checker looks, is there: code for other processes, names that are patched."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))
IMPORTS = re.compile(r"^(?:from ((?:models|tasks|flows|tests)[\w.]*) import ([\w, ]+?))(?:  #.*)?$", re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    for module, names in IMPORTS.findall(file.read_text()):
        for name in (each.partition(" as ")[0] for each in names.split(", ")):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), f"{module}.{name}"


def test_what_the_training_benchmark_patches_is_there() -> None:
    from models.training import dpo, sft

    names = set(re.findall(r'patch\.object\(module, "(\w+)"', (ROOT / "benchmarks" / "training.py").read_text()))
    assert len(names) == 2
    assert all(hasattr(module, name) for module in (dpo, sft) for name in names), names
