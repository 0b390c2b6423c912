"""Tracker of a run: iterations, quotas, purchases and facts, in one MLflow run."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from prefect.exceptions import Pause
from prefect.runtime import deployment

from flows.config.experiment import Experiment
from flows.planning.purses import run_purse
from flows.planning.run import plan
from flows.tracking.mlflow import EXPERIMENT, SWEEP, log_metrics, open_experiment
from models.core.money import NO_CAP, Amount
from models.ledger.purses import Purse
from models.ledger.reopening import times_reopened
from models.metrics.selective import Decision
from tasks.engine.caching import StageRun, stage_runs
from tasks.engine.ledgers import open_ledger
from tasks.labelling.annotate import AnnotationResult

log = logging.getLogger(__name__)

GATE = "ninefold.gate"  # tag: the gate's verdict on the evaluator
STARTED = "ninefold.started"  # tag: when an arm was started last, in seconds; MLflow keeps the first time only
ACCOUNTS = "ninefold.accounts"  # tag: the ledger's accounts that a run buys on, oldest first
_MOST_ACCOUNTS = 400  # a tag of MLflow has 8,000 characters
PURSE = "ninefold.purse"  # tag: what the arm's sweep pays from, as JSON
SETTINGS = "experiment.json"  # of a run: the whole experiment
_GATE_FIGURES = {"agreement", "low", "high", "calibration_error", "coverage", "risk", "pairs"}


class _HasFacts(Protocol):
    @property
    def facts(self) -> dict[str, float]: ...


F = TypeVar("F", bound=_HasFacts)


@dataclass
class RunTracker:
    """A running arm: its parameters, its MLflow run, and the facts, money and stage runs collected so far."""

    experiment: Experiment
    run_id: str
    stages: list[StageRun]
    paid_before: bool  # whether an earlier execution of this same arm has bought labels
    purses: tuple[Purse, ...] = ()  # that pay for what the arm buys, beside its accounts
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    purchases: list[AnnotationResult] = field(default_factory=list)
    measurements: list[AnnotationResult] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)  # of the ledger, that this run buys on or has bought on
    relabelled: int = 0  # queries about pairs that the evaluator was not sure of
    started: float = field(default_factory=time.monotonic)

    def log(self, stage: str, product: F) -> F:
        """Log a stage's facts to MLflow, at the number of queries bought so far, and return its product."""
        self.facts[stage] = product.facts
        log_metrics({f"{stage}.{name}": value for name, value in product.facts.items()}, step=self.queries)
        return product

    def buy(self, labels: AnnotationResult) -> AnnotationResult:
        """Count a round's purchase."""
        facts = labels.facts
        if self.stages and self.stages[-1].cached and not self.paid_before:  # another arm paid for these
            facts = facts | {"bought_queries": 0.0, "bought_micro_usd": 0.0}
        counted = labels.model_copy(update={"facts": facts})
        self.purchases.append(counted)
        return self.log("annotate", counted)

    def open_account(self, account: str) -> int:
        """Note on the run that it buys on this account; return how many of its questions were asked again by request."""
        import mlflow

        if account not in self.accounts:
            self.accounts.append(account)
            mlflow.set_tag(ACCOUNTS, " ".join(self.accounts[-_MOST_ACCOUNTS:]))
        return times_reopened(open_ledger(), account)

    def record_relabelling(self, labels: AnnotationResult) -> AnnotationResult:
        """Count a purchase about pairs that the evaluator was not sure of."""
        self.relabelled += int(labels.facts["queries"])
        return self.buy(labels)

    def measure(self, labels: AnnotationResult) -> AnnotationResult:
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
    def iterations(self) -> range:
        """Return the iterations, numbered from 1; none where nobody gives feedback."""
        return range(1, 1 if self.experiment.feedback == "none" else self.experiment.iterations + 1)

    def rounds(self, iteration: int) -> range:
        """Return the acquisition rounds of an iteration, numbered through from 0; none where the oracle is not asked."""
        rounds = self.experiment.labelling.rounds if self.experiment.queries_oracle else 0
        return range(rounds * (iteration - 1), rounds * iteration)

    def quota(self, round_number: int) -> int:
        """Return the queries of one acquisition round: the budget in equal parts, the first ones larger."""
        config = self.experiment
        share, rest = divmod(
            config.labelling.queries - config.gate.relabel_queries, config.iterations * config.labelling.rounds
        )
        return share + int(round_number < rest)

    def relabel_quota(self, iteration: int) -> int:
        """Return the queries kept until this iteration for uncertain pairs, less those spent on them."""
        config = self.experiment
        return config.gate.relabel_queries * iteration // config.iterations - self.relabelled

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
def arm_run(experiment: Experiment, sweep: str = "", purse: Purse | None = None) -> Iterator[RunTracker]:
    """Check the arm's plan, open its MLflow run (the same one again when it is run again), close it with its status.

    What it buys is charged to a purse of its own, and to that of its sweep. Raises as `plan`, before anything is written.
    """
    import mlflow

    announce(plan(experiment, in_sweep=purse is not None).lines())
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
                PURSE: "" if purse is None else purse.model_dump_json(),
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
            purses = (run_purse(experiment), *([purse] if purse is not None else []))
            accounts = found[0].data.tags.get(ACCOUNTS, "").split() if found else []
            yield RunTracker(experiment, run.info.run_id, stages, paid_before, purses, accounts=accounts)
        except Pause:
            mlflow.end_run("SCHEDULED")  # suspended: it goes on when people have answered
            raise


def announce(plan: list[str]) -> None:
    """Log a plan where a deployment runs: nobody has seen it there; whoever starts a run in a terminal has."""
    if deployment.id is not None:
        for line in plan:
            log.info("%s", line)


def flat_params(experiment: Experiment) -> dict[str, Any]:
    """Return the ten parameters that people filter by; the whole is in experiment.json."""
    return {
        "strategy": experiment.strategy,
        "budget": experiment.labelling.queries,
        "selection_seed": experiment.seeds.selection,
        "training_seed": experiment.seeds.training,
        "evaluator": experiment.evaluator.kind_name(),
        "oracle": experiment.labelling.oracle.kind_name(),
        "model": experiment.policy.model,
        "iterations": experiment.iterations,
        "beta": experiment.dpo.beta,
        "samples": experiment.generation.samples,
    }
