"""Liveness of reservation holders: by process on this machine; on others by database session, or by a lease they renew.

Nothing here compares the clocks of two machines, or the wall clock at two times: who cannot be seen is judged by whether
anything about him has changed while this process looked.
"""

import os
import socket
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from uuid import uuid4

import psutil
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from models.core.processes import is_alive, start_of
from models.ledger.database import transact
from models.ledger.sessions import Heartbeat, SessionLock, number_of
from models.ledger.tables import LEASES

PEOPLE = "people"  # who answer in their own time: what they hold is never given up
RENEW_SECONDS = 20.0  # between two renewals of a lease, in a ledger without sessions (SQLite)
LEASE_SECONDS = 300.0  # that a lease elsewhere is seen unchanged before its holder is given up
GRACE_SECONDS = 20.0  # that a holder is seen to be absent before it is given up: its session may have to be opened anew


def this_process() -> str:
    """Return a holder that no other process, container or boot is mistaken for."""
    return _holder(os.getpid())


@cache  # a forked child has an id of its own
def _holder(process: int) -> str:
    return f"{_place()}|{process}|{start_of(psutil.Process(process)):.2f}"


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


class Lease:
    """A number in a SQLite ledger that this process raises while it lives; it ends with the ledger that it is `of`."""

    def __init__(self, engine: sa.Engine, *, of: object) -> None:
        self._engine, self._guard, self._over = engine, Lock(), Event()
        self._process = 0  # whose thread renews it: a forked child has none
        weakref.finalize(of, self.end).atexit = False

    def hold(self) -> None:
        """Renew it from now on, until `end`."""
        with self._guard:
            if self._process == os.getpid() or self._over.is_set():
                return
            transact(self._engine, _forget_dead)
            self._renew()
            Thread(target=self._renew_until_over, name="lease", daemon=True).start()
            self._process = os.getpid()

    def end(self) -> None:
        """Renew it no longer."""
        self._over.set()

    def _renew_until_over(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(sa.exc.SQLAlchemyError):  # the disk is full, or another writes for long: the next time
                self._renew()

    def _renew(self) -> None:
        mine = sqlite.insert(LEASES).values(holder=this_process(), renewed=1)
        raised = mine.on_conflict_do_update(index_elements=["holder"], set_={"renewed": LEASES.c.renewed + 1})
        transact(self._engine, lambda connection: connection.execute(raised))


def _forget_dead(connection: Connection) -> None:
    """Delete the leases of processes of this place that are no more."""
    known = connection.scalars(
        sa.select(LEASES.c.holder).where(LEASES.c.holder.startswith(f"{_place()}|", autoescape=True))
    )
    gone = [holder for holder in known if not may_settle(holder, frozenset())]
    connection.execute(sa.delete(LEASES).where(LEASES.c.holder.in_(gone)))


class Watch:
    """What one process has seen of holders elsewhere: since when each shows the same sign of life."""

    def __init__(self) -> None:
        self._signs: dict[str, tuple[int, float]] = {}

    def dead(self, connection: Connection, holders: Iterable[str]) -> frozenset[str]:
        """Return which of the holders elsewhere are given up: without a session, or a renewal, for as long as was looked."""
        here = _place()
        elsewhere = {holder for holder in holders if holder != PEOPLE and not holder.startswith(f"{here}|")}
        if not elsewhere:
            self._signs.clear()
            return frozenset()
        if connection.dialect.name == "postgresql":
            present = _sessions(connection)
            signs = {holder: int(number_of(f"holder {_process_of(holder)}") in present) for holder in elsewhere}
            silent = {holder for holder, sign in signs.items() if not sign}
            patience = GRACE_SECONDS
        else:
            renewed = dict(connection.execute(sa.select(LEASES.c.holder, LEASES.c.renewed)).tuples().all())
            signs = {holder: renewed.get(_process_of(holder), 0) for holder in elsewhere}
            silent, patience = elsewhere, LEASE_SECONDS
        now = time.monotonic()
        same = {holder: self._signs.get(holder, (None, now)) for holder in elsewhere}
        self._signs = {
            holder: (sign, same[holder][1] if same[holder][0] == sign else now) for holder, sign in signs.items()
        }
        gone = {holder for holder in silent if now - self._signs[holder][1] >= patience}
        return frozenset(gone | {holder for holder in elsewhere if _has_rebooted(holder, here)})


def _sessions(connection: Connection) -> set[int]:
    held = sa.text(
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return set(connection.scalars(held))


def _has_rebooted(holder: str, here: str) -> bool:
    """Whether a holder was of this very machine, and of an earlier boot."""
    (host, boot), (our_host, our_boot) = (place.split("/")[:2] for place in (holder, here))
    return host == our_host and boot != our_boot


def may_settle(holder: str, dead: frozenset[str]) -> bool:
    """Whether a holder may still settle what it has reserved.

    People always; a process of this place while it runs, and its labelling goes on; one elsewhere unless it is known `dead`.
    """
    if holder == PEOPLE:
        return True
    if holder.startswith(f"{this_process()}|"):
        return holder in _labelling
    place, pid, started = _process_of(holder).split("|")
    return holder not in dead if place != _place() else is_alive((int(pid), float(started)))


def described(holder: str) -> str:
    """Return whom a holder is, for people."""
    if holder == PEOPLE:
        return "people, who have not answered yet"
    place, pid, _ = _process_of(holder).split("|")
    return f"process {pid} on {place.partition('/')[0]}"


def _process_of(holder: str) -> str:
    """Return a holder's process, without its labelling."""
    return "|".join(holder.split("|")[:3])


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
