"""Liveness of reservation holders: by process on this machine, by database session on others."""

import hashlib
import os
import socket
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.processes import is_alive

PEOPLE = "people"  # who answer in their own time: what they hold is never given up
# A reservation whose holder cannot be seen at all (another machine, and SQLite) is given up after this long.
LEASE_SECONDS = 900.0
GRACE_SECONDS = 20.0  # that a holder is seen to be absent before it is given up: its session may have to be opened anew
_BEAT_SECONDS = 5.0
_WITH_SESSION = "+"  # of a place, as earlier versions do not write it, whose holders have no session
# A holder whose machine is gone, or cut off, is found out within a minute and a half.
KEEPALIVE = (
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 15",
    "SET tcp_keepalives_count = 4",
    "SET tcp_user_timeout = 90000",
)


def this_process() -> str:
    """Return a holder that no other process, container or boot is mistaken for."""
    return _holder(os.getpid())


@cache  # a forked child has an id of its own
def _holder(process: int) -> str:
    return f"{_place()}{_WITH_SESSION}|{process}|{psutil.Process(process).create_time():.0f}"


class Presence:
    """A session in the ledger's PostgreSQL that says that this process lives, and ends with it, however that ends.

    It ends with the ledger that it is `of`, too.
    """

    def __init__(self, url: sa.URL, *, of: object) -> None:
        self._sessions = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._session: sa.Connection | None = None
        self._pulse: Thread | None = None
        self._guard, self._over = Lock(), Event()
        weakref.finalize(of, self.end).atexit = False  # the server sees the end of a process by itself

    def hold(self) -> None:
        """Be present from now on, until `end`: a session that is lost is opened anew."""
        with self._guard:
            if self._session is None:
                self._session = self._open()
            if self._pulse is None:
                self._pulse = Thread(target=self._beat, name="presence", daemon=True)
                self._pulse.start()

    def end(self) -> None:
        """Be present no longer."""
        self._over.set()
        with self._guard:
            self._close()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            with self._guard, suppress(sa.exc.SQLAlchemyError):  # the server is not back yet
                if not self._there():
                    self._close()
                    self._session = self._open()

    def _open(self) -> sa.Connection:
        session = self._sessions.connect()
        try:
            for statement in KEEPALIVE:
                session.exec_driver_sql(statement)
            # shared: a process may have several ledgers open
            session.execute(sa.select(sa.func.pg_advisory_lock_shared(_number(this_process()))))
        except BaseException:
            session.close()
            raise
        return session

    def _there(self) -> bool:
        with suppress(sa.exc.SQLAlchemyError):
            return self._session is not None and self._session.scalar(sa.select(1)) == 1
        return False

    def _close(self) -> None:
        session, self._session = self._session, None
        with suppress(sa.exc.SQLAlchemyError):
            if session is not None:
                session.close()


def absent(connection: Connection, holders: Iterable[str]) -> frozenset[str] | None:
    """Return which of the holders elsewhere have no session in the database; None where there are none (SQLite)."""
    if connection.dialect.name != "postgresql":
        return None
    here = _place()
    elsewhere = {holder for holder in holders if holder != PEOPLE and not holder.startswith(here)}
    if not elsewhere:
        return frozenset()
    held = sa.text(
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    numbers = set(connection.scalars(held))
    return frozenset(holder for holder in elsewhere if _number(holder) not in numbers)


_missed: dict[str, float] = {}  # when this process first saw that a holder was absent


def _number(holder: str) -> int:
    return int.from_bytes(hashlib.sha256(f"holder {holder}".encode()).digest()[:8], signed=True)


def alive(holder: str, reserved_at: float, away: frozenset[str] | None = None) -> bool:
    """Whether a holder may still settle what it reserved at a time.

    People always; a process of this place while it runs; one elsewhere until it has been `away` for some time, or, where
    that cannot be known, while its lease lasts.
    """
    if holder == PEOPLE:
        return True
    marked, pid, started = holder.rsplit("|", 2)
    place, here = marked.removesuffix(_WITH_SESSION), _place()
    if place != here:
        return _lives_elsewhere(holder, reserved_at, away if place != marked else None)
    return is_alive((int(pid), float(started)))


def _lives_elsewhere(holder: str, reserved_at: float, away: frozenset[str] | None) -> bool:
    if away is None:
        host, boot, _ = holder.split("/", 2)
        rebooted = host == socket.gethostname() and boot != _place().split("/", 2)[1]
        return not rebooted and time.time() - reserved_at < LEASE_SECONDS
    if holder not in away:
        _missed.pop(holder, None)
        return True
    return time.monotonic() - _missed.setdefault(holder, time.monotonic()) < GRACE_SECONDS


def _place() -> str:
    """Return host, boot and process-id namespace: within one place a process id means one process."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return "/".join(
        [
            socket.gethostname(),
            boot.read_text().strip()[:8] if boot.exists() else "-",
            os.readlink(namespace) if namespace.exists() else "-",
        ]
    )
