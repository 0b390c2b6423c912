"""`ninefold up`: both real servers answer on 127.0.0.1, the printed link's experiment is there, and Ctrl-C ends both."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.runtime.servers import port_taken
from tests.support.processes import answers, fetch, free_port, without_prefect

ROOT = Path(__file__).parents[3]


def test_up_serves_both_pages_until_ctrl_c(tmp_path: Path) -> None:
    mlflow_port, prefect_port = free_port(), free_port()
    server = subprocess.Popen(
        [
            *[sys.executable, "-m", "flows.cli.main", "up"],
            *["--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)],
        ],
        cwd=ROOT,
        env=without_prefect() | {"NINEFOLD_HOME": str(tmp_path), "COLUMNS": "80", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert b"<html" in answers(f"http://127.0.0.1:{prefect_port}/", 90).lower()
        assert b"true" in fetch(f"http://127.0.0.1:{prefect_port}/api/health")
        assert b"<html" in answers(f"http://127.0.0.1:{mlflow_port}/", 90).lower()
        found = fetch(f"http://127.0.0.1:{mlflow_port}/api/2.0/mlflow/experiments/search", {"max_results": 10})
        assert {e["name"] for e in json.loads(found)["experiments"]} == {"Default", "ninefold"}
        for port in (mlflow_port, prefect_port):  # a server on 0.0.0.0 would answer here too
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.2", port), timeout=5)
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does: to the children too
        said, _ = server.communicate(timeout=60)
    assert (
        f"http://127.0.0.1:{mlflow_port}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=runs"
        in said
    )
    assert "Traceback" not in said
    assert "without a flow run id" not in said
    assert not port_taken(mlflow_port)
    assert not port_taken(prefect_port)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "up", "--mlflow-port", str(port)],
            cwd=ROOT,
            env=without_prefect() | {"NINEFOLD_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
