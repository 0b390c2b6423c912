"""Liveness of reservation holders: by process on this machine, by database session on others."""

import os
import socket
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from uuid import uuid4

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.processes import is_alive, start_of
from models.ledger.sessions import Heartbeat, SessionLock, number_of

PEOPLE = "people"  # who answer in their own time: what they hold is never given up
# A reservation whose holder cannot be seen at all (another machine, and SQLite) is given up after this long.
LEASE_SECONDS = 900.0
GRACE_SECONDS = 20.0  # that a holder is seen to be absent before it is given up: its session may have to be opened anew
_WITH_SESSION = "+"  # of a place, as earlier versions do not write it, whose holders have no session


def this_process() -> str:
    """Return a holder that no other process, container or boot is mistaken for."""
    return _holder(os.getpid())


@cache  # a forked child has an id of its own
def _holder(process: int) -> str:
    return f"{_place()}{_WITH_SESSION}|{process}|{start_of(psutil.Process(process)):.2f}"


_labelling: set[str] = set()  # holders of this process whose labelling goes on


@contextmanager
def labelling() -> Iterator[str]:
    """Yield a holder that lives as long as the block: what it has not booked then is nobody's, though the process lives."""
    holder = f"{this_process()}|{uuid4().hex[:8]}"
    _labelling.add(holder)
    try:
        yield holder
    finally:
        _labelling.discard(holder)


class SessionHeartbeat:
    """Shared lock in the ledger's PostgreSQL that says that this process lives; it ends with the ledger that it is `of`."""

    def __init__(self, url: sa.URL, *, of: object) -> None:
        self._url, self._guard = url, Lock()
        self._heartbeat: Heartbeat | None = None
        weakref.finalize(of, self.end).atexit = False  # the server sees the end of a process by itself

    def hold(self) -> None:
        """Be present from now on, until `end`."""
        with self._guard:
            if self._heartbeat is None:  # a process may have several ledgers open
                heartbeat = Heartbeat(SessionLock(self._url, f"holder {this_process()}", shared=True))
                heartbeat.start()
                self._heartbeat = heartbeat

    def end(self) -> None:
        """Be present no longer."""
        with self._guard:
            if self._heartbeat is not None:
                self._heartbeat.stop()


def dead_holders(connection: Connection, holders: Iterable[str]) -> frozenset[str] | None:
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
    return frozenset(holder for holder in elsewhere if number_of(f"holder {_process_of(holder)}") not in numbers)


_first_absent: dict[str, float] = {}  # when this process first saw that a holder was absent


def alive(holder: str, reserved_at: float, away: frozenset[str] | None = None) -> bool:
    """Whether a holder may still settle what it reserved at a time.

    People always; a process of this place while it runs; one elsewhere until it has been `away` for some time, or, where
    that cannot be known, while its lease lasts.
    """
    if holder == PEOPLE:
        return True
    if holder.startswith(f"{this_process()}|"):
        return holder in _labelling
    marked, pid, started = _process_of(holder).split("|")
    place, here = marked.removesuffix(_WITH_SESSION), _place()
    if place != here:
        return _lives_elsewhere(holder, reserved_at, away if place != marked else None)
    return is_alive((int(pid), float(started)))


def described(holder: str) -> str:
    """Return whom a holder is, for people."""
    if holder == PEOPLE:
        return "people, who have not answered yet"
    place, pid, _ = _process_of(holder).split("|")
    return f"process {pid} on {place.partition('/')[0]}"


def _process_of(holder: str) -> str:
    """Return a holder's process, without its labelling."""
    return "|".join(holder.split("|")[:3])


def _lives_elsewhere(holder: str, reserved_at: float, away: frozenset[str] | None) -> bool:
    if away is None:
        host, boot, _ = holder.split("/", 2)
        rebooted = host == socket.gethostname() and boot != _place().split("/", 2)[1]
        return not rebooted and time.time() - reserved_at < LEASE_SECONDS
    if holder not in away:
        _first_absent.pop(holder, None)
        return True
    return time.monotonic() - _first_absent.setdefault(holder, time.monotonic()) < GRACE_SECONDS


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
