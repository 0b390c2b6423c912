"""RewardBench through its real command, which lives in an environment of its own: `make rewardbench` builds it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.benchmarks import benchmarks
from flows.config.experiment import Experiment
from flows.evaluation.reward_bench import RewardBenchConfig
from flows.proxy_reward import proxy_reward
from flows.reporting.export import load_finished_run
from models.benchmarks.reward_bench import Contrast, _run, command, contrasts, weights
from models.core.data import Response
from models.evaluators.base import Examples, FitContext
from tasks.engine.settings import settings
from tasks.engine.store import store

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / ".venv" / "rewardbench" / "bin" / "rewardbench"
PAIRS = [
    {"prompt": f"the {noun} is", "chosen": f"warm and witty {noun}", "rejected": f"{word} mess of {noun}"}
    for noun in ("film", "story", "tale", "plot")
    for word in ("dull", "awful", "a tedious", "warm")
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(PAIRS))
    return path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    del home
    monkeypatch.setenv("NINEFOLD_REWARDBENCH", str(PROGRAM))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-theirs")
    settings.cache_clear()
    return PROGRAM


@pytest.fixture
def rewarding(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    schedule = {"learning_rate": 5e-3, "epochs": 1, "batch_size": 8}
    return tiny_settings | {"evaluator": {"kind": "reward_head", "training": schedule, "ensemble": 2}}


@pytest.mark.usefixtures("prefect_server", "program")
def test_its_command_finds_what_our_evaluator_says(rewarding: dict[str, Any], pairs: Path) -> None:
    proxy_reward(Experiment.model_validate(rewarding))
    (row,) = benchmarks("tiny", [], reward_bench=RewardBenchConfig(pairs=pairs))
    script = "import os; print(sorted(name for name in os.environ if 'KEY' in name or 'NINEFOLD' in name))"
    assert _run(PROGRAM, script, [], pairs.parent).strip() == "[]", "our keys are none of its business"
    known = load_finished_run("tiny")
    assert known.artifacts.evaluator is not None
    context = FitContext(
        known.artifacts.sft_policy.checkpoint(),
        known.experiment.labelling.rubric,
        store().folder(known.artifacts.evaluator.ref),
        0,
    )
    sides = [
        known.experiment.evaluator.predict(
            Examples([Response.recorded(str(n), p["prompt"], p[side]) for n, p in enumerate(PAIRS)]), context
        ).mean(0)
        for side in ("chosen", "rejected")
    ]
    assert 0 < np.mean(sides[0] > sides[1]) < 1, "else nothing would be told apart"
    assert row["after"] == pytest.approx(float(np.mean(sides[0] > sides[1])))
    assert row["gain"].mean == pytest.approx(row["after"] - 0.5)
    assert row["gain"].low < row["gain"].mean < row["gain"].high
    assert (row["questions"], row["truncated"]) == (len(PAIRS), 0)
    assert benchmarks("tiny", [], reward_bench=RewardBenchConfig(pairs=pairs)) == [row]


@pytest.mark.usefixtures("program")
def test_a_section_counts_as_any_other_and_a_subset_by_its_examples() -> None:
    """Chat's and Safety's sections: within, a subset weighs what the package says it does."""
    pair = {"prompt": "x", "chosen": "y", "rejected": "z"}
    subsets = ["alpacaeval-easy"] * 3 + ["mt-bench-easy"] + ["refusals-dangerous"] * 2
    found = weights(PROGRAM, [Contrast(**pair, subset=subset) for subset in subsets])
    assert found.mean() == pytest.approx(1)
    assert found[:4].sum() == pytest.approx(found[4:].sum())
    assert 3 * found[0] / found[3] == pytest.approx(100 / 28), "of 100 and 28 examples"
    with pytest.raises(ValueError, match="has no subset 'nobody'"):
        weights(PROGRAM, [Contrast(**pair, subset="nobody")])


@pytest.mark.usefixtures("prefect_server", "home")
def test_what_cannot_be_ranked_is_refused(
    tiny_settings: dict[str, Any], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_reward(Experiment.model_validate(tiny_settings))
    with pytest.raises(ValueError, match="takes sequence classifiers, and evaluator 'linear' is none: use reward_head"):
        benchmarks("tiny", [], reward_bench=RewardBenchConfig(pairs=pairs))
    with pytest.raises(ValueError, match=r"is not at .*nowhere: python -m venv rewardbench"):
        command(tmp_path / "nowhere")
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(ValueError, match="command is not on the path"):
        command(None)
    with pytest.raises(ValueError, match="the hub's dataset allenai/reward-bench cannot be fetched"):
        contrasts(None)
    for text in ("no", "[]", '[{"prompt": "x"}]', '[{"prompt": "x", "chosen": 1, "rejected": "y"}]', "[3]"):
        pairs.write_text(text)
        with pytest.raises(ValueError, match=r"pairs .*pairs.json must"):
            contrasts(pairs)
