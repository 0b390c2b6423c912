"""Prefect flow of a sweep: its arms share one cache and one ledger; a failed arm leaves the others whole."""

import json
import logging
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import pandas as pd
from prefect import flow
from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from flows.config.experiment import Experiment
from flows.config.loading import OrFile
from flows.config.sweep import Sweep, SweepArm
from flows.planning.purses import sweep_purse
from flows.proxy_reward import proxy_reward
from flows.reporting.comparison import compare
from flows.reporting.publish import CURVES, publish
from flows.reporting.schema import RunReport
from flows.reporting.storage import read_report, write_text, writing
from flows.reporting.sweep_text import notes, page, rows_of
from flows.runtime.dispatch import on_workers
from flows.runtime.workers import check_shared
from flows.sweep_plan import plan_sweep
from flows.tracking.links import curves_page
from flows.tracking.run import announce
from models.core import progress
from models.core.errors import NinefoldError
from models.core.money import dollars
from tasks.engine.caching import untold
from tasks.engine.ledgers import open_ledger

log = logging.getLogger(__name__)


Ended = RunReport | str  # an arm's report, or why there is none


class Incomplete(NinefoldError):
    """A sweep of which arms failed: the message names them, and `report` has the others'."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(notes(report)[0])
        self.report = report


@flow(name="sweep", flow_run_name="{sweep.name}")
def run_sweep(sweep: Annotated[Sweep, OrFile()], workers: bool = False) -> dict[str, Any]:
    """Run every arm, compare them, and return the sweep's report (also written to the reports folder).

    The sweep may be given as a file. Arms run here, one after another, or on the machines of `ninefold worker`. The
    sweep's table and learning curves are shown on the flow run's page. Raises Incomplete, when all of that is done, if an
    arm fails; the next execution of the same sweep runs what is missing.
    """
    if workers:
        check_shared()
    started, planned = time.monotonic(), plan_sweep(sweep)
    announce(planned.lines())
    reports: dict[str, RunReport] = {}
    failures: dict[str, str] = {}
    arms = planned.expanded.arms
    earlier = {arm.experiment.name: found for arm in arms if (found := _report_of(arm.experiment)) is not None}

    def told() -> dict[str, Any]:
        known = {"merged": planned.expanded.merged, "seconds": time.monotonic() - started}
        done = {name: found for name, found in (earlier | reports).items() if name not in failures}
        return _report(sweep, arms, done, failures) | known | {"executed": executed(reports.values())}

    experiments = [arm.experiment for arm in arms]
    for number, (experiment, ended) in enumerate((_on_workers if workers else _here)(experiments, sweep), start=1):
        name = experiment.name
        if isinstance(ended, str):
            failures[name] = ended
            log.warning("arm %s failed: %s", name, ended)
        else:
            reports[name] = ended
            log.info("✔ arm %d of %d is done: %s, %s", number, len(arms), name, _took(ended))
        report = told()
        _write(report)
    try:
        _show(report)
    except Exception as error:
        if failures:
            raise Incomplete(report) from error
        raise
    if failures:
        raise Incomplete(report)
    return report


def _here(experiments: Sequence[Experiment], sweep: Sweep) -> Iterator[tuple[Experiment, Ended]]:
    purse = sweep_purse(sweep)
    for number, experiment in enumerate(experiments, start=1):
        ended: Ended
        with progress.heading(f"arm {number} of {len(experiments)}: {experiment.name}"), untold():
            try:
                ended = proxy_reward(experiment, sweep=sweep.name, purse=purse)
            except Exception as error:  # the other arms are worth having
                ended = f"{type(error).__name__}: {error}"
        yield experiment, ended


def _took(report: RunReport) -> str:
    """Return the seconds that an arm's run spent in stages that it executed itself, and how many it did not."""
    executed = [stage.seconds for stage in report.stages if not stage.cached]
    stages = len(report.stages)
    return f"{sum(executed):.1f} s, {stages - len(executed)} of {stages} stages from cache"


def _on_workers(experiments: Sequence[Experiment], sweep: Sweep) -> Iterator[tuple[Experiment, Ended]]:
    for experiment, failure in on_workers(experiments, sweep.name, sweep_purse(sweep)):
        elsewhere = "it has finished, but not with the files that it names here: give all machines the same"
        yield experiment, failure or _report_of(experiment) or elsewhere


def _report_of(experiment: Experiment) -> RunReport | None:
    """Return the report of an arm that an earlier execution has finished, if it is this very experiment's."""
    found = read_report(experiment.name)
    same = found is not None and (found.arm, found.inputs) == (
        experiment.digest(),
        experiment.prompts.digest_inputs(),
    )
    return found if same else None


def executed(reports: Iterable[RunReport]) -> dict[str, int]:
    """Return how many times each stage was executed rather than read from the cache."""
    return dict(Counter(stage.name for report in reports for stage in report.stages if not stage.cached))


def _report(
    sweep: Sweep, arms: tuple[SweepArm, ...], reports: dict[str, RunReport], failures: dict[str, str]
) -> dict[str, Any]:
    ledger = open_ledger()
    accounts = {account for report in reports.values() for account in report.accounts}
    return {
        "name": sweep.name,
        "oracle_simulated": any(arm.experiment.simulated for arm in arms),
        "arms": [
            {
                "name": arm.experiment.name,
                "arm": arm.arm,
                "seed": arm.seed,
                "training_seed": arm.training_seed,
                "point": arm.point,
                "failure": failures.get(arm.experiment.name),
                "report": done.model_dump(mode="json") if (done := reports.get(arm.experiment.name)) else None,
            }
            for arm in arms
        ],
        "micro_usd": sum(report.micro_usd + report.evaluation_micro_usd for report in reports.values()),
        "micro_usd_paid": sum(ledger.spent(account).bought_micro_usd for account in accounts),
    }


def _write(report: dict[str, Any]) -> None:
    with writing(report["name"]) as folder:
        write_text(folder / "sweep.json", json.dumps(report, indent=2, allow_nan=False))
        page(report).write(folder, "sweep")
        pd.DataFrame(rows_of(report)).to_csv(folder / "sweep.csv", index=False)


def _show(report: dict[str, Any]) -> None:
    """Put the table, and the learning curves if an arm has finished, on the flow run's page."""
    key = f"sweep-{report['name']}".replace(".", "-").replace("_", "-")
    create_table_artifact(
        table=[{name: str(value) for name, value in row.items()} for row in rows_of(report)],
        key=key,
        description=f"{report['name']}: {dollars(report['micro_usd'])} if each arm ran alone, "
        f"{dollars(report['micro_usd_paid'])} paid",
    )
    if any(arm["report"] for arm in report["arms"]):
        picture = b64encode((publish(compare(report["name"])) / CURVES).read_bytes()).decode()
        create_image_artifact(
            image_url=f"data:image/png;base64,{picture}",
            key=f"{key}-curves",
            description=f"{report['name']}: learning curves, with 95 % intervals",
        )
        create_link_artifact(link=curves_page(report["name"]), link_text="the curves in MLflow", key=f"{key}-mlflow")
