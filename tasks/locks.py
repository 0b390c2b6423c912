"""A lock per cache key that the operating system frees when its holder dies, so that kill -9 blocks nobody."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout


class ProcessLocks:
    """Prefect's lock manager on `flock`: identical concurrent tasks compute once, across threads and processes.

    (Prefect's own file locks are files that outlive a killed holder.) `hold_timeout` has no meaning here.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder  # asked late: stages are declared before the settings are known
        self._held: dict[str, tuple[str, FileLock]] = {}
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
        """Free the lock; raise ValueError if another holds it."""
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} does not hold the lock of {key}")
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

    def _lock(self, key: str) -> FileLock:
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return FileLock(folder / f"{name}.lock", thread_local=False)
