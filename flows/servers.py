"""The embedded set-up's servers: Prefect with the project's deployments and a worker, and MLflow, all on 127.0.0.1."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tasks.settings import settings

HOST = "127.0.0.1"
POOL = "ninefold"  # the work pool of deployments/prefect.yaml
_STARTING, _STOPPING = 180.0, 40.0  # seconds
_CLOCK_STEP = 60.0  # a process's start is computed from the wall clock, which may be stepped
_READY = "Ctrl-C stops them; so does `ninefold down` in another terminal"
_MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for scorers and optimisers not used here


class Servers(NamedTuple):
    """What is up: the process that keeps the servers, the servers, each with its start, and the ports."""

    keeper: tuple[int, float]
    mlflow_port: int
    prefect_port: int
    children: tuple[tuple[int, float], ...] = ()

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
    found = _recorded()
    return found if found is not None and _alive(*found.keeper) else None


def serve(*, mlflow_port: int, prefect_port: int, deployments: Path) -> Iterator[str]:
    """Start everything, yield what is up as lines of text, and keep it up until Ctrl-C, a polite kill or `stop`.

    Raises ValueError if a port is taken, another process is at it in this home, or the deployments are wrong;
    ChildProcessError if a server ends by itself.
    """
    from filelock import FileLock, Timeout

    settings().home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings().home / "servers.lock", timeout=0):
            stop()  # what a keeper that was killed has left
            yield from _Keeper(mlflow_port, prefect_port).keep(deployments)
    except Timeout as error:
        raise ValueError(
            f"servers of {settings().home} are starting or up already: ninefold down stops them"
        ) from error


class _Keeper:
    """Starts the servers, records them as it goes, and ends them in the end."""

    def __init__(self, mlflow_port: int, prefect_port: int) -> None:
        for port in (mlflow_port, prefect_port):
            if port_taken(port):
                raise ValueError(f"port {port} on {HOST} is taken: choose another with --mlflow-port or --prefect-port")
        self.up = Servers((os.getpid(), psutil.Process().create_time()), mlflow_port, prefect_port)
        self.children: list[subprocess.Popen[bytes]] = []

    def keep(self, deployments: Path) -> Iterator[str]:
        # Ctrl-C is for this process, which then ends the others in good order; so are a polite kill and a closed terminal
        for polite in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(polite, signal.default_int_handler)
        # before Prefect is imported; deployments/prefect.yaml asks for PWD, which is of the shell and not of a process
        os.environ |= {"PREFECT_UI_API_URL": self.up.api, "PREFECT_API_URL": self.up.api, "PWD": str(Path.cwd())}
        try:
            yield from self._start(deployments)
            while all(child.poll() is None for child in self.children):
                time.sleep(0.5)
            raise ChildProcessError("a server has stopped by itself, see above: `ninefold doctor` may know why")
        except KeyboardInterrupt:
            yield "stopping"
        finally:
            for impatient in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(impatient, signal.SIG_IGN)
            _end([psutil.Process(child.pid) for child in self.children if child.poll() is None])
            for child in self.children:
                _kill_group(child.pid)
                child.wait()
            _file().unlink(missing_ok=True)

    def _start(self, deployments: Path) -> Iterator[str]:
        from flows.deploy import deploy, make_pool  # Prefect reads its settings when it is imported

        told = self.up.lines()  # also makes MLflow's schema, which two first users must not do at once
        prefect = self._child(
            "prefect", "server", "start", "--host", HOST, "--port", str(self.up.prefect_port), **self._own
        )
        if not settings().mlflow_is_remote:
            place = ["--host", HOST, "--port", str(self.up.mlflow_port), "--workers", "1"]
            mlflow = self._child("mlflow", "server", *place, **_MLFLOW, MLFLOW_BACKEND_STORE_URI=settings().mlflow_uri)
            _wait(mlflow, f"http://{HOST}:{self.up.mlflow_port}/health")
        _wait(prefect, f"{self.up.api}/health")
        yield from told
        make_pool(POOL)
        yield deploy(deployments)
        # the worker's runs say on their pages what they do
        talking = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_ROOT_LEVEL": "INFO"}
        self._child("prefect", "worker", "start", "--pool", POOL, "--type", "process", **talking)
        yield _READY

    @property
    def _own(self) -> dict[str, str]:
        """Return what lets only Prefect's own pages use the API from a browser: its deployments can run commands."""
        pages = ",".join(f"http://{host}:{self.up.prefect_port}" for host in (HOST, "localhost"))
        return {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": pages, "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}

    def _child(self, *module: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Run a module in a process and a process group of its own, and record it."""
        command = [sys.executable, "-m", *module]
        child = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
        self.children.append(child)
        self.up = self.up._replace(children=(*self.up.children, (child.pid, psutil.Process(child.pid).create_time())))
        _file().write_text(json.dumps(self.up._asdict()), encoding="utf-8")
        return child


def start(*, mlflow_port: int, prefect_port: int, deployments: Path) -> Servers:
    """Start everything in the background and return it when it is up; raise ChildProcessError with what it said if not."""
    log = settings().home / "servers.log"
    command = ["flows.cli", "up", "--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--deployments", str(deployments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        while _READY not in log.read_text(encoding="utf-8", errors="replace") or (found := servers()) is None:
            if process.poll() is not None:
                raise ChildProcessError(f"the servers did not start, see {log}: {log.read_text().strip()[-2000:]}")
            time.sleep(0.3)
    except KeyboardInterrupt:
        process.terminate()
        raise
    return found


def stop() -> bool:
    """Stop this home's servers, their worker and what it runs; whether there were any.

    If the process that keeps them was killed, what it has left is ended. Raises ChildProcessError if they do not end.
    """
    found = _recorded()
    if found is None:
        return False
    if _alive(*found.keeper):
        keeper, deadline = psutil.Process(found.keeper[0]), time.monotonic() + 2 * _STOPPING
        keeper.terminate()
        while _alive(*found.keeper):
            if time.monotonic() > deadline:
                raise ChildProcessError(f"the servers do not stop: kill process {keeper.pid}, then ninefold down again")
            time.sleep(0.2)
        return True
    left = [psutil.Process(pid) for pid, since in found.children if _alive(pid, since)]
    _end(left)
    _file().unlink(missing_ok=True)
    return bool(left)


def port_taken(port: int) -> bool:
    """Whether something listens on the port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((HOST, port)) == 0


def _file() -> Path:
    return settings().home / "servers.json"


def _recorded() -> Servers | None:
    try:
        return Servers(**json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _alive(pid: int, since: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - since) < _CLOCK_STEP
    except psutil.NoSuchProcess:
        return False


def _end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, then kill what is left of them, their children and their groups."""
    family = [child for process in processes for child in _children(process)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(processes, timeout=_STOPPING)
    for process in processes:
        _kill_group(process.pid)
    for process in [*processes, *family]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _kill_group(leader: int) -> None:
    """Kill what is left of a process group, whose leader may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait(child: "subprocess.Popen[bytes]", url: str) -> None:
    """Return when a server answers; raise ChildProcessError if it ends, TimeoutError if it takes too long."""
    import httpx

    deadline, answers = time.monotonic() + _STARTING, False
    with httpx.Client(timeout=5) as client:
        while not answers:
            with suppress(httpx.TransportError):
                answers = client.get(url).is_success
            if child.poll() is not None:
                raise ChildProcessError(f"the server for {url} has ended, see above: `ninefold doctor` may know why")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not answer within {_STARTING:.0f} s")
            time.sleep(0.0 if answers else 0.2)
