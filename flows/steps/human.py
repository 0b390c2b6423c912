"""Pause or suspend a run until human annotators have answered."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from uuid import UUID, uuid4

from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout, NotPausedError, Pause
from prefect.flow_runs import pause_flow_run, resume_flow_run, suspend_flow_run

log = logging.getLogger(__name__)

_PATIENCE = 90 * 24 * 3600  # seconds
_POLL = 3  # seconds
_LOOK = 20.0  # seconds


def wait_for_people(ask: Callable[[], int]) -> None:
    """Call `ask` until it returns no open questions; in between the flow run is paused, or suspended in a deployment.

    A paused run looks for itself whether the last answer has come; a suspended one is resumed by `labels import`.
    """
    while questions := ask():
        log.warning(
            "%d questions wait for people: `ninefold labels export queue.csv --queue`, then `ninefold labels import "
            "queue.csv` in another terminal. This run goes on by itself; if it is stopped, the same command goes on",
            questions,
        )
        context = FlowRunContext.get()
        run = context.flow_run if context is not None else None
        key = str(uuid4())  # Prefect lets a key pause a run only once
        if run is not None and run.deployment_id is not None:
            try:
                suspend_flow_run(timeout=_PATIENCE, key=key)
            except Pause:
                if not ask():  # the answers came between the question and the suspension
                    _resume(run.id)
                raise
        elif run is not None:
            with _watching(run.id, ask):
                pause_flow_run(timeout=_PATIENCE, poll_interval=_POLL, key=key)


@contextmanager
def _watching(run: UUID, ask: Callable[[], int]) -> Iterator[None]:
    """Resume a paused run when nothing is open any more, whoever has recorded the answers, and wherever."""
    over = Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            if not ask():
                _resume(run)

    watcher = Thread(target=watch, name="waiting-for-people", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def resume_waiting(flow: str = "proxy-reward") -> list[str]:
    """Let every waiting run of a flow go on, and return their names; those whose answers are still missing wait again."""
    waiting = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}}), flow_run_filter=waiting
        )
    return [run.name for run in runs if _resume(run.id)]


def _resume(run: UUID) -> bool:
    """Resume a run; false if it does not wait, or can no longer be resumed."""
    try:
        resume_flow_run(run)
    except (NotPausedError, FlowPauseTimeout, RuntimeError) as error:
        log.info("run %s is not resumed: %s", run, error)
        return False
    return True
