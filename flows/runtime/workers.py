"""Worker process: takes arms of sweeps on any machine that shares store and ledger."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import psutil

from models.core.errors import ConfigError
from models.core.subprocesses import child_environment
from models.ledger.sessions import Heartbeat, SessionLock
from tasks.engine.locks import KeyLock, holding, stage_lock
from tasks.engine.settings import settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

POOL = "ninefold-arms"
_FLOW, _DEPLOYMENT = "proxy-reward", "arm"
_FOLDER = "NINEFOLD_WORKER_FOLDER"  # of a worker: where its runs look for the files that experiments name
_ENGINE = "prefect.engine"
_PATIENCE = 100.0  # seconds that runs have to end


def check_shared() -> None:
    """Raise ConfigError naming what other machines would not see: the store, the ledger, MLflow or Prefect's server."""
    from prefect.settings import get_current_settings

    if not settings().shares_stages:
        raise ConfigError(
            f"workers need a store and a ledger that all of them see, not {settings().store_url} and "
            f"{settings().ledger_url.partition(':')[0]}: set NINEFOLD_STORE_URL=s3://… and NINEFOLD_LEDGER_URL=postgresql+psycopg://…"
        )
    if not settings().shares_mlflow:
        raise ConfigError(
            "workers need an MLflow that all of them see: set NINEFOLD_MLFLOW_URI to a server or a PostgreSQL URL"
        )
    if get_current_settings().api.url is None:
        raise ConfigError("workers need a Prefect server that all of them see: set NINEFOLD_PREFECT_URL=http://…/api")


def work(name: str, runs: int, health_port: int = 0) -> int:
    """Take arms until Ctrl-C, `runs` at a time, and return Prefect's exit status; raise ConfigError as `check_shared`.

    Where a port is given, http://127.0.0.1:PORT/health says whether the worker still polls. Relative paths in experiments
    are relative to the folder where the worker was started.
    """
    from prefect import get_client

    check_shared()
    with get_client(sync_client=True) as client:
        arms_deployment(client)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--limit", str(runs), *(["--name", name] if name else [])]
    here = {_FOLDER: str(Path.cwd()), "NINEFOLD_HOME": str(settings().home.absolute())}
    if file := os.environ.get("NINEFOLD_SETTINGS"):
        here["NINEFOLD_SETTINGS"] = str(Path(file).absolute())
    if health_port:
        command += ["--with-healthcheck"]
        here |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(health_port)}
    talking = {"PREFECT_LOGGING_LEVEL": "INFO"}
    told: list[int] = []
    for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(polite) is not signal.SIG_IGN:  # as under nohup
            signal.signal(polite, lambda number, _: told.append(number))
    # in a session of its own: Ctrl-C is for this process, which lets the runs end before the worker does
    process = subprocess.Popen(command, env=child_environment(here | talking), start_new_session=True)
    while process.poll() is None and not told:
        time.sleep(0.2)
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            _end(psutil.Process(process.pid))
    return process.wait()


def _end(worker: psutil.Process) -> None:
    """Tell a worker's runs to end, wait until they have booked what is on its way, and then end the worker.

    Told itself, Prefect's worker would kill them at once; it is held still meanwhile, so that it takes no other either.
    """
    log.warning("stopping: what is on its way is booked first")
    worker.suspend()
    try:
        runs = [child for child in worker.children(recursive=True) if _is_run(child)]
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        deadline = time.monotonic() + _PATIENCE
        while any(map(_is_run, runs)) and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        worker.resume()
        worker.send_signal(signal.SIGINT)


def _is_run(process: psutil.Process) -> bool:
    """Whether a process is a run that has not ended; its parent, held still, does not look at one that has."""
    try:
        return _ENGINE in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def arms_deployment(client: "SyncPrefectClient") -> UUID:
    """Make the pool and the deployment of which every arm is a run, or bring them up to date, and return the latter's id."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    return client.create_deployment(
        client.create_flow_from_name(_FLOW),
        _DEPLOYMENT,
        description="One arm of a sweep, for the workers of `ninefold worker`.",
        entrypoint="flows.proxy_reward.proxy_reward",
        work_pool_name=POOL,
        # resolved by the worker that takes the run
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${_FOLDER} }}}}"}}],
        parameter_openapi_schema={},
        enforce_parameter_schema=False,  # the worker checks: a plugin may be newer than the deployment
        tags=["ninefold"],
    )


def heartbeat_lock(run: object) -> KeyLock:
    """Return the lock that a flow run of a deployment holds while its process lives."""
    return stage_lock(f"flow run {run}")


@contextmanager
def heartbeat() -> Iterator[None]:
    """Let whoever has handed this flow run out know that its process lives, while the block runs."""
    from prefect.runtime import deployment, flow_run

    if deployment.id is None:
        yield
        return
    lock = heartbeat_lock(flow_run.id)
    if not isinstance(lock, SessionLock):  # a file's lock cannot be lost
        with holding(lock):
            yield
        return
    kept = Heartbeat(lock)
    kept.start()
    try:
        yield
    finally:
        kept.stop()
