"""SQL tables of the ledger, and the lookup of questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from models.core.data import text_hash
from models.core.money import NO_CAP

METADATA = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _count(name: str, **options: Any) -> "sa.Column[int]":  # noqa: ANN401
    """Return a column of money or of a number, which nothing can make less than none: a cap counts on it."""
    return sa.Column(name, sa.BigInteger, sa.CheckConstraint(f"{name} >= 0"), nullable=False, **options)


ACCOUNTS = sa.Table(
    "accounts",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("max_queries", sa.BigInteger, nullable=False),
    sa.Column("max_micro_usd", sa.BigInteger, nullable=False),
    _count("queries", default=0),
    _count("micro_usd", default=0),
    sa.Column("max_tokens", sa.BigInteger, nullable=False, server_default=str(NO_CAP)),
    _count("tokens", server_default="0"),
    _count("reopened", server_default="0"),  # its queries that were taken off it, to be asked again
)

QUERIES = sa.Table(
    "queries",
    METADATA,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("oracle", sa.Text, nullable=False),
    sa.Column("criterion", sa.Text, nullable=False),
    sa.Column("prompt_hash", sa.String(32), nullable=False),
    sa.Column("response_hash", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("raw", sa.Text),
    _count("tokens", default=0),
    _count("micro_usd"),
    sa.Column("seconds", sa.Float),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("purses", sa.Text),  # that have paid beside the account: a JSON list of names
    sa.Column("costs_money", sa.Boolean),  # false for what is simulated or was recorded
    sa.Column("holder", sa.Text),
    sa.Column("billed_on_failure", sa.Boolean, nullable=False),
    sa.Column("reserved_at", sa.Float, nullable=False),
    sa.Column("settled_at", sa.Float),
    sqlite_autoincrement=True,  # a journal names a query by its number: no other may ever have it
)

_KEY = ("oracle", "criterion", "prompt_hash", "response_hash")
KEY_AND_ID = [QUERIES.c[name] for name in (*_KEY, "id")]
Key = tuple[str, ...]
IMPORTED = "import"  # account of labels that were paid for elsewhere

LIVE = QUERIES.c.status != "lost"
sa.Index(
    "one_live_query_per_key",
    *KEY_AND_ID[:4],
    unique=True,
    sqlite_where=LIVE,
    postgresql_where=LIVE,
)

RESERVED = QUERIES.c.status == "reserved"
# found among ten million at once: few are on their way
sa.Index("reserved_queries", QUERIES.c.id, sqlite_where=RESERVED, postgresql_where=RESERVED)


def storable(text: str) -> str:
    """Return a text as every database takes it: halves of surrogate pairs and NUL as their escapes."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


@dataclass(frozen=True)
class Question:
    """One query: which oracle, by which criterion, about which tuple (x, y)."""

    oracle: str
    criterion: str
    prompt: str
    response: str

    @cached_property
    def key(self) -> Key:
        """What the ledger knows the question by."""
        return self.oracle, self.criterion, text_hash(self.prompt), text_hash(self.response)

    def columns(self) -> dict[str, str]:
        """Return the columns of this query's row that say what was asked."""
        named = dict(zip(_KEY, self.key, strict=True))
        return {**named, "prompt": storable(self.prompt), "response": storable(self.response)}


# PostgreSQL: nobody deletes what has been asked, or says that it has not been; only what was never sent is taken back. What
# brought no verdict may be given up, to be asked again.
NO_DELETE_TRIGGER_SQL = """
    CREATE OR REPLACE FUNCTION ninefold_keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF OLD.status IN ('labelled', 'quarantined') AND NEW.status <> OLD.status
                AND NOT (OLD.status = 'quarantined' AND NEW.status = 'lost') THEN
                RAISE EXCEPTION 'query % is %, and stays so: it was paid for', OLD.id, OLD.status;
            END IF;
            IF OLD.settled_at IS NOT NULL AND NEW.settled_at IS NULL THEN
                RAISE EXCEPTION 'query % is %, and kept: it may have been paid for', OLD.id, OLD.status;
            END IF;
            RETURN NEW;
        END IF;
        IF OLD.status <> 'reserved' OR OLD.settled_at IS NOT NULL THEN
            RAISE EXCEPTION 'query % is %, and kept: it may have been paid for', OLD.id, OLD.status;
        END IF;
        RETURN OLD;
    END $$;
    DROP TRIGGER IF EXISTS ninefold_keep ON queries;
    DROP TRIGGER IF EXISTS ninefold_keeps ON queries;
    CREATE TRIGGER ninefold_keeps_paid BEFORE DELETE OR UPDATE OF status, settled_at ON queries
        FOR EACH ROW EXECUTE FUNCTION ninefold_keep()
"""
TRIGGER_NAME = "ninefold_keeps_paid"  # renamed with what it does, so that an earlier version's is seen and replaced

CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("query_id", _NUMBER, primary_key=True),
    _count("micro_usd"),
    sa.Column("bought", sa.Boolean, nullable=False),
    _count("tokens", server_default="0"),
)


# Of a SQLite file: who is at work on it, and how often he has said so. Others judge by whether the number changes.
LEASES = sa.Table("leases", METADATA, sa.Column("holder", sa.Text, primary_key=True), _count("renewed"))

# A question that people answer, and what they are told; its row among the queries is held by PEOPLE until it is settled.
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("query_id", _NUMBER, primary_key=True),
    sa.Column("query_type", sa.String(16), nullable=False),
    sa.Column("guide", sa.Text, nullable=False),
    sa.Column("judgements", sa.Integer, nullable=False),
    _count("micro_usd_each"),
)

JUDGEMENTS = sa.Table(
    "judgements",
    METADATA,
    sa.Column("query_id", _NUMBER, primary_key=True),
    sa.Column("annotator", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),  # the order in which they came
    sa.Column("score", sa.Float),  # none where the annotator could not judge
    sa.Column("note", sa.Text, nullable=False),
)


_LIVE_ROWS = sa.select(
    *(QUERIES.c[name] for name in (*_KEY, "id", "status", "score", "micro_usd", "tokens", "holder", "account"))
).where(
    QUERIES.c.oracle == sa.bindparam("oracle"),
    QUERIES.c.criterion == sa.bindparam("criterion"),
    LIVE,
    # two lists, because SQLite reads every label of the oracle for one list of pairs
    QUERIES.c.prompt_hash.in_(sa.bindparam("prompts", expanding=True)),
    QUERIES.c.response_hash.in_(sa.bindparam("responses", expanding=True)),
)


def live_rows(connection: Connection, questions: Sequence[Question]) -> dict[Key, Any]:
    """Return the rows that questions have and that are not given up, by key."""
    found: dict[Key, Any] = {}
    for oracle, criterion in {question.key[:2] for question in questions}:
        prompts, responses = zip(*(q.key[2:] for q in questions if q.key[:2] == (oracle, criterion)), strict=True)
        key = {"oracle": oracle, "criterion": criterion}
        asked = {"prompts": list(set(prompts)), "responses": list(set(responses))}
        found |= {tuple(row[:4]): row for row in connection.execute(_LIVE_ROWS, {**key, **asked})}
    return found


def insert_new(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[Key, int]:
    """Write rows whose questions have no live row yet, and return the ids by key of those written.

    In the order of their keys: two writers of the same questions would wait for one another otherwise.
    """
    ordered = sorted(rows, key=lambda row: [row[name] for name in _KEY])
    return {tuple(row[:4]): int(row[4]) for row in connection.execute(_insert_new(connection.dialect.name), ordered)}


@cache
def _insert_new(dialect: str) -> Any:  # noqa: ANN401
    return insert_into(QUERIES, dialect).on_conflict_do_nothing().returning(*KEY_AND_ID)


def reactivate(connection: Connection, query_id: int) -> bool:
    """Make a given-up query (status lost) live again; false if its question was asked again meanwhile."""
    again = sa.update(QUERIES).where(QUERIES.c.id == query_id).values(status="reserved")
    try:
        with connection.begin_nested():
            connection.execute(again)
    except sa.exc.IntegrityError:
        return False
    return True


class CompiledStatement:
    """A statement put into words once for each database: to word one takes longer than to execute it.

    Its parameters are all given, by name, and plain: numbers, texts, truth values, None.
    """

    def __init__(self, statement: sa.UpdateBase) -> None:
        self._statement = statement
        self._words: dict[str, str] = {}

    def __call__(self, connection: Connection, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> int:
        """Execute it, once for each mapping, and return how many rows it has touched."""
        words = self._words.get(connection.dialect.name)
        if words is None:
            words = self._words[connection.dialect.name] = str(self._statement.compile(connection))
        return connection.exec_driver_sql(words, parameters).rowcount


def insert_into(table: sa.Table, dialect: str) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that may say ON CONFLICT, which each database spells in its own way."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
