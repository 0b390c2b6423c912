"""Locks per cache key that a holder's death releases, on one machine or many."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

from filelock import FileLock, Timeout

from models.core.errors import ConfigError
from models.ledger.sessions import SessionLock
from tasks.engine.settings import settings


class KeyLock(Protocol):
    """One lock; `acquire` waits at most `timeout` seconds (negative: for ever) and raises Timeout."""

    def acquire(self, timeout: float) -> object:
        """Take the lock."""

    def release(self) -> None:
        """Free it."""


@contextmanager
def holding(lock: KeyLock) -> Iterator[None]:
    """Hold a lock, waited for however long it takes, while the block runs."""
    lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


def stage_lock(key: str) -> KeyLock:
    """Return the lock of a key: in the ledger's PostgreSQL where stages are shared with other machines, else a file's."""
    if settings().shares_stages:
        return SessionLock(settings().ledger_url, key)
    return file_lock(settings().prefect_home / "locks", key)


def file_lock(folder: Path, key: str) -> KeyLock:
    """Return the lock of a key among the processes of this machine: `flock`, which ends with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.lock", thread_local=False)


class StageLocks:
    """Prefect's lock manager: identical concurrent tasks compute once, across threads, processes and machines.

    (Prefect's own file locks are files that outlive a killed holder.) `hold_timeout` has no meaning here.
    """

    def __init__(self, lock_of: Callable[[str], KeyLock] = stage_lock) -> None:
        self._lock = lock_of  # asked late: stages are declared before the settings are known
        self._held: dict[str, tuple[str, KeyLock]] = {}
        self._guard = Lock()

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Take the lock, waiting at most `acquire_timeout` seconds (None: for ever)."""
        del hold_timeout
        if self.is_lock_holder(key, holder):
            return True
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if acquire_timeout is None else acquire_timeout)
        except Timeout:
            return False
        with self._guard:
            self._held[key] = (holder, lock)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Take the lock without blocking the event loop."""
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Free the lock; raise ConfigError if another holds it."""
        if not self.is_lock_holder(key, holder):
            raise ConfigError(f"{holder} does not hold the lock of {key}")
        with self._guard:
            _, lock = self._held.pop(key)
        lock.release()

    def is_locked(self, key: str) -> bool:
        """Whether anybody, in any process, holds the lock now."""
        with self._guard:
            if key in self._held:
                return True
        return not self.wait_for_lock(key, timeout=0)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether this holder, in this process, holds the lock."""
        with self._guard:
            return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until the lock is free; false if it is not within `timeout` seconds."""
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout:
            return False
        lock.release()
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait for the lock without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)
