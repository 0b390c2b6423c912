"""Locks of PostgreSQL sessions: held while a process lives, and freed by the server however it ends."""

import hashlib
import math
import time
from contextlib import suppress
from functools import lru_cache
from threading import Event, Lock, Thread

import sqlalchemy as sa
from filelock import Timeout

BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2
# A holder whose machine is gone, or cut off, is found out within a minute and a half.
_KEEPALIVE = (
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 15",
    "SET tcp_keepalives_count = 4",
    "SET tcp_user_timeout = 90000",
)


def number_of(key: str) -> int:
    """Return the 64-bit number by which PostgreSQL knows a lock."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], signed=True)


class SessionLock:
    """Advisory lock in a session of its own: the server frees it when the connection of its holder ends, however it ends.

    A `shared` one has any number of holders.
    """

    def __init__(self, url: str | sa.URL, key: str, *, shared: bool = False) -> None:
        self._engine = _sessions(sa.make_url(url))
        self._number = number_of(key)
        self._take = sa.func.pg_try_advisory_lock_shared if shared else sa.func.pg_try_advisory_lock
        self._session: sa.Connection | None = None

    def acquire(self, timeout: float) -> None:
        """Take the lock; raise Timeout if it is not free within `timeout` seconds (negative: wait for ever)."""
        session = self._engine.connect()
        try:
            for statement in _KEEPALIVE:
                session.exec_driver_sql(statement)
            # asked again and again: to wait within a statement would hold a snapshot, and fall to a time limit of statements
            self._try(session, math.inf if timeout < 0 else time.monotonic() + timeout)
        except BaseException:
            session.close()
            raise
        self._session = session

    def release(self) -> None:
        """Free the lock by ending its session."""
        session, self._session = self._session, None
        with suppress(sa.exc.SQLAlchemyError):  # it has ended already
            if session is not None:
                session.close()

    def lost(self) -> bool:
        """Whether the session has ended by itself, as when the server was started anew; the lock is then free."""
        try:
            return self._session is None or self._session.scalar(sa.select(1)) != 1
        except sa.exc.SQLAlchemyError:
            return True

    def _try(self, session: sa.Connection, deadline: float) -> None:
        while not session.scalar(sa.select(self._take(self._number))):
            if time.monotonic() >= deadline:
                raise Timeout(str(self._number))
            time.sleep(_POLL_SECONDS)


class Heartbeat:
    """Holds a lock as long as its process lives: what the database has lost is taken again."""

    def __init__(self, lock: SessionLock) -> None:
        self._lock, self._guard, self._over = lock, Lock(), Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Take the lock, waited for however long it takes, and keep it until `stop`."""
        self._lock.acquire(-1)
        self._thread.start()

    def stop(self) -> None:
        """Free the lock."""
        self._over.set()
        with self._guard:
            self._lock.release()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with self._guard:
                if not self._over.is_set() and self._lock.lost():
                    self._lock.release()
                    with suppress(sa.exc.SQLAlchemyError, Timeout):  # the server is not back yet
                        self._lock.acquire(BEAT_SECONDS)


@lru_cache(maxsize=2)
def _sessions(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
