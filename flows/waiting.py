"""A run that waits for people: paused while its process stays, suspended where a worker can start it again."""

import logging
from collections.abc import Callable
from uuid import uuid4

from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.context import FlowRunContext
from prefect.flow_runs import pause_flow_run, resume_flow_run, suspend_flow_run

log = logging.getLogger(__name__)

_PATIENCE = 90 * 24 * 3600  # seconds
_POLL = 3  # seconds


def wait_for_people(ask: Callable[[], int]) -> None:
    """Call `ask` until it returns no open questions; in between the flow run is paused until `labels import` resumes it."""
    while questions := ask():
        log.warning(
            "%d questions wait for people: `ninefold labels export queue.csv --queue`, then `ninefold labels import "
            "queue.csv` in another terminal. This run goes on by itself; if it is stopped, the same command goes on",
            questions,
        )
        context = FlowRunContext.get()
        deployed = context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
        key = str(uuid4())  # Prefect lets a key pause a run only once
        if deployed:
            suspend_flow_run(timeout=_PATIENCE, key=key)
        else:
            pause_flow_run(timeout=_PATIENCE, poll_interval=_POLL, key=key)


def resume_waiting(flow: str = "proxy-reward") -> list[str]:
    """Let every waiting run of a flow go on, and return their names; those whose answers are still missing wait again."""
    waiting = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}}), flow_run_filter=waiting
        )
    for run in runs:
        resume_flow_run(run.id)
    return [run.name for run in runs]
