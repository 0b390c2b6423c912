"""Take a run's results out: preference data as a dataset, evaluator and policy as folders of weights, each with its card."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.cards import dataset_card, evaluator_card, policy_card
from flows.experiment import Experiment
from flows.findings import Rounds, picked
from flows.report import report_folder
from flows.rerun import started
from models.preference import Pair, Response, Score, to_frame
from tasks.store import store

if TYPE_CHECKING:
    import pandas as pd

DATASET, EVALUATOR, POLICY = "preferences", "evaluator", "policy"


class Finished(NamedTuple):
    """A finished run: its experiment, its report, and where everything that it has made lies."""

    experiment: Experiment
    report: dict[str, Any]
    rounds: Rounds


def finished(name: str) -> Finished:
    """Return a finished run by its name; raise ValueError if there is none, or it has no report yet."""
    path = report_folder(name) / "report.json"
    experiment = started(name).experiment
    if not path.is_file():
        raise ValueError(f"run {name!r} has not finished: `ninefold rerun {name}` goes on with it")
    report = json.loads(path.read_text(encoding="utf-8"))
    if "made" not in report:
        raise ValueError(f"run {name!r} was reported by an older version: `ninefold rerun {name}` writes it again")
    return Finished(experiment, report, Rounds.model_validate(report["made"]))


def export(run: Finished, folder: Path) -> list[Path]:
    """Write what the run has made of dataset, evaluator and policy into a new folder, and return the folders written.

    The dataset loads with `datasets.load_dataset(folder, "pairs" | "judgements" | "scores")`, the policy with transformers.
    Raises ValueError if the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: name another with --to")
    written = []
    if tables := _tables(run.rounds):
        written.append(_dataset(run, tables, folder / DATASET))
    if run.rounds.evaluator is not None:
        place = folder / EVALUATOR
        shutil.copytree(store().folder(run.rounds.evaluator.ref), place)
        _write(place / "evaluator.json", run.experiment.evaluator.model_dump_json(indent=2))
        _write(place / "README.md", evaluator_card(run.experiment, run.report))
        written.append(place)
    if run.rounds.policy.adapters:
        place = folder / POLICY
        model = run.rounds.policy.checkpoint().load()
        model.model.save_pretrained(place)
        model.tokenizer.save_pretrained(place)
        _write(place / "README.md", policy_card(run.experiment, run.report, len(run.rounds.policy.adapters)))
        written.append(place)
    return written


def push(run: Finished, folders: list[Path], repository: str) -> list[str]:
    """Upload exported folders as private repositories `repository`-preferences, -evaluator, -policy; return their links.

    Raises ValueError if the prompts' texts may not be passed on.
    """
    from huggingface_hub import HfApi

    check_push(run.experiment)
    hub, links = HfApi(), []
    for folder in folders:
        kind = "dataset" if folder.name == DATASET else "model"
        name = f"{repository}-{folder.name}"
        links.append(str(hub.create_repo(name, repo_type=kind, private=True, exist_ok=True)))
        hub.upload_folder(
            repo_id=name, repo_type=kind, folder_path=folder, commit_message=f"ninefold run {run.report['name']}"
        )
    return links


def check_push(experiment: Experiment) -> None:
    """Raise ValueError if the prompts' texts may not be passed on."""
    if not experiment.prompts.redistributable:
        raise ValueError(f"prompts.kind={experiment.prompts.label()} may not be pushed: {experiment.prompts.terms}")


def _tables(rounds: Rounds) -> dict[str, "pd.DataFrame"]:
    """Return the dataset's tables by name: pairs for DPO, the expert's judgements, the evaluator's scores."""
    tables = {}
    if rounds.pairs is not None:
        tables["pairs"] = to_frame(store().rows(rounds.pairs.ref, Pair), Pair)
    if rounds.history:
        renamed = {"text": "response", "against_text": "against_response"}
        tables["judgements"] = picked(rounds.history).rename(columns=renamed)
    if rounds.scores is not None and rounds.responses is not None:
        texts = to_frame(store().rows(rounds.responses, Response), Response).rename(columns={"text": "response"})
        scores = to_frame(store().rows(rounds.scores.ref, Score), Score).set_index("response_id")
        tables["scores"] = texts.join(scores, on="id")
    return tables


def _dataset(run: Finished, tables: dict[str, "pd.DataFrame"], folder: Path) -> Path:
    from datasets import Dataset

    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        Dataset.from_pandas(table, preserve_index=False).to_parquet(folder / name / "train.parquet")
    _write(folder / "README.md", dataset_card(run.experiment, run.report, {n: len(t) for n, t in tables.items()}))
    return folder


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
