"""A command that begins warm is a process as any other: of its own number, folder, environment, streams and end."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.processes import begin, finished, until, without_prefect
from tests.support.warm import Command

pytestmark = pytest.mark.slow

SAYS = """
import atexit, json, os, sys, threading, time
threading.Thread(target=lambda: (time.sleep(0.2), print("thread", file=sys.stderr))).start()
atexit.register(lambda: print("at exit", file=sys.stderr))
if "wait" in sys.argv:
    print("waiting", flush=True)
    time.sleep(600)
own = {"pid": os.getpid(), "cwd": os.getcwd(), "words": sys.argv[1:], "path": sys.path[:2]}
own |= {"environment": dict(os.environ), "torch": "torch" in sys.modules, "prefect": "prefect" in sys.modules}
print(json.dumps(own | {"ours": sorted({"flows", "tasks", "models"} & set(sys.modules))}))
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "says.py").write_text(SAYS)
    return tmp_path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return without_prefect() | {"NINEFOLD_HOME": str(tmp_path / "home"), "PYTHONPATH": "/nowhere"}


def test_it_has_its_own_folder_environment_streams_and_end(folder: Path, environment: dict[str, str]) -> None:
    done = finished("says", "a", "b c", environment=environment, cwd=folder)
    assert done.returncode == 3
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["environment"] == environment
    assert (said["cwd"], said["words"], said["path"]) == (str(folder), ["a", "b c"], [str(folder), "/nowhere"])
    assert said["pid"] != os.getpid()
    assert (said["torch"], said["prefect"], said["ours"]) == (True, False, []), "the libraries, and nothing else"
    assert done.stderr.split("\n")[:2] == ["thread", "at exit"], "as an interpreter ends"


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_it_is_killed_as_any_other(
    folder: Path, environment: dict[str, str], kill: Callable[[int, signal.Signals], None]
) -> None:
    log = folder / "log"
    log.touch()
    process = begin("says", "wait", environment=environment, cwd=folder, out=log, session=True)
    assert isinstance(process, Command)
    until(lambda: "waiting" in log.read_text(), log=log, seconds=60)
    assert process.poll() is None
    server = psutil.Process(process.pid).parent()
    assert server is not None
    assert "NINEFOLD_HOME" not in server.environ()
    kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_what_a_library_may_have_read_begins_from_nothing(folder: Path, environment: dict[str, str]) -> None:
    log = folder / "log"
    process = begin("says", environment=environment | {"HF_HOME": "/elsewhere"}, cwd=folder, out=log)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 3
    assert '"torch": false' in log.read_text()
