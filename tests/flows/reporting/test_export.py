"""What is exported loads with the libraries people use, says where it comes from, and is pushed only when asked."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.config.experiment import Experiment
from flows.proxy_reward import proxy_reward
from flows.reporting.export import export, load_finished_run, push
from flows.tracking.lookup import find_run
from models.core.data import Response
from models.evaluators.base import Examples, FitContext
from tasks.engine.store import store

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_dataset_evaluator_and_policy_load_with_what_people_use(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    report = proxy_reward(Experiment.model_validate(tiny_settings))
    run = load_finished_run("tiny")
    folders = export(run, tmp_path / "out")
    assert [folder.name for folder in folders] == ["preferences", "evaluator", "policy"]
    data, evaluator, policy = folders

    pairs = load_dataset(str(data), "pairs", split="train")
    assert len(pairs) == report.pairs
    assert sum(p == "proxy" for p in pairs["provenance"]) == report.proxy_pairs
    assert all(a >= b for a, b in zip(pairs["chosen_score"], pairs["rejected_score"], strict=True))
    judgements = load_dataset(str(data), "judgements", split="train")
    assert sum(judgements["micro_usd"]) == report.micro_usd
    assert set(judgements["status"]) == {"labelled"}
    scores = load_dataset(str(data), "scores", split="train")
    assert len(scores) == 40 * 2

    context = FitContext(run.artifacts.sft_policy.checkpoint(), run.experiment.labelling.rubric, evaluator, 0)
    responses = [Response(**{k: row[k if k != "text" else "response"] for k in Response.__slots__}) for row in scores]
    assert run.artifacts.history[0].features is not None
    features = np.asarray(store().matrix(run.artifacts.history[0].features))
    again = run.experiment.evaluator.predict(Examples(responses, features), context).mean(axis=0)
    np.testing.assert_allclose(again, scores["score"], rtol=1e-6)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    ours = run.artifacts.policy.checkpoint().load_copy()
    ids = torch.tensor([tokenizer("the film is")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, ours.model(ids).logits)
    assert not [file for folder in folders for file in folder.rglob("*.bin")], "safetensors only"

    cards = [DatasetCard.load(data / "README.md"), *(ModelCard.load(folder / "README.md") for folder in folders[1:])]
    for card in cards:
        assert "10 queries, $0.10" in card.content
        assert "**simulated**" in card.content
        assert report.mlflow_run in card.content
    accuracy, low, high = report.evaluator.pair_accuracy
    assert f"{accuracy:.3f} [{low:.3f}, {high:.3f}]" in cards[1].content
    assert cards[2].data.pipeline_tag == "text-generation"
    assert "after SFT and DPO" in cards[2].content
    assert cards[2].data.base_model is None, "a folder is nobody's on the hub"

    with pytest.raises(ValueError, match="is not an empty folder: name another"):
        export(run, tmp_path / "out")


def test_an_arm_that_has_made_nothing_of_a_kind_exports_none_of_it(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    tiny_settings["labelling"] |= {"queries": 0, "acquisition": {"kind": "random"}}
    tiny_settings["feedback"] = "none"
    report = proxy_reward(Experiment.model_validate(tiny_settings))
    assert report.pairs == 0
    assert [folder.name for folder in export(load_finished_run("tiny"), tmp_path / "out")] == ["policy"]
    card = ModelCard.load(tmp_path / "out" / "policy" / "README.md")
    assert "after SFT (LoRA" in card.content
    assert "dpo" not in card.data.tags


def test_nothing_is_pushed_but_on_request_and_texts_that_may_not_leave_stay(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    class Hub:
        """The hub is out of reach here: what would be sent to it."""

        def whoami(self) -> dict[str, str]:
            return {"name": "lab"}

        def create_repo(self, name: str, **given: Any) -> str:
            asked.append((name, given["private"]))
            return f"https://hub/{name}"

        def upload_folder(self, **given: Any) -> None:
            asked.append((given["repo_id"], given["repo_type"]))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    proxy_reward(Experiment.model_validate(tiny_settings))
    run = load_finished_run("tiny")
    folders = export(run, tmp_path / "out")
    assert asked == []
    links = push(run, folders, "lab/tiny")
    assert links[0] == "https://hub/lab/tiny-preferences"
    assert asked[:2] == [("lab/tiny-preferences", True), ("lab/tiny-preferences", "dataset")]
    assert [name for name, _ in asked[2:]] == ["lab/tiny-evaluator"] * 2 + ["lab/tiny-policy"] * 2

    reviews = run.experiment.model_copy(
        update={
            "prompts": type(run.experiment)
            .model_validate(tiny_settings | {"prompts": {"kind": "movie_reviews"}})
            .prompts
        }
    )
    with pytest.raises(
        ValueError, match="prompts.kind=movie_reviews may not be pushed: The texts belong to film critics"
    ):
        push(run._replace(experiment=reviews), folders, "lab/tiny")


def test_a_name_given_to_two_experiments_exports_the_one_of_its_report(tiny_settings: dict[str, Any]) -> None:
    first = Experiment.model_validate(tiny_settings)
    second = first.model_copy(update={"dpo": first.dpo.model_copy(update={"beta": 0.5})})
    for experiment in (first, second, first):
        proxy_reward(experiment)
    assert load_finished_run("tiny").experiment == first
    assert find_run("tiny").experiment == first, "started last, whichever was started first"


def test_a_run_that_has_not_finished_is_refused_with_what_to_do(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no run is called 'nothing'"):
        load_finished_run("nothing")
