"""The embedded servers (Prefect, MLflow, a worker) as seen by a command: start, stop, status."""

import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from flows.runtime.prefect_server import HOST, of_commands
from models.core.processes import ProcessId, alive_process, terminate
from models.core.subprocesses import child_environment
from tasks.engine.settings import settings

if TYPE_CHECKING:
    from filelock import FileLock

POOL = "ninefold"  # the work pool of deployments/prefect.yaml
STOPPING = 40.0  # seconds


class Ports(NamedTuple):
    """Where on 127.0.0.1 the two servers listen."""

    mlflow: int
    prefect: int


class Servers(NamedTuple):
    """What is up: the process that keeps the servers, all that it has started, each with its start, and the ports."""

    keeper: ProcessId
    mlflow_port: int
    prefect_port: int
    children: tuple[ProcessId, ...] = ()
    runs_page: str = ""  # the link to MLflow's table of runs
    deployed: str = ""
    password: str = ""  # of Prefect's server and pages
    ready: bool = False  # not while it starts or stops

    @property
    def api(self) -> str:
        """Return the URL of Prefect's API."""
        return f"http://{HOST}:{self.prefect_port}/api"

    def lines(self) -> list[str]:
        """Return where to look, as lines of text: a link on a line of its own is never wrapped."""
        links = [
            f"MLflow runs  {self.runs_page}",
            f"Prefect      http://{HOST}:{self.prefect_port}",
            f"  password   {self.password}",
        ]
        return [*links, self.deployed] if self.deployed else links


def servers() -> Servers | None:
    """Return this home's servers if they are up, all of them."""
    found = _recorded()
    return found if found is not None and found.ready and alive_process(found.keeper) else None


def start(ports: Ports, deployments: Path) -> Servers:
    """Start everything in the background and return it when it is up; raise ChildProcessError with what it said if not."""
    settings().home.mkdir(parents=True, exist_ok=True)
    log = settings().home / "servers.log"
    command = ["ninefold", "up", "--mlflow-port", str(ports.mlflow), "--prefect-port", str(ports.prefect)]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--deployments", str(deployments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=child_environment({"PYTHONUNBUFFERED": "1"}),
            start_new_session=True,
        )
    try:
        while (found := servers()) is None:
            if process.poll() is not None:
                raise ChildProcessError(f"the servers did not start, see {log}: {log.read_text().strip()[-2000:]}")
            time.sleep(0.3)
    except KeyboardInterrupt:
        process.terminate()
        raise
    return found


def stop() -> bool:
    """Stop this home's servers, their worker and what it runs; whether there were any.

    If the process that keeps them was killed, what it has left is ended; so are servers of commands that are no more.
    Raises ChildProcessError if they do not end.
    """
    from filelock import Timeout

    left = [server for server in of_commands(settings().prefect_home) if not server.used]
    for server in left:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(server.pid).kill()
    found = _recorded()
    if found is None:
        return bool(left)
    keeper, deadline = alive_process(found.keeper), time.monotonic() + 2 * STOPPING
    if keeper is None:
        try:
            with keeper_lock():
                return clear_left()
        except Timeout as error:  # a clock set anew makes it look like another process
            raise ChildProcessError(f"process {found.keeper[0]} keeps the servers up: kill it") from error
    try:
        keeper.terminate()
    except psutil.AccessDenied as error:
        raise ChildProcessError(f"process {keeper.pid} keeps the servers up and is another user's: ask them") from error
    except psutil.NoSuchProcess:
        pass  # it has just ended by itself
    while alive_process(found.keeper) is not None:
        if time.monotonic() > deadline:
            raise ChildProcessError(f"the servers do not stop: kill process {keeper.pid}, then ninefold down again")
        time.sleep(0.2)
    return True


def clear_left() -> bool:
    """End what a keeper that was killed has left, and forget it; whether there was anything."""
    found = _recorded()
    left = [known for known in (found.children if found else ()) if alive_process(known)]
    terminate(left, patience=STOPPING)
    record_file().unlink(missing_ok=True)
    return bool(left)


def keeper_lock() -> "FileLock":
    """Return the lock that a keeper holds for as long as it lives."""
    from filelock import FileLock

    settings().home.mkdir(parents=True, exist_ok=True)
    return FileLock(settings().home / "servers.lock", timeout=0)


def port_taken(port: int) -> bool:
    """Whether something listens on the port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((HOST, port)) == 0


def record_file() -> Path:
    """Return the file in which the servers that are up are recorded."""
    return settings().home / "servers.json"


def _recorded() -> Servers | None:
    try:
        return Servers(**json.loads(record_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
