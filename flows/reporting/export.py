"""Export a finished run: preference dataset, evaluator and policy, each with its card."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.config.experiment import Experiment
from flows.reporting.cards import dataset_card, evaluator_card, policy_card
from flows.reporting.schema import RunReport
from flows.reporting.storage import read_report
from flows.steps.results import RunArtifacts, picked
from flows.tracking.lookup import find_run
from models.core.data import Pair, Response, Score, to_frame
from models.core.errors import ConfigError
from tasks.engine.store import Ref, store

if TYPE_CHECKING:
    import pandas as pd

DATASET, EVALUATOR, POLICY = "preferences", "evaluator", "policy"


class FinishedRun(NamedTuple):
    """A finished run: its experiment, its report, and where everything that it has made lies."""

    experiment: Experiment
    report: RunReport
    artifacts: RunArtifacts


def load_finished_run(name: str) -> FinishedRun:
    """Return a finished run by its name or MLflow run id; raise ConfigError if there is none, or it has no report."""
    known = find_run(name).experiment.name  # says what runs there are
    report = read_report(known)
    if report is None:
        raise ConfigError(f"run {name!r} has no report that can be read here: `ninefold rerun {name}` goes on with it")
    if name not in (known, report.mlflow_run):
        raise ConfigError(
            f"the report of {known!r} is of run {report.mlflow_run}, not {name}: export that, or rerun it"
        )
    # a name may have been given to several experiments: the report is of this one
    return FinishedRun(find_run(report.mlflow_run).experiment, report, RunArtifacts.model_validate(report.artifacts))


def export(run: FinishedRun, folder: Path) -> list[Path]:
    """Write what the run has made of dataset, evaluator and policy into a new folder, and return the folders written.

    The dataset loads with `datasets.load_dataset(folder, "pairs" | "judgements" | "scores")`, the policy with transformers.
    Raises ConfigError if the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder: name another with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:  # all of it or nothing
        whole = Path(scratch) / "export"
        whole.mkdir()
        if tables := _tables(run.artifacts):
            _dataset(run, tables, whole / DATASET)
        if run.artifacts.evaluator is not None:
            _evaluator(run, run.artifacts.evaluator.ref, whole / EVALUATOR)
        if run.artifacts.policy.adapters:
            _policy(run, whole / POLICY)
        whole.replace(folder)
    return [folder / kind for kind in (DATASET, EVALUATOR, POLICY) if (folder / kind).is_dir()]


def push(run: FinishedRun, folders: list[Path], repository: str) -> list[str]:
    """Upload exported folders as private repositories `repository`-preferences, -evaluator, -policy; return their links.

    Raises ConfigError if the prompts' texts may not be passed on.
    """
    from huggingface_hub import HfApi

    check_push(run.experiment)
    hub, links = HfApi(), []
    for folder in folders:
        kind = "dataset" if folder.name == DATASET else "model"
        name = f"{repository}-{folder.name}"
        links.append(str(hub.create_repo(name, repo_type=kind, private=True, exist_ok=True)))
        hub.upload_folder(
            repo_id=name, repo_type=kind, folder_path=folder, commit_message=f"ninefold run {run.report.name}"
        )
    return links


def check_push(experiment: Experiment) -> None:
    """Raise ConfigError if the prompts' texts may not be passed on, or the hub does not know who pushes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    if not experiment.prompts.redistributable:
        raise ConfigError(
            f"prompts.kind={experiment.prompts.kind_name()} may not be pushed: {experiment.prompts.terms}"
        )
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError("the hub does not know you: hf auth login, or set HF_TOKEN") from error


def _tables(artifacts: RunArtifacts) -> dict[str, "pd.DataFrame"]:
    """Return the dataset's tables by name: pairs for DPO, the oracle's judgements, the evaluator's scores."""
    tables = {}
    if artifacts.pairs is not None:
        tables["pairs"] = to_frame(store().rows(artifacts.pairs.ref, Pair), Pair)
    if artifacts.history:
        renamed = {"text": "response", "against_text": "against_response"}
        tables["judgements"] = picked(artifacts.history).rename(columns=renamed)
    if artifacts.scores is not None and artifacts.responses is not None:
        texts = to_frame(store().rows(artifacts.responses, Response), Response).rename(columns={"text": "response"})
        scores = to_frame(store().rows(artifacts.scores.ref, Score), Score).set_index("response_id")
        tables["scores"] = texts.join(scores, on="id")
    return tables


def _evaluator(run: FinishedRun, trained: Ref, folder: Path) -> None:
    shutil.copytree(store().folder(trained), folder)
    _write(folder / "evaluator.json", run.experiment.evaluator.model_dump_json(indent=2))
    _write(folder / "README.md", evaluator_card(run.experiment, run.report))


def _policy(run: FinishedRun, folder: Path) -> None:
    artifacts = run.artifacts
    model = artifacts.policy.checkpoint().load_cached()
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    before = len(artifacts.sft_policy.adapters)
    trained = ["SFT"] * before + [run.experiment.dpo.algorithm.upper()] * (len(artifacts.policy.adapters) - before)
    _write(folder / "README.md", policy_card(run.experiment, run.report, trained))


def _dataset(run: FinishedRun, tables: dict[str, "pd.DataFrame"], folder: Path) -> None:
    from datasets import Dataset

    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        Dataset.from_pandas(table, preserve_index=False).to_parquet(folder / name / "train.parquet")
    _write(folder / "README.md", dataset_card(run.experiment, run.report, {n: len(t) for n, t in tables.items()}))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
