"""The lock of a stage: one holder at a time, across threads, processes and machines, free when its holder dies."""

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from filelock import Timeout

from models.ledger.sessions import SessionLock
from tasks.engine.locks import KeyLock, StageLocks, file_lock


@pytest.fixture(params=["file", "postgresql"])
def lock_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], KeyLock]:
    if request.param == "file":
        return partial(file_lock, tmp_path / "locks")
    return partial(SessionLock, request.getfixturevalue("new_database")())


def _hold(lock_of: Callable[[str], KeyLock], started: str, seconds: float) -> None:
    locks = StageLocks(lock_of)
    assert locks.acquire_lock("key", "child")
    Path(started).write_text("held")
    time.sleep(seconds)
    os._exit(0)  # dies holding it


def test_it_is_freed_by_the_death_of_its_holder(lock_of: Callable[[str], KeyLock], tmp_path: Path) -> None:
    started = tmp_path / "started"
    child = multiprocessing.get_context("spawn").Process(target=_hold, args=(lock_of, str(started), 60))
    child.start()
    while not started.exists():
        assert child.is_alive()
        time.sleep(0.05)
    locks = StageLocks(lock_of)
    assert locks.is_locked("key")
    assert not locks.is_locked("another key")
    assert not locks.acquire_lock("key", "parent", acquire_timeout=0.1)
    child.kill()
    child.join()
    assert locks.acquire_lock("key", "parent", acquire_timeout=5)
    assert locks.is_lock_holder("key", "parent")
    assert not locks.is_lock_holder("key", "another")
    with pytest.raises(ValueError, match="another does not hold the lock"):
        locks.release_lock("key", "another")
    locks.release_lock("key", "parent")
    assert not locks.is_locked("key")


def test_whoever_waits_gets_it_when_it_is_free(lock_of: Callable[[str], KeyLock]) -> None:
    first, second = lock_of("key"), lock_of("key")
    first.acquire(timeout=-1)
    with pytest.raises(Timeout):
        second.acquire(timeout=0)
    waiting = Thread(target=second.acquire, args=(-1,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive(), "it is held"
    first.release()
    waiting.join(5)
    assert not waiting.is_alive()
    with pytest.raises(Timeout):
        lock_of("key").acquire(timeout=0.1)
    second.release()
