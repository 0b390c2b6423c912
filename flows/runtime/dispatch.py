"""Dispatch the arms of a sweep to workers, watch them, and dispatch an arm again if its worker dies."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID, uuid4

from filelock import Timeout
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Crashed
from sqlalchemy.exc import OperationalError

from flows.config.experiment import Experiment
from flows.runtime.workers import POOL, arms_deployment, heartbeat_lock
from models.ledger.purses import Purse
from tasks.engine.locks import holding, stage_lock

log = logging.getLogger(__name__)

_POLL = 2.0  # seconds
_GRACE = 20.0  # seconds that a run may be called running while its process does not hold its lock
_CLAIM_TIMEOUT = 300.0  # seconds that a worker may take to start what it has taken
_IDLE_WARNING_SECONDS = 60.0  # seconds between reminders that nobody works
_ATTEMPTS = 3
_ACTIVE_STATES = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED")
_STOPPED = "the sweep was stopped"


class ArmOutcome(NamedTuple):
    """What became of an arm: "" if it finished, else why not."""

    experiment: Experiment
    failure: str


@dataclass
class _Dispatched:
    """An arm that some worker has, or will have."""

    experiment: Experiment
    run: FlowRun
    mine: bool  # handed out here, and not joined
    attempts: int = 1
    suspect_since: float | None = None  # since when its process has not been seen to live
    told: str = ""


def on_workers(experiments: Sequence[Experiment], sweep: str, purse: Purse) -> Iterator[ArmOutcome]:
    """Yield what became of each arm, as they end; runs of the same arm that are under way are joined.

    All pay from the sweep's `purse`. An arm whose process died is handed out again, at most twice. On Ctrl-C arms that
    nobody has taken are taken back; those that run go on, and the same sweep joins them.
    """
    with get_client(sync_client=True) as client:
        deployment = arms_deployment(client)
        handed: list[_Dispatched] = []
        try:
            for experiment in experiments:
                handed.append(_Dispatched(experiment, *_join_or_submit(client, deployment, experiment, (sweep, purse))))
            log.info("%d arms for the workers of pool %s", len(handed), POOL)
            yield from _poll(client, deployment, handed, (sweep, purse))
        except (KeyboardInterrupt, GeneratorExit):
            for arm in handed:
                if arm.mine and _state(client.read_flow_run(arm.run.id)) == "SCHEDULED":
                    client.set_flow_run_state(arm.run.id, Cancelled(message=_STOPPED))
            raise


def _poll(
    client: SyncPrefectClient, deployment: UUID, handed: list[_Dispatched], sweep: tuple[str, Purse]
) -> Iterator[ArmOutcome]:
    left, reminded = list(handed), time.monotonic()
    while left:
        runs = {run.id: run for run in _read(client, {"id": {"any_": [arm.run.id for arm in left]}})}
        for arm in list(left):
            arm.run = runs.get(arm.run.id, arm.run)
            died = _died(arm)
            if died:
                end = Cancelled if _state(arm.run) == "CANCELLING" else Crashed
                client.set_flow_run_state(arm.run.id, end(message=died))  # refused if it has ended meanwhile
                continue  # what it says now is seen in the next round
            if _state(arm.run) == "CRASHED" or _message(arm.run) == _STOPPED:  # by another who had joined it
                died = _message(arm.run)
            if (outcome := _outcome(arm, died)) is not None:
                left.remove(arm)
                yield outcome
            elif died:
                log.warning("%s: %s; it is handed out again", arm.experiment.name, died)
                arm.run, arm.mine = _join_or_submit(client, deployment, arm.experiment, sweep)
                arm.attempts, arm.suspect_since = arm.attempts + 1, None
            _log_state(arm)
        states = {_state(arm.run) for arm in left}
        if (
            time.monotonic() - reminded > _IDLE_WARNING_SECONDS
            and "SCHEDULED" in states
            and not states & {"PENDING", "RUNNING"}
        ):
            reminded = time.monotonic()
            log.warning(
                "nobody works on the %d arms left: `ninefold worker` on any machine that shares them", len(left)
            )
        if left:
            time.sleep(_POLL)


def _outcome(arm: _Dispatched, died: str) -> ArmOutcome | None:
    """Return what became of an arm; None while it is under way, or is to be handed out again."""
    state, config = _state(arm.run), arm.experiment
    if state == "COMPLETED":
        return ArmOutcome(config, "")
    if state in ("FAILED", "CANCELLED") and not died:
        return ArmOutcome(config, f"{state.lower()} on a worker: {_message(arm.run)}")
    if died and arm.attempts == _ATTEMPTS:
        return ArmOutcome(config, f"handed out {_ATTEMPTS} times, and at last: {died}")
    return None


def _died(arm: _Dispatched) -> str:
    """Return how an arm's process is known to have died without a word; "" if it is not."""
    state, now = _state(arm.run), time.monotonic()
    # Kubernetes says that it still looks for a place, or fetches the image
    claimed = state == "PENDING" and arm.run.state is not None and arm.run.state.name != "InfrastructurePending"
    gone = claimed or (state in ("RUNNING", "CANCELLING") and not _lives(arm.run.id))
    if not gone:
        arm.suspect_since = None
        return ""
    if arm.suspect_since is None:
        arm.suspect_since = now
    patience = _CLAIM_TIMEOUT if state == "PENDING" else _GRACE
    if now - arm.suspect_since < patience:
        return ""
    return "the worker that took it has not started it" if state == "PENDING" else "the process that ran it has died"


