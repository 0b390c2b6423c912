"""Who holds a reservation, and whether it lives: a process here by its number, one elsewhere by its database session."""

import hashlib
import os
import socket
import time
from collections.abc import Container
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

PEOPLE = "people"  # who answer in their own time: what they hold is never given up
# A reservation whose holder cannot be seen at all (another machine, and SQLite) is given up after this long.
LEASE_SECONDS = 900.0
GRACE_SECONDS = 20.0  # that a holder may be without a session, as when the database was started anew
_CHECK_SECONDS = 10.0
_CLOCK_STEP_SECONDS = 60.0
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
    return f"{_place()}|{process}|{psutil.Process(process).create_time():.0f}"


class Presence:
    """A session in the ledger's PostgreSQL that says that this process lives, and ends with it, however that ends."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._session: sa.Connection | None = None
        self._holder, self._checked, self._guard = "", 0.0, Lock()

    def hold(self) -> None:
        """Be present, again if the session has ended since; looked at every ten seconds at most."""
        with self._guard:
            if self._holder == this_process() and time.monotonic() - self._checked < _CHECK_SECONDS:
                return
            if self._holder != this_process() or not self._there():
                self._session, self._holder = self._sessions.connect(), this_process()
                for statement in KEEPALIVE:
                    self._session.exec_driver_sql(statement)
                # shared: a process may have several ledgers open
                self._session.execute(sa.select(sa.func.pg_advisory_lock_shared(_number(self._holder))))
            self._checked = time.monotonic()

    def _there(self) -> bool:
        with suppress(sa.exc.DBAPIError):
            return self._session is not None and self._session.scalar(sa.select(1)) == 1
        return False


def present(connection: Connection) -> Container[str] | None:
    """Return who has a session in the database; None where there are no sessions (SQLite)."""
    if connection.dialect.name != "postgresql":
        return None
    held = sa.text(
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return _Numbered(frozenset(connection.scalars(held)))


class _Numbered:
    """Holders, by the numbers of their locks."""

    def __init__(self, numbers: frozenset[int]) -> None:
        self._numbers = numbers

    def __contains__(self, holder: object) -> bool:
        return _number(str(holder)) in self._numbers


def _number(holder: str) -> int:
    return int.from_bytes(hashlib.sha256(f"holder {holder}".encode()).digest()[:8], signed=True)


def alive(holder: str, reserved_at: float, there: Container[str] | None = None) -> bool:
    """Whether a holder may still settle what it reserved at a time.

    People always; a process of this place while it runs; one elsewhere while it is among those who are `there`, or, where
    that is not known, while its lease lasts.
    """
    if holder == PEOPLE:
        return True
    place, pid, started = holder.rsplit("|", 2)
    host, boot, _ = place.split("/", 2)
    here = _place()
    if place != here:
        rebooted = host == socket.gethostname() and boot != here.split("/", 2)[1]
        age = time.time() - reserved_at
        return not rebooted and (age < LEASE_SECONDS if there is None else holder in there or age < GRACE_SECONDS)
    try:
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, and whoever started it has not looked
            return False
        # the start time is computed from the wall clock, which may be stepped
        return abs(process.create_time() - float(started)) < _CLOCK_STEP_SECONDS
    except psutil.NoSuchProcess:
        return False


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
