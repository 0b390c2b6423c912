"""Benchmarks through the real lm-evaluation-harness, on tasks in a folder: nothing is fetched."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.benchmarks import SUITES, benchmarks
from flows.config.experiment import Experiment
from flows.evaluation.reward_bench import NAME
from flows.proxy_reward import proxy_reward
from flows.reporting.storage import finite, report_folder
from models.benchmarks.lm_eval import Task, _manager, check, grade
from models.policies.checkpoint import Checkpoint
from models.policies.language_model import LanguageModel
from tasks.engine.settings import settings
from tasks.evaluation.alpaca_eval import RAW
from tests.end_to_end.test_judge_run import ninefold

QUESTIONS = [
    {"prompt": f"the {word} is", "choices": ["warm and witty", "dull", "a mess"], "answer": n % 3}
    for n, word in enumerate(("film", "story", "tale", "plot", "cast", "ending", "music", "acting"))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks: a choice by likelihood, and an answer that is written."""
    place = tmp_path / "tasks"
    place.mkdir()
    rows = place / "questions.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
    choice = {
        "task": "nine_choice",
        "output_type": "multiple_choice",
        "fewshot_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    written = {
        "task": "nine_written",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    twice = {
        **written,
        "task": "nine_twice",
        "filter_list": [
            {"name": "as_is", "filter": [{"function": "take_first"}]},
            {"name": "word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
        ],
    }
    for task in (choice, written, twice):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return place


def task(name: str, folder: Path, limit: int = 0) -> Task:
    return Task.parse(name, limit=limit, folder=folder)


def test_a_grade_is_what_the_likelihood_says(tiny_model: LanguageModel, folder: Path) -> None:
    found = grade(tiny_model, task("nine_choice", folder), batch_size=3)
    assert [row.question for row in found] == list(range(8))
    assert {row.metric for row in found} == {"acc"}
    for row, question in zip(found, QUESTIONS, strict=True):
        sums = []
        for choice in question["choices"]:
            start = len(tiny_model.renderer.prompt_ids(question["prompt"]))
            ids = list(tiny_model.tokenizer(f"{question['prompt']} {choice}")["input_ids"])
            sums.append(likelihood(tiny_model, ids, start))
        assert row.score == float(max(range(3), key=sums.__getitem__) == question["answer"])
    assert [r.score for r in grade(tiny_model, task("nine_choice", folder), batch_size=1)] == [r.score for r in found]
    shown = grade(tiny_model, task("nine_choice:2", folder, limit=5), batch_size=3)
    assert len(shown) == 5


def likelihood(policy: LanguageModel, ids: list[int], start: int) -> float:
    import torch

    with torch.no_grad():
        logprob = policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logprob[place - 1, ids[place]] for place in range(start, len(ids))))


def test_what_is_written_is_graded_too(tiny_model: LanguageModel, folder: Path) -> None:
    found = grade(tiny_model, task("nine_written", folder), batch_size=3)
    assert len(found) == 8
    assert {row.metric for row in found} == {"exact_match"}
    assert {row.score for row in found} <= {0.0, 1.0}


def test_a_question_that_is_read_in_two_ways_counts_once(tiny_model: LanguageModel, folder: Path) -> None:
    assert [row.question for row in grade(tiny_model, task("nine_twice", folder), batch_size=3)] == list(range(8))


def test_the_named_suites_are_tasks_of_the_package() -> None:
    named = {name for names in SUITES.values() for name in names} - {RAW, NAME}
    check([Task.parse(name, limit=0, folder=None) for name in named])


def test_a_group_in_the_folder_may_be_of_the_package_s_tasks(folder: Path) -> None:
    assert not task("nine_choice", folder).manager().match_tasks(["mmlu"]), "the package's need not be read"
    (folder / "nine_group.yaml").write_text(yaml.safe_dump({"group": "nine_group", "task": ["nine_choice", "ifeval"]}))
    _manager.cache_clear()
    manager = task("nine_group", folder).manager()
    assert manager.match_tasks(["nine_group", "ifeval"]) == ["ifeval", "nine_group"]


def test_what_is_no_task_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="'mmlu:five' is no task: write its name, or name:shots such as mmlu:5"):
        Task.parse("mmlu:five", limit=0, folder=None)
    with pytest.raises(ValueError, match="has no task 'nine_chocie'"):
        check([task("nine_chocie", folder)])
    with pytest.raises(ValueError, match="is no folder of task files"):
        check([task("nine_choice", folder / "nowhere")])


def test_an_edited_question_is_graded_again(folder: Path) -> None:
    before = task("nine_choice", folder).identity()
    assert task("nine_choice", folder).identity() == before
    assert task("nine_choice:1", folder).identity() != before
    (folder / "questions.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    assert task("nine_choice", folder).identity() != before


@pytest.mark.usefixtures("prefect_server", "home")
def test_a_run_s_policies_take_the_same_questions_and_mlflow_has_the_gain(
    tiny_settings: dict[str, Any], folder: Path
) -> None:
    import mlflow

    report = proxy_reward(Experiment.model_validate(tiny_settings))
    rows = benchmarks("tiny", [task("nine_choice:1", folder), task("nine_written", folder)])
    assert [row["benchmark"] for row in rows] == ["nine_choice:1", "nine_written"]
    for row in rows:
        assert row["questions"] == 8
        assert row["gain"].mean == pytest.approx(row["after"] - row["before"])
        assert row["gain"].low <= row["gain"].mean <= row["gain"].high
    kept = json.loads((report_folder("tiny") / "benchmarks.json").read_text())
    written = [finite(row) for row in rows]
    assert kept == written
    mlflow.set_tracking_uri(settings().mlflow_uri)
    metrics = mlflow.get_run(report.mlflow_run).data.metrics
    assert metrics["benchmark.nine_choice-1.m2"] == rows[0]["after"]
    assert math.isclose(metrics["benchmark.nine_written.gain"], rows[1]["gain"].mean)
    grades = sorted(Path(settings().home, "store", "grades").glob("*"))
    assert benchmarks("tiny", [task("nine_choice:1", folder)]) == rows[:1]
    assert json.loads((report_folder("tiny") / "benchmarks.json").read_text()) == written, "what was taken before stays"
    assert sorted(Path(settings().home, "store", "grades").glob("*")) == grades, "from the cache"
    proxy_reward(Experiment.model_validate({**tiny_settings, "dpo": {**tiny_settings["dpo"], "beta": 0.2}}))
    assert not (report_folder("tiny") / "benchmarks.json").exists(), "of another policy"
    with pytest.raises(ValueError, match="no run is called 'tinny'"):
        benchmarks("tinny", [task("nine_choice", folder)])


def test_the_command_names_the_suites_there_are(tmp_path: Path) -> None:
    refused = ninefold("evaluate", "tiny", "--suite", "papre", home=tmp_path, key="none")
    assert refused.returncode == 2
    assert "no suite 'papre': there are paper, alpaca_eval, mmlu, bbh, ifeval, rewardbench, all" in refused.stderr
    assert (
        "name what to take: --suite paper|alpaca_eval|mmlu|bbh|ifeval|rewardbench|all"
        in ninefold("evaluate", "tiny", home=tmp_path, key="none").stderr
    )


def test_weights_are_the_policy_s_own(tiny_checkpoint: Checkpoint, folder: Path) -> None:
    one = grade(tiny_checkpoint.load_copy(), task("nine_written", folder), batch_size=2)
    again = grade(tiny_checkpoint.load_copy(), task("nine_written", folder), batch_size=8)
    assert one == again
