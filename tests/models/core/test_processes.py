"""Processes are known by number and start, and what they have started ends with them, whatever session it is in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models.core.processes import alive_process, current, descendants, terminate
from tests.support.processes import until

# like Prefect's worker, which gives each run a session of its own
LEADER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def leader(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    log = tmp_path / "log"
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", LEADER], start_new_session=True)
    until(lambda: len(descendants([process.pid])) == 2, log=log, seconds=30)
    yield process
    for pid, _ in descendants([process.pid]):
        psutil.Process(pid).kill()
    process.wait()


def test_a_family_ends_with_its_leader(leader: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    known = descendants([leader.pid])
    terminate([one for one in known if one[0] == leader.pid], patience=10)
    until(lambda: not any(alive_process(one) for one in known), log=tmp_path / "log", seconds=10)


def test_what_a_killed_leader_has_left_is_ended(leader: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    known = descendants([leader.pid])
    orphan = next(one for one in known if one[0] != leader.pid)
    leader.kill()
    leader.wait()
    assert alive_process(orphan) is not None
    terminate([], known, patience=10)
    until(lambda: alive_process(orphan) is None, log=tmp_path / "log", seconds=10)


def test_a_number_that_is_used_again_is_another_process() -> None:
    pid, since = current()
    assert alive_process((pid, since)) == psutil.Process(os.getpid())
    assert alive_process((pid, since - 3600)) is None
    terminate([(pid, since - 3600)], [(pid, since - 3600)], patience=1)  # we are still here


def test_a_clock_that_is_set_makes_nobody_another(monkeypatch: pytest.MonkeyPatch) -> None:
    known = current()
    for step in (-3600.0, 90.0, 3600.0):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, by=step: 1e9 + by)
        assert alive_process(known) is not None
