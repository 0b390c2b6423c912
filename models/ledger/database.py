"""Open the ledger's database (SQLite or PostgreSQL), with transactions that are safe under concurrent writers."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection

from models.core.errors import ConfigError
from models.ledger.tables import LIVE, METADATA, NO_DELETE_TRIGGER_SQL, QUERIES, TRIGGER_NAME

T = TypeVar("T")

_MAKING_TABLES = 0x9F01D  # any number of our own
_AGAIN = {"40P01", "40001"}  # PostgreSQL: given up to end a deadlock, or because it could not be put in an order
_MAY_NOT = "42501"  # PostgreSQL: insufficient privilege
_ATTEMPTS = 10
# A server that cannot be reached, or is no longer there, is found out within a minute.
_SOON = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
# PostgreSQL: connection, resources (a full disk, too many clients), an operator's doing, the system, a conflict; a replica
_AWAY = ("08", "53", "57", "58", "40", "25006", "55P03")
_SQLITE_AWAY = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL),
}


# File systems that several machines write to, by the beginning of their names.
_NETWORK = (
    *(
        "nfs",
        "cifs",
        "smb",
        "sshfs",
        "ceph",
        "gluster",
        "lustre",
        "beegfs",
        "gpfs",
        "afs",
        "ocfs",
        "gfs",
        "pvfs",
        "orangefs",
    ),
    *("s3fs", "gcsfuse", "goofys", "rclone", "blobfuse", "davfs", "webdav", "juicefs"),
)

BUSY_SECONDS = 60.0  # that a SQLite file may be held by other writers
_LOOK_SECONDS = 0.2


def transact(engine: Engine, work: Callable[[Connection], T], *, wait: float = BUSY_SECONDS) -> T:
    """Return what `work` returns within a transaction, all of it kept or none.

    Done again, from the beginning, if the database gives it up to end a deadlock: two processes that settle and ask about
    the same questions may wait for one another. Other writers of a SQLite file are waited for `wait` seconds, and 0.2 more.
    """
    deadline, attempt = time.monotonic() + wait, 0
    while True:
        try:
            with engine.begin() as connection:
                return work(connection)
        except sa.exc.OperationalError as error:
            attempt += 1
            conflict = getattr(error.orig, "sqlstate", None) in _AGAIN and attempt < _ATTEMPTS
            if not conflict and not (_sqlite_code(error) == sqlite3.SQLITE_BUSY and time.monotonic() < deadline):
                raise


def _sqlite_code(error: sa.exc.DBAPIError) -> int:
    """Return SQLite's primary result code; none of its own for another database."""
    code: int = getattr(error.orig, "sqlite_errorcode", -1)
    return code & 0xFF


def reason_of(error: Exception) -> str:
    """Return what a database has said, in one line and without the statement."""
    return " ".join(str(getattr(error, "orig", error)).split())


def server_of(url: sa.URL) -> str:
    """Return where a server is: a host or a socket's folder, and a port; this machine in one spelling."""
    host = url.host or url.query.get("host") or "127.0.0.1"
    named = ",".join(host) if isinstance(host, tuple) else host
    port = url.port or url.query.get("port") or 5432
    return f"{'127.0.0.1' if named in {'localhost', '::1'} else named}:{port}"


