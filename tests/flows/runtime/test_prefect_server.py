"""A command's Prefect server: nobody else may use it, and it ends with its command, however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from flows.runtime.prefect_server import of_commands
from tests.support.processes import ROOT, until, without_prefect

# a command that has its server, says where it is and what opens it, and waits
COMMAND = """
import os, time
from flows.runtime.environment import prepare_flows
from flows.runtime.prefect_server import admitted
prepare_flows()
with admitted():
    print(os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"], flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def command(place: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    # in a folder with modules of others' that have our names
    for name in ("prefect", "models", "uvicorn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not what was meant')\n")
    (tmp_path / "command.py").write_text(COMMAND)
    environment = without_prefect() | {"NINEFOLD_HOME": str(place), "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-P", str(tmp_path / "command.py")]
    process = subprocess.Popen(started, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def where(command: "subprocess.Popen[str]") -> tuple[str, str]:
    assert command.stdout is not None
    api, password = command.stdout.readline().split()
    return api, password


def test_it_answers_who_knows_the_password_and_no_page_of_others(command: "subprocess.Popen[str]") -> None:
    api, password = where(command)
    user, word = password.split(":")
    assert len(word) > 20
    foreign = {"Origin": "http://pages.example"}
    assert httpx.get(f"{api}/health", timeout=60).status_code == 200
    for headers in ({}, foreign):
        read, written = (
            httpx.get(f"{api}/admin/version", headers=headers),
            httpx.post(f"{api}/deployments/", json={}, headers=headers),
        )
        assert (read.status_code, written.status_code) == (401, 403)
        assert "access-control-allow-origin" not in read.headers.keys() | written.headers.keys()
    with httpx.Client(auth=(user, word)) as client:
        assert client.get(f"{api}/admin/version").status_code == 200
        asked = client.get(f"{api}/admin/version", headers=foreign)
        assert "access-control-allow-origin" not in asked.headers
        assert client.post(f"{api}/flows/", json={"name": "f"}, headers=foreign).status_code == 403  # no CSRF token
    before = httpx.options(f"{api}/deployments/", headers=foreign | {"Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in before.headers


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_command(
    command: "subprocess.Popen[str]", place: Path, tmp_path: Path, end: signal.Signals
) -> None:
    api, _ = where(command)
    assert httpx.get(f"{api}/health", timeout=60).status_code == 200
    (server,) = of_commands(place / "prefect")
    assert server.used
    assert server.owner[0] == command.pid
    log = tmp_path / "log"
    log.touch()
    command.send_signal(end)
    command.wait()
    until(lambda: not psutil.pid_exists(server.pid), log=log, seconds=20)
    assert of_commands(place / "prefect") == []


def test_what_a_killed_command_has_left_is_seen_and_ended(
    command: "subprocess.Popen[str]", place: Path, tmp_path: Path
) -> None:
    api, _ = where(command)
    assert httpx.get(f"{api}/health", timeout=60).status_code == 200
    (server,) = of_commands(place / "prefect")
    process = psutil.Process(server.pid)
    process.suspend()  # it does not see that its command ends
    command.kill()
    command.wait()
    environment = without_prefect() | {"NINEFOLD_HOME": str(place)}

    def ninefold(name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", name], cwd=ROOT, env=environment, capture_output=True
        )
        return done.stdout.decode()

    assert f"BAD Prefect server {server.pid} is of command {command.pid}, which is no more" in ninefold("doctor")
    assert ninefold("down") == "stopped\n"
    log = tmp_path / "log"
    log.touch()
    until(lambda: not psutil.pid_exists(server.pid), log=log, seconds=20)


def test_a_mistake_in_the_file_leaves_nothing_behind(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: wrong\nprompst: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "run", str(file)],
        cwd=ROOT,
        env=without_prefect() | {"NINEFOLD_HOME": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "prompst" in done.stderr
    assert not place.exists()
    assert of_commands(place / "prefect") == []


def test_a_second_home_of_the_machine_finds_its_tables_made(place: Path) -> None:
    from flows.runtime.empty_databases import lay_prefect_database

    place.mkdir()
    assert lay_prefect_database(place / "prefect.db")
    before = os.stat(place / "prefect.db").st_ino
    assert lay_prefect_database(place / "prefect.db")  # and leaves what is there
    assert os.stat(place / "prefect.db").st_ino == before
    (place / "other.db").write_bytes(b"")  # of another version, or of nobody's
    assert not lay_prefect_database(place / "other.db")
