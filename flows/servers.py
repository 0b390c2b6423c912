"""The embedded set-up's servers: Prefect with the project's deployments and a worker, and MLflow, all on 127.0.0.1."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tasks.settings import settings

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
POOL = "ninefold"  # the work pool of deployments/prefect.yaml
_STARTING = 180.0  # seconds
_STOPPING = 60.0
_NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for scorers and optimisers not used here


class Servers(NamedTuple):
    """What is up: the process that keeps the servers, since when (a process id may be used again), and the ports."""

    pid: int
    created: float
    mlflow_port: int
    prefect_port: int

    @property
    def api(self) -> str:
        """Return the URL of Prefect's API."""
        return f"http://{HOST}:{self.prefect_port}/api"

    def lines(self) -> list[str]:
        """Return where to look, as lines of text: a link on a line of its own is never wrapped."""
        from flows.mlflow_pages import runs_page

        return [f"MLflow runs  {runs_page(port=self.mlflow_port)}", f"Prefect      http://{HOST}:{self.prefect_port}"]


def servers() -> Servers | None:
    """Return this home's servers if they are up."""
    try:
        found = Servers(**json.loads(_file().read_text(encoding="utf-8")))
        return found if psutil.Process(found.pid).create_time() == found.created else None
    except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
        return None


def serve(*, mlflow_port: int, prefect_port: int, deployments: Path) -> Iterator[str]:
    """Start everything, yield what is up as lines of text, and keep it up until Ctrl-C, a polite kill or `stop`.

    Raises ValueError if a port is taken or the deployments are wrong, ChildProcessError if a server ends by itself.
    """
    for port in (mlflow_port, prefect_port):
        if port_taken(port):
            raise ValueError(f"port {port} on {HOST} is taken: choose another with --mlflow-port or --prefect-port")
    me = psutil.Process()
    mine = Servers(me.pid, me.create_time(), mlflow_port, prefect_port)
    told = mine.lines()  # also makes MLflow's schema, which two first users must not do at once
    # Ctrl-C is for this process, which then ends the others in good order; a polite kill is the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # deployments/prefect.yaml asks for PWD, which is of the shell and not of a process
    os.environ |= {"PREFECT_UI_API_URL": mine.api, "PREFECT_API_URL": mine.api, "PWD": str(Path.cwd())}
    mlflow = ["mlflow", "server", "--host", HOST, "--port", str(mlflow_port)]
    prefect = ["prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]
    try:
        with (
            _child(*mlflow, "--backend-store-uri", settings().mlflow_uri, "--workers", "1", **_NO_JOBS) as one,
            _child(*prefect) as two,
        ):
            for child, health in ((two, f"{mine.api}/health"), (one, f"http://{HOST}:{mlflow_port}/health")):
                _wait(child, health)
            yield from told
            _make_pool()
            yield deploy(deployments)
            # the worker's runs say on their pages what they do
            talking = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_ROOT_LEVEL": "INFO"}
            with _child("prefect", "worker", "start", "--pool", POOL, "--type", "process", **talking) as three:
                _file().write_text(json.dumps(mine._asdict()), encoding="utf-8")
                yield "Ctrl-C stops them; so does `ninefold down` in another terminal"
                while all(child.poll() is None for child in (one, two, three)):
                    time.sleep(0.5)
                raise ChildProcessError("a server has stopped by itself, see above: `ninefold doctor` may know why")
    except KeyboardInterrupt:
        yield "stopping"
    finally:
        _file().unlink(missing_ok=True)


def _make_pool() -> None:
    """Make the work pool if there is none; runs of it that a stopped worker has left are called what they are, crashed.

    They would take up the pool's places otherwise; as crashed they can be retried.
    """
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            # one run at a time: two torch jobs on one machine are slower than one after the other
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1))
        going = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
        pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
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
    """Register a file's deployments, and return what was done; raise ValueError if Prefect refuses."""
    if not file.is_file():
        return f"deployments  none: there is no {file} here"
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"Prefect refuses {file}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return f"deployments  those of {file}, in work pool {POOL}"


def start(*, mlflow_port: int, prefect_port: int, deployments: Path) -> Servers:
    """Start everything in the background and return it when it is up; raise ChildProcessError with what it said if not."""
    log = settings().home / "servers.log"
    command = ["flows.cli", "up", "--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--deployments", str(deployments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while (found := servers()) is None:
        if process.poll() is not None:
            raise ChildProcessError(f"the servers did not start, see {log}: {log.read_text().strip()[-2000:]}")
        time.sleep(0.3)
    return found


def stop() -> bool:
    """Stop this home's servers, their worker and what it runs; whether there were any."""
    if (found := servers()) is None:
        return False
    process = psutil.Process(found.pid)
    process.terminate()
    process.wait(_STOPPING)
    return True


def port_taken(port: int) -> bool:
    """Whether something listens on the port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((HOST, port)) == 0


def _file() -> Path:
    return settings().home / "servers.json"


@contextmanager
def _child(*module: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a module in a process that ends, with all of its own children, when the block does."""
    process = subprocess.Popen([sys.executable, "-m", *module], env=os.environ | environment, start_new_session=True)
    try:
        yield process
    finally:
        family = _children(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOPPING / 2)
        process.kill()
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait(child: "subprocess.Popen[bytes]", url: str) -> None:
    """Return when a server answers; raise ChildProcessError if it ends, TimeoutError if it takes too long."""
    import httpx

    deadline = time.monotonic() + _STARTING
    while not _answers(httpx.Client(timeout=5), url):
        if child.poll() is not None:
            raise ChildProcessError(f"the server for {url} has ended, see above: `ninefold doctor` may know why")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} did not answer within {_STARTING:.0f} s")
        time.sleep(0.2)


def _answers(client: "httpx.Client", url: str) -> bool:
    import httpx

    with client:
        try:
            return client.get(url).is_success
        except httpx.TransportError:
            return False
