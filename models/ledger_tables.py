"""The ledger's tables, how a question is found in them, their connection, and who holds a reservation."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from models.preference import text_hash

# A reservation whose holder cannot be seen (another machine) is given up after this long.
LEASE_SECONDS = 900.0
_CLOCK_STEP_SECONDS = 60.0
_MAKING_TABLES = 0x9F01D  # any number of our own

METADATA = sa.MetaData()

ACCOUNTS = sa.Table(
    "accounts",
    METADATA,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("max_queries", sa.BigInteger, nullable=False),
    sa.Column("max_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("queries", sa.BigInteger, nullable=False, default=0),
    sa.Column("micro_usd", sa.BigInteger, nullable=False, default=0),
)

QUERIES = sa.Table(
    "queries",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("oracle", sa.String(100), nullable=False),
    sa.Column("criterion", sa.String(100), nullable=False),
    sa.Column("prompt_hash", sa.String(32), nullable=False),
    sa.Column("response_hash", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("raw", sa.Text),
    sa.Column("tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("micro_usd", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("account", sa.String(200), nullable=False),
    sa.Column("holder", sa.String(200)),
    sa.Column("paid_on_loss", sa.Boolean, nullable=False),
    sa.Column("reserved_at", sa.Float, nullable=False),
    sa.Column("settled_at", sa.Float),
)

LIVE = QUERIES.c.status != "lost"
sa.Index(
    "one_live_query_per_key",
    QUERIES.c.oracle,
    QUERIES.c.criterion,
    QUERIES.c.prompt_hash,
    QUERIES.c.response_hash,
    unique=True,
    sqlite_where=LIVE,
    postgresql_where=LIVE,
)


@dataclass(frozen=True)
class Question:
    """One query: which expert, by which criterion, about which tuple (x, y)."""

    oracle: str
    criterion: str
    prompt: str
    response: str

    def columns(self) -> dict[str, str]:
        """Return the columns of this query's row that say what was asked."""
        return {
            "oracle": self.oracle,
            "criterion": self.criterion,
            "prompt_hash": text_hash(self.prompt),
            "response_hash": text_hash(self.response),
            "prompt": self.prompt,
            "response": self.response,
        }

    def match(self) -> sa.ColumnElement[bool]:
        """Return the condition that selects this query's rows."""
        return sa.and_(
            QUERIES.c.oracle == self.oracle,
            QUERIES.c.criterion == self.criterion,
            QUERIES.c.prompt_hash == text_hash(self.prompt),
            QUERIES.c.response_hash == text_hash(self.response),
        )


CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("account", sa.String(200), primary_key=True),
    sa.Column("query_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("micro_usd", sa.BigInteger, nullable=False),
    sa.Column("bought", sa.Boolean, nullable=False),
)


def asked_again(query_id: int) -> sa.Select[Any]:
    """Select the queries that ask what a given-up one (status lost) has asked, and are not given up themselves."""
    other = QUERIES.alias()
    same = [QUERIES.c[name] == other.c[name] for name in ("oracle", "criterion", "prompt_hash", "response_hash")]
    return sa.select(other.c.id).where(
        QUERIES.c.id == query_id, QUERIES.c.status == "lost", other.c.status != "lost", *same
    )


def open_engine(url: str) -> Engine:
    """Return an engine whose transactions are safe under concurrent writers, and whose database has the tables."""
    parsed = sa.make_url(url)
    embedded = parsed.get_backend_name() == "sqlite"
    engine = _sqlite(parsed) if embedded else sa.create_engine(parsed, pool_pre_ping=True)
    with engine.begin() as connection:
        if not embedded:  # two that make the tables at once would get into each other's way
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING_TABLES)))
        METADATA.create_all(connection)
    return engine


def _sqlite(url: sa.URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401
        connection.isolation_level = None  # transactions are opened below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a label survives a power cut, not only a crash

    @sa.event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # two readers that both go on to write would deadlock

    return engine


def insert_into(table: sa.Table, engine: Engine) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that may say ON CONFLICT, which each database spells in its own way."""
    return sqlite.insert(table) if engine.dialect.name == "sqlite" else postgresql.insert(table)


def this_process() -> str:
    """Return a holder that no other process, container or boot is mistaken for."""
    return f"{_place()}|{os.getpid()}|{psutil.Process().create_time():.0f}"


def alive(holder: str, reserved_at: float) -> bool:
    """Whether a holder may still settle: its process runs here, or it is out of sight and its lease has not ended."""
    place, pid, started = holder.rsplit("|", 2)
    host, boot, _ = place.split("/", 2)
    here = _place()
    if place != here:
        rebooted = host == socket.gethostname() and boot != here.split("/", 2)[1]
        return not rebooted and time.time() - reserved_at < LEASE_SECONDS
    try:
        # the start time is computed from the wall clock, which may be stepped
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < _CLOCK_STEP_SECONDS
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
