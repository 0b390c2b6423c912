"""Supervisor of the embedded servers: starts, records and ends them with all their children."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.runtime.prefect_server import HOST, closed, new_password
from flows.runtime.servers import POOL, STOPPING, Ports, Servers, clear_left, keeper_lock, port_taken, record_file
from models.core.errors import ConfigError
from models.core.files import whole
from models.core.processes import ProcessId, current, descendants, kill_group, terminate
from models.core.subprocesses import child_environment, healthy
from tasks.engine.settings import settings

_STARTING = 180.0  # seconds
_READY = "Ctrl-C stops them; so does `ninefold down` in another terminal"
_MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for scorers and optimisers not used here


def serve(ports: Ports, deployments: Path, runs_page: Callable[[int], str]) -> Iterator[str]:
    """Start everything, yield what is up as lines of text, and keep it up until Ctrl-C, a polite kill or `stop`.

    `runs_page` returns the link to MLflow's runs at a port, and makes MLflow's schema: two first users must not do so at
    once.

    Raises ConfigError if a port is taken, another process is at it in this home, or the deployments are wrong;
    ChildProcessError if a server ends by itself.
    """
    from filelock import Timeout

    try:
        with keeper_lock():
            clear_left()  # what a keeper that was killed has left
            yield from _Supervisor(ports).run(deployments, runs_page)
    except Timeout as error:
        raise ConfigError(
            f"servers of {settings().home} are starting or up already: ninefold down stops them"
        ) from error


class _Supervisor:
    """Starts the servers, records them and what they start, and ends them in the end."""

    def __init__(self, ports: Ports) -> None:
        for port in (ports.prefect,) if settings().mlflow_is_remote else ports:
            if port_taken(port):
                raise ConfigError(
                    f"port {port} on {HOST} is taken: choose another with --mlflow-port or --prefect-port"
                )
        self.up = Servers(current(), *ports, password=new_password())
        self.children: list[subprocess.Popen[bytes]] = []

    def run(self, deployments: Path, runs_page: Callable[[int], str]) -> Iterator[str]:
        # Ctrl-C is for this process, which then ends the others in good order; so are a polite kill and a closed terminal
        for polite in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(polite) is not signal.SIG_IGN:  # as under nohup
                signal.signal(polite, signal.default_int_handler)
        # before Prefect is imported; deployments/prefect.yaml asks for PWD, which is of the shell and not of a process
        os.environ |= {"PREFECT_UI_API_URL": self.up.api, "PREFECT_API_URL": self.up.api, "PWD": str(Path.cwd())}
        os.environ["PREFECT_API_AUTH_STRING"] = self.up.password
        self._record()
        try:
            self._record(runs_page=runs_page(self.up.mlflow_port))
            yield from self._start(deployments)
            there = self._descendants()
            while all(child.poll() is None for child in self.children):
                self._record(children=there)
                time.sleep(1.0)
                there = self._descendants()  # what a child that ends has started is known from the time before
            raise ChildProcessError("a server has stopped by itself, see above: `ninefold doctor` may know why")
        except KeyboardInterrupt:
            yield "stopping"
        finally:
            for impatient in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(impatient, signal.SIG_IGN)
            with suppress(OSError):  # the home may be gone, or the disk full: what runs must end
                self._record(ready=False)
            terminate([k for k in self.up.children if k[0] in self._children()], self.up.children, patience=STOPPING)
            for child in self.children:
                kill_group(child.pid)
                child.wait()
            record_file().unlink(missing_ok=True)

    def _children(self) -> list[int]:
        return [child.pid for child in self.children]

    def _descendants(self) -> tuple[ProcessId, ...]:
        """Return the servers and all that they have started: a run of the worker's has a session of its own."""
        return descendants(self._children())

    def _record(self, **changed: Any) -> None:  # noqa: ANN401
        """Write what is up where other processes look, whole or not at all."""
        now = self.up._replace(**changed)
        if now != self.up or not record_file().exists():
            self.up = now
            with whole(record_file()) as draft:
                draft.touch(mode=0o600)  # it holds the password
                draft.write_text(json.dumps(now._asdict()), encoding="utf-8")

    def _start(self, deployments: Path) -> Iterator[str]:
        from flows.runtime.deployments import deploy, make_pool  # Prefect reads its settings when it is imported

        prefect = self._child(
            *("prefect", "server", "start", "--host", HOST, "--port", str(self.up.prefect_port)),
            **closed(self.up.prefect_port, self.up.password),
        )
        if not settings().mlflow_is_remote:
            place = ["--host", HOST, "--port", str(self.up.mlflow_port), "--workers", "1"]
            mlflow = self._child("mlflow", "server", *place, **_MLFLOW, MLFLOW_BACKEND_STORE_URI=settings().mlflow_uri)
            _wait(mlflow, f"http://{HOST}:{self.up.mlflow_port}/health")
        _wait(prefect, f"{self.up.api}/health")
        yield from self.up.lines()
        make_pool(POOL)
        deployed = deploy(deployments)
        yield deployed
        # the worker's runs say on their pages what they do
        talking = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_ROOT_LEVEL": "INFO"}
        self._child("prefect", "worker", "start", "--pool", POOL, "--type", "process", **talking)
        self._record(deployed=deployed, ready=True)
        yield _READY

    def _child(self, *module: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Run a module in a process and a process group of its own, and record it."""
        command = [sys.executable, "-m", *module]
        child = subprocess.Popen(command, env=child_environment(environment), start_new_session=True)
        self.children.append(child)
        self._record(children=self._descendants())
        return child


def _wait(child: "subprocess.Popen[bytes]", url: str) -> None:
    """Return when a server answers; raise ChildProcessError if it ends, TimeoutError if it takes too long."""
    if not healthy(child, url, seconds=_STARTING):
        if child.poll() is not None:
            raise ChildProcessError(f"the server for {url} has ended, see above: `ninefold doctor` may know why")
        raise TimeoutError(f"{url} did not answer within {_STARTING:.0f} s")