def _lives(run: UUID) -> bool:
    life = heartbeat_lock(run)
    try:
        life.acquire(timeout=0)
    except (Timeout, OperationalError):  # a database that is not there says nothing of a run
        return True
    life.release()
    return False


def _log_state(arm: _Dispatched) -> None:
    state = _state(arm.run)
    if state != arm.told and state in ("RUNNING", "PAUSED"):
        log.info("%s: %s", arm.experiment.name, "a worker runs it" if state == "RUNNING" else "waits for people")
    arm.told = state


def _state(run: FlowRun) -> str:
    return "SCHEDULED" if run.state is None else str(run.state.type.value)


def _message(run: FlowRun) -> str:
    return (run.state.message if run.state is not None else None) or "see the run in the Prefect pages"


def _tag(experiment: Experiment) -> str:
    return f"arm:{experiment.digest()}"


def _join_or_submit(
    client: SyncPrefectClient, deployment: UUID, experiment: Experiment, sweep: tuple[str, Purse]
) -> tuple[FlowRun, bool]:
    """Return the run of an arm that is under way, or a new one, and whether it is new: two dispatchers make one."""
    with holding(stage_lock(_tag(experiment))):
        going = {"any_": list(_ACTIVE_STATES)}
        found = _read(
            client,
            {
                "deployment_id": {"any_": [deployment]},
                "state": {"type": going},
                "tags": {"all_": [_tag(experiment)]},
            },
        )
        return (found[0], False) if found else (_resolve(deployment, experiment, sweep), True)


def _resolve(deployment: UUID, experiment: Experiment, sweep: tuple[str, Purse]) -> FlowRun:
    name, purse = sweep
    run: FlowRun = run_deployment(  # type: ignore[assignment]  # a coroutine where the caller is one
        deployment,
        parameters={
            "experiment": experiment.model_dump(mode="json"),
            "sweep": name,
            "purse": purse.model_dump(mode="json"),
        },
        flow_run_name=experiment.name,
        tags=["ninefold", _tag(experiment)],
        timeout=0,
        as_subflow=False,  # Prefect suspends no subflow, and arms may wait for people
        idempotency_key=str(uuid4()),  # its client may ask twice
    )
    return run


def _read(client: SyncPrefectClient, wanted: dict[str, object]) -> list[FlowRun]:
    """Return all runs that a filter lets through; Prefect gives 200 at a time."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=200, offset=len(found))
        found += page
        if len(page) < 200:
            return found
