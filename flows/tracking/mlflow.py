"""MLflow logging: experiments, metrics, datasets, registered models, the runs of studies and sweeps."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.runtime.empty_databases import lay_mlflow_database
from models.metrics.intervals import Interval
from tasks.engine.locks import holding, stage_lock
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store

if TYPE_CHECKING:
    import pandas as pd


EXPERIMENT, SWEEPS = "ninefold", "ninefold-sweeps"
SWEEP = "ninefold.sweep"  # tag: which sweep a run is of
CURVE = "ninefold.curve"  # tag: whether it is one of a sweep's learning curves


def open_experiment(name: str) -> str:
    """Make an experiment the current one and return its id; its artifacts lie where the settings say."""
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow_uri)
    if "mlflow_uri" not in settings().model_fields_set:
        lay_mlflow_database(settings().home.absolute() / "mlflow.sqlite")
    with holding(
        stage_lock("mlflow")
    ):  # two that make MLflow's tables, or an experiment, at once get in each other's way
        if mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifact_location=settings().mlflow_artifacts)
        return str(mlflow.set_experiment(name).experiment_id)


def study_run(name: str, arms: list[dict[str, Any]], params: dict[str, Any], folder: Path) -> None:
    """Log a study: a run with its report, and under it one run per arm with a metric per budget, step = labels."""
    import mlflow

    open_experiment(f"{EXPERIMENT}-studies")
    with mlflow.start_run(run_name=name):
        mlflow.log_params(params)
        mlflow.log_artifacts(str(folder), "report")
        for arm in arms:
            with mlflow.start_run(run_name=arm["name"], nested=True):
                mlflow.log_param("arm", arm["name"])
                log_metrics({"area": arm["area"]}, step=0)
                for point in arm["curve"]:
                    means = {key: found.mean for key, found in point.items() if isinstance(found, Interval)}
                    log_metrics(means | {"micro_usd": point["micro_usd"]}, step=point["labels"])


def log_metrics(metrics: dict[str, float], *, step: int) -> None:
    """Log finite metrics in one batch (MLflow stores NaN as zero on some back ends)."""
    import mlflow

    mlflow.log_metrics({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)


def log_dataset(frame: "pd.DataFrame", name: str, ref: Ref, context: str) -> None:
    """Log a table as an MLflow dataset input under its own digest."""
    import mlflow
    from mlflow.data.pandas_dataset import from_pandas

    dataset = from_pandas(frame, source=f"{store().root}/{ref.uri}", name=name, digest=ref.sha256[:32])
    mlflow.log_input(dataset, context=context)


def register(name: str, ref: Ref, run_id: str, folder: Path) -> None:
    """Log a folder of weights and register it, once per content, under the alias `newest` (`latest` is reserved)."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.tags.get("sha256") == ref.sha256), None)
    if version is None:
        place = f"models/{name}/{ref.sha256[:12]}"
        mlflow.log_artifacts(str(folder), place)
        source = f"{mlflow.get_artifact_uri()}/{place}"
        version = client.create_model_version(name, source, run_id, tags={"sha256": ref.sha256})
    client.set_registered_model_alias(name, "newest", version.version)


def curve_runs(sweep: str, curves: dict[str, list[tuple[int, dict[str, float]]]], files: list[Path]) -> None:
    """Log a sweep's comparison in place of an earlier one: a run with its files, and one per learning curve.

    They lie side by side: MLflow's charts leave out the children of a run that is folded up.
    """
    import mlflow

    open_experiment(SWEEPS)
    client = mlflow.MlflowClient()
    mine = f"tags.`{SWEEP}` = '{sweep}'"
    for earlier in mlflow.search_runs(experiment_names=[SWEEPS], filter_string=mine, output_format="list"):
        client.delete_run(earlier.info.run_id)
    with mlflow.start_run(run_name=sweep, tags={SWEEP: sweep, CURVE: "false"}):
        for file in files:
            mlflow.log_artifact(str(file), "comparison")
    for arm, points in curves.items():
        with mlflow.start_run(run_name=arm, tags={SWEEP: sweep, CURVE: "true"}):
            mlflow.log_params({"sweep": sweep, "arm": arm})
            for queries, figures in points:
                log_metrics({"queries": float(queries), **figures}, step=queries)
