"""A new extension is one new file: found by its kind, typed, and refused by name when misspelt."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from models.acquisition.base import Acquisition
from models.acquisition.pair_rules.base import PairRule
from models.core.registry import OneOf, Plugin, digest_of, plugins_of
from models.embeddings.base import Embedding
from models.evaluators.base import Evaluator
from models.generators.base import Generator
from models.oracles.base import Oracle
from models.sources.base import PromptSource

EXTENSION_POINTS = [Acquisition, Embedding, Evaluator, Generator, Oracle, PairRule, PromptSource]


class Holder(BaseModel):
    strategy: Annotated[Acquisition, OneOf()]


@pytest.mark.parametrize("base", EXTENSION_POINTS)
def test_every_plugin_is_frozen_closed_and_documented(base: type[Plugin]) -> None:
    plugins = [plugin for plugin in plugins_of(base) if plugin.__module__.startswith("models.")]
    assert plugins
    for plugin in plugins:
        assert plugin.model_config["frozen"] is True
        assert plugin.model_config["extra"] == "forbid"
        assert plugin.__doc__
        assert len(plugin.model_fields) <= 10, f"{plugin.__name__} exposes more than ten fields"


def test_a_misspelt_kind_is_answered_with_the_kinds_there_are() -> None:
    with pytest.raises(
        ValidationError, match=r"'coreset_efd' .* does not match any of the expected tags: .*'coreset_eft'"
    ):
        Holder.model_validate({"strategy": {"kind": "coreset_efd"}})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Holder.model_validate({"strategy": {"kind": "random", "stratfied": True}})


def test_a_plugin_survives_the_round_trip_through_json() -> None:
    holder = Holder.model_validate({"strategy": {"kind": "margin", "temperature": 0.5}})
    assert Holder.model_validate_json(holder.model_dump_json()) == holder


def test_the_schema_offers_one_of_the_plugins() -> None:
    schema = Holder.model_json_schema()["properties"]["strategy"]
    assert schema["discriminator"]["propertyName"] == "kind"
    assert len(schema["oneOf"]) == len(plugins_of(Acquisition))


def test_a_strategy_dropped_in_as_one_file_is_found(tmp_path: Path) -> None:
    """A copy of the tree with one more file, in a process of its own."""
    import shutil

    root = Path(__file__).parents[2]
    shutil.copytree(root / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models" / "acquisition" / "longest.py").write_text(
        "from typing import Literal\n"
        "import numpy as np\n"
        "from models.acquisition.base import Acquisition, Pool\n"
        "from models.core.arrays import FloatArray\n\n\n"
        "class Longest(Acquisition):\n"
        '    """Ask about the longest responses."""\n\n'
        '    kind: Literal["longest"] = "longest"\n\n'
        "    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:\n"
        "        return pool.tokens.astype(float)\n"
    )
    script = (
        "from models.core.registry import plugins_of; from models.acquisition.base import Acquisition; "
        "print([p.model_fields['kind'].default for p in plugins_of(Acquisition)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "'longest'" in done.stdout, done.stderr


def test_a_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert digest_of({"a": "ä"}) != digest_of({"a": "a"})
