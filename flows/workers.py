"""Workers: on any machine that shares store and ledger, a process that takes arms of sweeps and runs them one by one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from tasks.locks import KeyLock, holding, stage_lock
from tasks.settings import settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "ninefold-arms"
_FLOW, _DEPLOYMENT = "proxy-reward", "arm"
_FOLDER = "NINEFOLD_WORKER_FOLDER"  # of a worker: where its runs look for the files that experiments name


def check_shared() -> None:
    """Raise ValueError naming what other machines would not see: the store, the ledger, MLflow or Prefect's server."""
    from prefect.settings import get_current_settings

    if not settings().shares_stages:
        raise ValueError(
            f"workers need a store and a ledger that all of them see, not {settings().store_url} and "
            f"{settings().ledger_url.partition(':')[0]}: set NINEFOLD_STORE=s3://… and NINEFOLD_LEDGER=postgresql+psycopg://…"
        )
    if not settings().shares_mlflow:
        raise ValueError(
            "workers need an MLflow that all of them see: set NINEFOLD_MLFLOW to a server or a PostgreSQL URL"
        )
    if get_current_settings().api.url is None:
        raise ValueError("workers need a Prefect server that all of them see: set PREFECT_API_URL=http://…/api")


def work(name: str, runs: int, health_port: int = 0) -> int:
    """Take arms until Ctrl-C, `runs` at a time, and return Prefect's exit status; raise ValueError as `check_shared`.

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
    process = subprocess.Popen(command, env=os.environ | here | talking)
    while True:
        with suppress(KeyboardInterrupt):  # Prefect's worker has been told too, and ends its run in good order
            return process.wait()


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


def life_of(run: object) -> KeyLock:
    """Return the lock that a flow run of a deployment holds while its process lives."""
    return stage_lock(f"flow run {run}")


@contextmanager
def living() -> Iterator[None]:
    """Let whoever has handed this flow run out know that its process lives, while the block runs."""
    from prefect.runtime import deployment, flow_run

    with holding(life_of(flow_run.id)) if deployment.id is not None else nullcontext():
        yield
