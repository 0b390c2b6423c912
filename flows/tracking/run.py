"""One MLflow run per arm, called from flow bodies only, so that what a cache hit returns is logged too."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prefect.exceptions import Pause
from prefect.runtime import deployment

from flows.config.experiment import Experiment
from flows.planning.run import plan
from flows.runtime.empty_databases import lay_mlflow_database
from models.core.money import NO_CAP, Amount
from models.metrics.selective import Decision
from tasks.engine.caching import StageRun, stage_runs
from tasks.engine.locks import holding, stage_lock
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store
from tasks.labelling.annotate import Bought

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

EXPERIMENT, SWEEPS = "ninefold", "ninefold-sweeps"
SWEEP = "ninefold.sweep"  # tag: which sweep a run is of
CURVE = "ninefold.curve"  # tag: whether it is one of a sweep's learning curves
GATE = "ninefold.gate"  # tag: the gate's verdict on the evaluator
STARTED = "ninefold.started"  # tag: when an arm was started last, in seconds; MLflow keeps the first time only
SETTINGS = "experiment.json"  # of a run: the whole experiment
_GATE_FIGURES = {"agreement", "low", "high", "calibration_error", "coverage", "risk", "pairs"}


class _HasFacts(Protocol):
    @property
    def facts(self) -> dict[str, float]: ...


F = TypeVar("F", bound=_HasFacts)


@dataclass
class Arm:
    """A running arm: its parameters, its MLflow run, and the facts, money and stage runs collected so far."""

    experiment: Experiment
    run_id: str
    stages: list[StageRun]
    paid_before: bool  # whether an earlier execution of this same arm has bought labels
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    purchases: list[Bought] = field(default_factory=list)
    measurements: list[Bought] = field(default_factory=list)
    doubts: int = 0  # queries about pairs that the evaluator was not sure of
    started: float = field(default_factory=time.monotonic)

    def log(self, stage: str, product: F) -> F:
        """Log a stage's facts to MLflow, at the number of queries bought so far, and return its product."""
        self.facts[stage] = product.facts
        log_metrics({f"{stage}.{name}": value for name, value in product.facts.items()}, step=self.queries)
        return product

    def buy(self, labels: Bought) -> Bought:
        """Count a turn's purchase."""
        facts = labels.facts
        if self.stages and self.stages[-1].cached and not self.paid_before:  # another arm paid for these
            facts = facts | {"bought_queries": 0.0, "bought_micro_usd": 0.0}
        counted = labels.model_copy(update={"facts": facts})
        self.purchases.append(counted)
        return self.log("annotate", counted)

    def settle(self, labels: Bought) -> Bought:
        """Count a purchase about pairs that the evaluator was not sure of."""
        self.doubts += int(labels.facts["queries"])
        return self.buy(labels)

    def measure(self, labels: Bought) -> Bought:
        """Count the evaluation's queries, which are not the budget's."""
        self.measurements.append(labels)
        return labels

    def decide(self, decision: Decision) -> None:
        """Log what the gate has measured and decided, before anything follows from it."""
        import mlflow

        measured = decision.model_dump(include=_GATE_FIGURES)
        log_metrics({f"gate.{name}": float(value) for name, value in measured.items()}, step=self.queries)
        mlflow.set_tag(GATE, decision.verdict)
        mlflow.log_text(decision.model_dump_json(indent=1), "gate.json")

    @property
    def rounds(self) -> range:
        """Return the rounds, numbered from 1; none where nobody gives feedback."""
        return range(1, 1 if self.experiment.dpo.feedback == "none" else self.experiment.dpo.rounds + 1)

    def turns(self, round_number: int) -> range:
        """Return the acquisition turns of a round, numbered through from 0; none where the expert is not asked."""
        batches = self.experiment.labelling.batches if self.experiment.dpo.asks else 0
        return range(batches * (round_number - 1), batches * round_number)

    def quota(self, turn: int) -> int:
        """Return the queries of one acquisition turn: the budget in equal parts, the first ones larger."""
        x = self.experiment
        share, rest = divmod(x.labelling.queries - x.dpo.gate.queries, x.dpo.rounds * x.labelling.batches)
        return share + (turn < rest)

    def doubts_quota(self, round_number: int) -> int:
        """Return the queries kept until this round for what the evaluator is not sure of, less those spent on it."""
        dpo = self.experiment.dpo
        return dpo.gate.queries * round_number // dpo.rounds - self.doubts

    @property
    def queries(self) -> int:
        """Return the queries charged so far."""
        return self.total("queries")

    @property
    def left(self) -> Amount:
        """Return what is left of the budget."""
        caps = self.experiment.labelling
        return Amount(caps.max_micro_usd - self.total("micro_usd"), caps.max_tokens - self.total("tokens"))

    @property
    def evaluation_left(self) -> Amount:
        """Return what is left for the evaluation's queries."""
        return Amount(self.experiment.evaluation.max_micro_usd - self.total("micro_usd", evaluation=True), NO_CAP)

    def total(self, fact: str, *, evaluation: bool = False) -> int:
        """Return the sum of a fact over the purchases (or over the evaluation's)."""
        return int(sum(bought.facts[fact] for bought in (self.measurements if evaluation else self.purchases)))