def is_away(error: Exception) -> bool:
    """Whether a database may take later what it has not taken now: it is away, full, or busy, and nothing else is wrong."""
    if isinstance(error, sa.exc.TimeoutError | ConnectionError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_AWAY
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # the connection is gone, or was never made
        return error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return str(state).startswith(_AWAY)


def folder_of(url: sa.URL, name: str) -> Path | None:
    """Return a folder beside a database that is a file; None for any other."""
    return Path(url.database).parent / name if url.get_backend_name() == "sqlite" and url.database else None


def database_exists(url: str) -> bool:
    """Whether there is a database at a URL, as far as can be told without making one."""
    parsed = sa.make_url(url)
    return parsed.get_backend_name() != "sqlite" or bool(parsed.database and Path(parsed.database).exists())


def recent_latencies(url: str, oracle: str, *, last: int = 1000) -> list[float]:
    """Return the seconds that an oracle's last answers took, by its fingerprint; none where there is no ledger yet."""
    if not database_exists(url):
        return []
    # of live rows, whose index tells at once that an oracle has none
    took = sa.select(QUERIES.c.seconds).where(QUERIES.c.oracle == oracle, LIVE, QUERIES.c.seconds > 0)  # 0: refused
    with open_engine(url).execution_options(reads_only=True).connect() as connection:
        return [float(row.seconds) for row in connection.execute(took.order_by(QUERIES.c.id.desc()).limit(last))]


def open_engine(url: str) -> Engine:
    """Return an engine whose transactions are safe under concurrent writers, and whose database has the tables.

    Raises ConfigError for a SQLite file on a network file system, whose locks do not hold; ConnectionError naming the
    place, without its password, where no server answers; PermissionError where tables are missing and the role may not
    make them.
    """
    parsed = sa.make_url(url)
    embedded = parsed.get_backend_name() == "sqlite"
    if embedded and parsed.database:
        _check_local(Path(parsed.database).absolute())
    engine = _sqlite(parsed) if embedded else _postgresql(parsed)
    try:
        transact(engine, _make_tables)
    except sa.exc.OperationalError as error:
        if embedded:
            raise
        where = parsed.render_as_string(hide_password=True)
        raise ConnectionError(
            f"the ledger {where} does not let us in: {reason_of(error)} Start its server, or set NINEFOLD_LEDGER_URL"
        ) from error
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _MAY_NOT:
            raise
        raise PermissionError(
            f"the ledger {parsed.render_as_string(hide_password=True)} lacks tables or is of an earlier version, and "
            f"{parsed.username} may not change that: `ninefold init-storage` with NINEFOLD_LEDGER_URL of its owner"
        ) from error
    return engine


def _check_local(file: Path) -> None:
    """Raise ConfigError if a file lies on a network file system: SQLite's locks do not reach another machine's."""
    places = [part for part in psutil.disk_partitions(all=True) if file.is_relative_to(part.mountpoint)]
    if not places:  # nothing is told of mounts here
        return
    place = max(places, key=lambda part: len(Path(part.mountpoint).parts))
    if place.fstype.lower().removeprefix("fuse.").startswith(_NETWORK):
        raise ConfigError(
            f"the ledger {file} lies on {place.fstype} ({place.mountpoint}), a network file system, where SQLite's locks do "
            "not hold: set NINEFOLD_LEDGER_URL to a file on a local disk, or to a PostgreSQL database"
        )


def _make_tables(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        _number_queries_for_ever(connection)
    else:  # two that make the tables at once would get into each other's way
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING_TABLES)))
    METADATA.create_all(connection)
    _bring_up_to_date(connection)


def _number_queries_for_ever(connection: Connection) -> None:
    """Give an earlier version's table numbers that are never used again: journals name queries by them."""
    known = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'queries'"
    ).scalar()
    if known is None or "AUTOINCREMENT" in known.upper():
        return
    connection.exec_driver_sql("ALTER TABLE queries RENAME TO queries_before")
    for index in sa.inspect(connection).get_indexes("queries_before"):
        connection.exec_driver_sql(f'DROP INDEX "{index["name"]}"')
    QUERIES.create(connection)
    there = {column["name"] for column in sa.inspect(connection).get_columns("queries_before")}
    names = [column.name for column in QUERIES.columns if column.name in there]
    before = sa.select(*map(sa.column, names)).select_from(sa.table("queries_before"))
    connection.execute(sa.insert(QUERIES).from_select(names, before))
    connection.exec_driver_sql("DROP TABLE queries_before")


def _bring_up_to_date(connection: Connection) -> None:
    """Give tables, new ones or an earlier version's, what they lack: columns, indexes, a guard; what is in them stays."""
    for table in METADATA.sorted_tables:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                specification = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {specification}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    if connection.dialect.name == "postgresql":
        known = sa.text("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'queries'::regclass AND tgname = :name")
        if not connection.scalar(known, {"name": TRIGGER_NAME}):
            connection.execute(sa.text(NO_DELETE_TRIGGER_SQL))


def _postgresql(url: sa.URL) -> Engine:
    # five sessions of a process at most: one books, another looks, the others are of other threads
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=_SOON, pool_size=3, max_overflow=2)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()  # whoever holds a row for ever must not hold all others
        cursor.execute("SET lock_timeout = '15s'")
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
        cursor.close()
        connection.commit()

    return engine


def _sqlite(url: sa.URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, paramstyle="named")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: "sqlite3.Connection", _record: object) -> None:
        connection.isolation_level = None  # transactions are opened below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a label survives a power cut, not only a crash
        connection.execute(f"PRAGMA busy_timeout={1000 * _LOOK_SECONDS:.0f}")  # `transact` waits for other writers

    @sa.event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        # two readers that both go on to write would deadlock; one that only reads waits for nobody
        reads_only = connection.get_execution_options().get("reads_only")
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine
