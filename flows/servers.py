"""The Prefect and MLflow servers of the embedded set-up, as children that end with this process."""

import os
import signal
import socket
import subprocess
import sys
import time

import typer

from flows.tracking import runs_url
from tasks.settings import settings

HOST = "127.0.0.1"


def serve(*, mlflow_port: int, prefect_port: int) -> None:
    """Run both servers on 127.0.0.1 until Ctrl-C; raise ValueError if a port is taken, ChildProcessError if one ends."""
    for port in (mlflow_port, prefect_port):
        if port_taken(port):
            raise ValueError(f"port {port} on {HOST} is taken: choose another with --mlflow-port or --prefect-port")
    url = runs_url(mlflow_port)  # also makes MLflow's schema, which two first users must not do at once
    api = f"http://{HOST}:{prefect_port}/api"
    commands = [
        [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
        [
            *[sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)],
            *["--backend-store-uri", settings().mlflow_uri, "--workers", "1"],
        ],
    ]
    environment = {**os.environ, "PREFECT_UI_API_URL": api}
    # Ctrl-C is for this process, which then ends the servers in good order; a polite kill is the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    servers = [subprocess.Popen(command, env=environment, start_new_session=True) for command in commands]
    typer.echo(f"MLflow runs  {url}")  # not a log line: those are wrapped, and a wrapped link is broken
    typer.echo(f"Prefect      http://{HOST}:{prefect_port}")
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("stopping")
    else:
        raise ChildProcessError("a server has stopped by itself, see above: `ninefold doctor` may know why")
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=30)


def port_taken(port: int) -> bool:
    """Whether something listens on the port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((HOST, port)) == 0
