"""The study through a real Prefect server and MLflow, on a small table of labels."""

import csv
import random
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from flows.config.loading import load
from flows.config.study import LabelEfficiency
from flows.label_efficiency import label_efficiency
from flows.reporting.storage import report_folder
from flows.reporting.study_text import headlines, notes
from tasks.engine.caching import stage_runs
from tasks.engine.settings import settings

GOOD, BAD = ["warm", "witty", "good", "fresh", "clever", "great"], ["dull", "boring", "bad", "tired", "silly", "awful"]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    rng = random.Random(0)
    with (tmp_path / "labels.csv").open("w") as out:
        rows = csv.writer(out)
        rows.writerow(["prompt", "response", "label", "price"])
        for prompt in range(40):
            for _ in range(4):
                words = rng.choices(GOOD + BAD, k=rng.randint(3, 12))
                share = sum(word in GOOD for word in words) / len(words)
                rows.writerow([f"tell me about film {prompt}", " ".join(words), share, 0.001 * len(words)])
    given: dict[str, Any] = {
        "name": "tiny-study",
        "labels": {"path": str(tmp_path / "labels.csv"), "scale": "logit", "price_column": "price"},
        "embedding": {"kind": "sentence"},
        "evaluator": {"kind": "linear", "ensemble": 4},
        "strategies": [{"kind": "coreset_eft"}, {"kind": "bal_pm"}, {"kind": "cost_aware"}],
        "budgets": [15, 30, 60],
        "seeds": 2,
        "responses_per_prompt": 4,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.mark.usefixtures("prefect_server", "home")
def test_a_study_reports_every_arm_beside_the_controls_and_caches_every_curve(study_file: Path) -> None:
    study = load(LabelEfficiency, study_file)
    report = label_efficiency(study)
    strategies = ["coreset_eft", "bal_pm", "cost_aware"]
    names = ["random", "random_pairs", *strategies, "random, length only", "random, shuffled labels"]
    assert [arm["name"] for arm in report["arms"]] == names
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert arms["random"]["area_gain"][0] == arms["random_pairs"]["pairs_area_gain"][0] == 0
    both = [arms["bal_pm"][gain][0] for gain in ("area_gain", "pairs_area_gain")]
    assert both[0] - both[1] == pytest.approx(arms["random_pairs"]["area_gain"][0]), "each against its own control"
    assert arms["random, shuffled labels"]["area"] < arms["random"]["area"]
    assert [p["labels"] for p in arms["bal_pm"]["curve"]] == [15, 30, 60]
    assert arms["cost_aware"]["curve"][-1]["micro_usd"] < arms["random"]["curve"][-1]["micro_usd"]
    folder = report_folder("tiny-study")
    assert {f.name for f in folder.iterdir()} >= {"report.json", "report.md", "report.html", "curves.png"}
    assert len(headlines(report)) == len(names)
    told = " ".join(notes(report))
    assert "Length alone orders" in told
    assert "Not shown to beat random_pairs (the interval of the gain reaches zero): " in told, "two seeds show little"
    mlflow.set_tracking_uri(settings().mlflow_uri)
    runs = mlflow.search_runs(experiment_names=["ninefold-studies"], output_format="list")
    assert {run.info.run_name for run in runs} == {"tiny-study", *names}
    with stage_runs() as again:
        label_efficiency(study.model_copy(update={"seeds": 3}))
    curves = [run for run in again if run.name == "curve"]
    assert sum(not run.cached for run in curves) == len(names), "one new seed of each arm"
    assert len(curves) == 3 * len(names)


def test_what_a_study_cannot_do_is_said_before_it_starts(study_file: Path) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load(LabelEfficiency, study_file, list(overrides)).plan()
        return str(error.value)

    assert "budgets must ascend, got [30, 15, 60]" in refused("budgets=[30, 15, 60]")
    assert "passes the pool, which may hold no more than 112 tuples" in refused("budgets=[15, 30, 600]")
    assert "'predictive_entropy' needs log-probabilities" in refused("strategies=[{kind: predictive_entropy}]")
    assert "must learn from frozen features: use linear" in refused("evaluator.kind=generative")
    assert "fewer than 10 prompts have two labels more than 1 apart" in refused("labels.scale=as_recorded")
    assert "label table none.csv does not exist" in refused("labels.path=none.csv")
    assert "did you mean 'seeds'" in refused("seed=3")
    assert "needs a policy whose hidden states it takes: set policy.model" in refused("embedding.kind=policy")
    assert "'./none' is not a directory" in refused("embedding.kind=policy", "policy.model=./none")


@pytest.mark.usefixtures("prefect_server", "home")
def test_a_study_may_learn_from_a_policys_hidden_states(study_file: Path, tiny_model_path: Path) -> None:
    policy = f"{{model: {tiny_model_path}, template: plain, dtype: float32}}"
    embedding = "{kind: policy, pooling: mean, layers: 1, max_tokens: 16}"
    study = load(
        LabelEfficiency, study_file, [f"policy={policy}", f"embedding={embedding}", "strategies=[{kind: coreset_eft}]"]
    )
    report = label_efficiency(study)
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert arms["random"]["area"] > arms["random, shuffled labels"]["area"]


def test_two_settings_of_one_strategy_have_two_names(study_file: Path) -> None:
    study = load(LabelEfficiency, study_file, ["strategies=[{kind: margin}, {kind: margin, temperature: 3.0}]"])
    names = [arm.name for arm in study.arms()]
    assert len(names) == len(set(names)) == 6


def test_the_controls_stand_once_though_they_are_named(study_file: Path) -> None:
    study = load(LabelEfficiency, study_file, ["strategies=[{kind: random_pairs}, {kind: random}, {kind: margin}]"])
    names = [arm.name for arm in study.arms()]
    assert names == ["random", "random_pairs", "margin", "random, length only", "random, shuffled labels"]
