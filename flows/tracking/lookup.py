"""Find a run in MLflow by name or id, and read its experiment back."""

from typing import NamedTuple

from flows.config.experiment import Experiment
from flows.tracking.mlflow import EXPERIMENT, SWEEP, open_experiment
from flows.tracking.run import ACCOUNTS, PURSE, SETTINGS, STARTED
from models.core.errors import ConfigError
from models.ledger.purses import Purse


class RunSpec(NamedTuple):
    """An arm as it was started: its experiment, the sweep it belongs to ("" where it was alone) with its purse, and the
    accounts of the ledger that it buys on."""

    experiment: Experiment
    sweep: str
    purse: Purse | None
    accounts: tuple[str, ...]


def find_run(name: str) -> RunSpec:
    """Return the arm of a name (or of an MLflow run id) that was started last, finished or not.

    Raises ConfigError naming what there is.
    """
    import mlflow

    open_experiment(EXPERIMENT)
    runs = mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list")
    runs.sort(key=lambda run: float(run.data.tags.get(STARTED, 0)), reverse=True)
    found = next((run for run in runs if name in (run.info.run_name, run.info.run_id)), None)
    if found is None:
        known = ", ".join(dict.fromkeys(run.info.run_name for run in runs[:10])) or "none yet"
        raise ConfigError(f"no run is called {name!r}: the newest are {known}")
    text = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/{SETTINGS}")
    purse = found.data.tags.get(PURSE)
    return RunSpec(
        Experiment.model_validate_json(text),
        found.data.tags.get(SWEEP, ""),
        Purse.model_validate_json(purse) if purse else None,
        tuple(found.data.tags.get(ACCOUNTS, "").split()),
    )
