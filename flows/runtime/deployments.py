"""Register the work pool and the deployments of deployments/prefect.yaml with Prefect's server."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.variables import Variable

from flows.config.experiment import Experiment
from flows.config.sweep import Sweep
from models.core.errors import ConfigError
from models.core.registry import digest_of
from models.core.subprocesses import child_environment

_DEPLOYED = "ninefold_deployments"  # Prefect's variable with the digest of the deployments registered


def make_pool(name: str) -> None:
    """Make the work pool if there is none; runs of it that a stopped worker has left are called what they are, crashed.

    They would take up the pool's places otherwise; as crashed they can be retried.
    """
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            # one run at a time: two torch jobs on one machine are slower than one after the other
            client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
        going = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
        pool = WorkPoolFilter.model_validate({"name": {"any_": [name]}})
        left = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": going}), work_pool_filter=pool
        )
        if left:
            children = FlowRunFilter.model_validate(
                {"state": going, "parent_flow_run_id": {"any_": [run.id for run in left]}}
            )
            left += client.read_flow_runs(flow_run_filter=children)
        for run in left:
            client.set_flow_run_state(
                run.id, Crashed(message="the worker was stopped: retry goes on from here"), force=True
            )


def deploy(file: Path) -> str:
    """Register a file's deployments if they have changed, and return what was done; raise ConfigError if Prefect refuses.

    What has not changed stays as it is, so that a schedule switched on or off in Prefect's pages stays so.
    """
    if not file.is_file():
        return f"deployments  none: there is no {file} here"
    # Prefect checks parameters against the schema that it was given: a new plugin is a new one
    schemas = [Experiment.model_json_schema(), Sweep.model_json_schema()]
    digest = digest_of([file.read_text(encoding="utf-8"), str(Path.cwd()), schemas])
    if Variable.get(_DEPLOYED) == digest:
        return f"deployments  those of {file}, as they were"
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ConfigError(f"Prefect refuses {file}: {(done.stderr or done.stdout).strip()[-2000:]}")
    Variable.set(_DEPLOYED, digest, overwrite=True)
    return f"deployments  those of {file}"
