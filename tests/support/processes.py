"""Real servers and commands beside the tests: a free port, an environment of their own, waiting until something is so."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.warm import Command, begins_warm

ROOT = Path(__file__).parents[2]
KEY = "sk-planted-0123456789abcdef"  # of an oracle's API; it must turn up nowhere


def ninefold(*arguments: str, home: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command on a machine: a home, and an environment."""
    return finished("flows.cli.main", *arguments, environment={**environment, "NINEFOLD_HOME": str(home)})


def finished(
    *module: str, environment: Mapping[str, str], cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end in a process of its own, as `python -m` does."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = begin(*module, environment=environment, cwd=cwd, out=out, err=err)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(module, status, out.read_text(), err.read_text())


def begin(
    *module: str, environment: Mapping[str, str], cwd: Path, out: Path, err: Path | None = None, session: bool = False
) -> "Command | subprocess.Popen[bytes]":
    """Start a module in a process of its own, as `python -m` does; it writes to the end of files."""
    err = err or out
    if begins_warm(environment):
        return Command(module, cwd=cwd, env=environment, out=out, err=err, session=session)
    with out.open("ab") as said, err.open("ab") as told:
        command = [sys.executable, "-m", *module]
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=said,
            stderr=told,
            stdin=subprocess.DEVNULL,
            start_new_session=session,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_prefect() -> dict[str, str]:
    """Return this environment without what points at the tests' own Prefect server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def with_prefect() -> dict[str, str]:
    """Return this environment for commands that are to use the tests' own Prefect server, and start none."""
    from prefect.settings import PREFECT_API_URL

    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": os.environ["PREFECT_HOME"]}
    return without_prefect() | server


def fetch(url: str, body: dict[str, object] | None = None) -> bytes:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def answers(url: str, seconds: float) -> bytes:
    """Return what a page says as soon as it says something."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fetch(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def serving(
    command: list[str], port: int, *, log: Path, environment: Mapping[str, str], health: str = "/health"
) -> Iterator[str]:
    """Run a server, yield its URL when it is healthy, and end it."""
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        answers(f"{url}{health}", 180)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def prefect_server(database: str, folder: Path) -> Iterator[str]:
    """Run a Prefect server with its database at a URL, and yield its API; it logs to `prefect.log` in the folder."""
    port = free_port()
    environment = without_prefect() | {
        "PREFECT_HOME": str(folder / "prefect-server"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, port, log=folder / "prefect.log", environment=environment, health="/api/health") as url:
        yield f"{url}/api"


@contextmanager
def s3_server(key: str, secret: str) -> Iterator[str]:
    """Run an S3 server on loopback; yields the URL of a bucket, and sets the environment that clients look at."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="ninefold")
    yield "s3://ninefold"
    server.stop()


def until(true: Callable[[], Any], *, log: Path, seconds: float) -> Any:
    """Return what `true` returns as soon as it is; fail with the end of a log file if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, log.read_text()[-8000:]
        time.sleep(0.3)
    return found