@contextmanager
def arm_run(experiment: Experiment, sweep: str = "") -> Iterator[Arm]:
    """Check the arm's plan, open its MLflow run (the same one again when it is run again), close it with its status.

    Raises as `plan`, before anything is written.
    """
    import mlflow

    announce(plan(experiment).lines())
    open_experiment(EXPERIMENT)
    identity = experiment.digest()
    found = mlflow.search_runs(
        experiment_names=[EXPERIMENT],
        filter_string=f"tags.`ninefold.arm` = '{identity}'",
        output_format="list",
    )
    with (
        mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=experiment.name) as run,
        stage_runs() as stages,
    ):
        mlflow.set_tags(
            {
                "ninefold.arm": identity,
                SWEEP: sweep,
                "ninefold.oracle": experiment.labelling.oracle.description,
                "ninefold.simulated": str(experiment.labelling.oracle.simulated).lower(),
                STARTED: f"{time.time():.3f}",
            }
        )
        # a run of an earlier version keeps what it was called then: MLflow changes no parameter
        known = found[0].data.params if found else {}
        mlflow.log_params({name: value for name, value in flat_params(experiment).items() if name not in known})
        mlflow.log_text(experiment.model_dump_json(indent=2), SETTINGS)
        paid_before = bool(found) and "annotate.bought_queries" in found[0].data.metrics
        try:
            yield Arm(experiment, run.info.run_id, stages, paid_before)
        except Pause:
            mlflow.end_run("SCHEDULED")  # suspended: it goes on when people have answered
            raise


def announce(plan: list[str]) -> None:
    """Log a plan where a deployment runs: nobody has seen it there; whoever starts a run in a terminal has."""
    if deployment.id is not None:
        for line in plan:
            log.info("%s", line)


def open_experiment(name: str) -> str:
    """Make an experiment the current one and return its id; its artifacts lie where the settings say."""
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow_uri)
    if settings().mlflow is None:
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
                log_metrics({"area": arm["area"]} if arm["area"] is not None else {}, step=0)
                for point in arm["curve"]:
                    values = {key: found[0] for key, found in point.items() if isinstance(found, list)}
                    known = {key: value for key, value in values.items() if value is not None}
                    log_metrics(known | {"micro_usd": point["micro_usd"]}, step=point["labels"])


def flat_params(experiment: Experiment) -> dict[str, Any]:
    """Return the ten parameters that people filter by; the whole is in experiment.json."""
    return {
        "strategy": experiment.strategy,
        "budget": experiment.labelling.queries,
        "selection_seed": experiment.seeds.selection,
        "training_seed": experiment.seeds.training,
        "evaluator": experiment.evaluator.label(),
        "oracle": experiment.labelling.oracle.label(),
        "model": experiment.policy.model,
        "rounds": experiment.dpo.rounds,
        "beta": experiment.dpo.beta,
        "samples": experiment.generation.samples,
    }


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
