"""Prefect server of a single command: on loopback, with a password, ended with its command.

`warm` starts a process that imports and waits; `admitted` lets it touch the home's database and answer. In between a command
reads its files, so that a mistake in them leaves nothing behind and the wait is short where there is none.
"""

import atexit
import gc
import os
import secrets
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import psutil

from flows.runtime.empty_databases import lay_prefect_database
from models.core.processes import ProcessId, alive_process, current
from models.core.subprocesses import child_environment
from tasks.engine.settings import settings

HOST = "127.0.0.1"
_MODULE = __spec__.name  # not __name__: it is a program of its own too
_ENDING = 8.0  # seconds
# One command needs its task runs recorded, and none of these.
_UNUSED = {
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
}


_URL = "PREFECT_API_DATABASE_CONNECTION_URL"
_NEEDED = ("prefect.flow_engine", "mlflow", "mlflow.store.tracking.sqlalchemy_store")


class Command(NamedTuple):
    """A command's server: its process, and the process of the command that it belongs to."""

    pid: int
    owner: ProcessId

    @property
    def used(self) -> bool:
        """Whether the command still runs."""
        return alive_process(self.owner) is not None


def new_password() -> str:
    """Return user and password of a server, as Prefect's settings want them."""
    return f"ninefold:{secrets.token_urlsafe(24)}"


def closed(port: int, password: str) -> dict[str, str]:
    """Return the environment of a server that answers its own pages and who knows the password: it can run commands."""
    pages = ",".join(f"http://{host}:{port}" for host in (HOST, "localhost"))
    return {
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": pages,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_AUTH_STRING": password,
    }


class _Server:
    """The process, seen from its command."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.create_server((HOST, 0), backlog=256) as listening:  # who asks too early waits
            port = listening.getsockname()[1]
            self.api, self.password = f"http://{HOST}:{port}/api", new_password()
            owner, since = current()
            arguments = [str(home), str(listening.fileno()), str(owner), str(since)]
            self.process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *arguments],
                stdin=subprocess.PIPE,
                env=child_environment({**_UNUSED, **closed(port, self.password)}),
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is for the command
            )
        atexit.register(self.stop)

    def admit(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        with suppress(BrokenPipeError):  # it has ended: whoever asks is told
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        assert self.process.stdin is not None  # noqa: S101 - it was asked for
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_server: _Server | None = None


def warm(home: Path) -> None:
    """Start this process's server, and point Prefect at it; nothing is written yet. Does nothing the second time."""
    global _server  # noqa: PLW0603
    if _server is None:
        _server = _Server(home)
        os.environ |= {"PREFECT_API_URL": _server.api, "PREFECT_API_AUTH_STRING": _server.password}


@contextmanager
def admitted() -> Iterator[None]:
    """Let this process's server, if it has one, open its database and answer, and run flows in the block.

    While it starts, what every flow needs is imported. Flows send no heartbeats: whoever waits at the terminal sees that
    they live, and each would take up to a second to end.
    """
    if _server is not None:
        _server.admit()
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    for module in _NEEDED if not settings().mlflow_is_remote else _NEEDED[:-1]:
        import_module(module)
    # Prefect may have been imported, and have read its settings, before this server was there: in a notebook
    ours = {} if _server is None else {PREFECT_API_URL: _server.api, PREFECT_API_AUTH_STRING: _server.password}
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, **ours}):
        yield


def of_commands(home: Path) -> list[Command]:
    """Return the servers of commands that use a home, also those that a killed command has left."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if _MODULE in line and str(home) in line:
            with suppress(ValueError, IndexError):
                pid, since = line[-2:]
                found.append(Command(process.pid, (int(pid), float(since))))
    return found


def _serve(home: Path, descriptor: int) -> None:
    """Serve on a socket that listens already, from the first byte on stdin until its end."""
    os.environ["PREFECT_HOME"] = str(home)
    # it is made when the command is admitted, and Prefect would have it before
    warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
    gc.disable()  # an import leaves no garbage, and is a tenth faster without a look for it
    import uvicorn
    from prefect.server.api import server as prefect_api
    from prefect.settings import (
        PREFECT_API_BLOCKS_REGISTER_ON_START,
        PREFECT_API_DATABASE_MIGRATE_ON_START,
        PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
        temporary_settings,
    )

    gc.freeze()  # what was imported is not looked at again
    gc.enable()
    # The last would import every installed collection (2 s of prefect-kubernetes) to learn that blocks have not changed.
    changes = (
        PREFECT_API_DATABASE_MIGRATE_ON_START,
        PREFECT_API_BLOCKS_REGISTER_ON_START,
        PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
    )

    if not sys.stdin.buffer.read(1):
        return
    current = _URL not in os.environ and lay_prefect_database(home / "prefect.db")
    app = prefect_api.create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=3))

    def watch() -> None:
        sys.stdin.buffer.read()
        # what its tasks say of being cancelled is not for the command's page
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        server.should_exit = True

    Thread(target=watch, daemon=True).start()
    with temporary_settings(dict.fromkeys(changes, False) if current else {}):
        server.run(sockets=[socket.socket(fileno=descriptor)])
    os._exit(0)  # all is written: taking the interpreter apart would only keep the command waiting


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
