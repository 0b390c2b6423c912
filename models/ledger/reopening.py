"""Queries that brought no answer, and how they are given up so that they can be asked again."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.money import Amount
from models.ledger import accounts
from models.ledger.ledger import Ledger
from models.ledger.tables import ACCOUNTS, CHARGES, KEY_AND_ID, QUERIES


def unanswered(ledger: Ledger, account: str) -> list[dict[str, Any]]:
    """Return the queries that an account is charged for, and that nobody has an answer to: quarantined, or lost."""
    other = QUERIES.alias()
    asked_since = sa.exists().where(*(other.c[key.name] == key for key in KEY_AND_ID[:4]), other.c.status != "lost")
    gone = sa.or_(QUERIES.c.status == "quarantined", sa.and_(QUERIES.c.status == "lost", ~asked_since))
    charged = QUERIES.c.id.in_(sa.select(CHARGES.c.query_id).where(CHARGES.c.account == account))
    with ledger.reader.connect() as connection:
        found = connection.execute(sa.select(QUERIES).where(charged, gone).order_by(QUERIES.c.id))
        return [dict(row) for row in found.mappings()]


def reopen(ledger: Ledger, query_ids: Sequence[int], *, to: str) -> int:
    """Give up quarantined queries, and lost ones, so that they can be asked again; return how many there were.

    What they have cost stays counted, on the account `to`, which has to be open. Whoever was charged for them, the buyer and
    those that found them in the ledger, has room for the new answers.
    """
    which = QUERIES.c.id.in_(sa.bindparam("ids", expanding=True)), QUERIES.c.status.in_(("quarantined", "lost"))

    def work(connection: Connection) -> int:
        ids = list(connection.scalars(sa.select(QUERIES.c.id).where(*which), {"ids": list(query_ids)}))
        others = CHARGES.c.query_id.in_(ids), CHARGES.c.account != to
        charges = connection.execute(sa.select(CHARGES).where(*others)).all()
        connection.execute(sa.delete(CHARGES).where(*others))
        changes = accounts.Changes()
        for charged in charges:
            price = Amount(charged.micro_usd, charged.tokens)
            changes.add(charged.account, None, queries=-1, by=price.negative)
            if charged.bought:
                accounts.charge(connection, to, [(charged.query_id, price)], bought=True)
                changes.add(to, None, queries=1, by=price)
        changes.apply(connection)
        for name, count in sorted(Counter(charged.account for charged in charges).items()):
            mine = sa.update(ACCOUNTS).where(ACCOUNTS.c.name == name)
            connection.execute(mine.values(reopened=ACCOUNTS.c.reopened + count))
        connection.execute(sa.update(QUERIES).where(QUERIES.c.id.in_(ids)).values(status="lost", account=to))
        return len(ids)

    return ledger.transact(work)


def times_reopened(ledger: Ledger, account: str) -> int:
    """Return how many queries were taken off an account to be asked again; 0 for one that was never opened."""
    with ledger.reader.connect() as connection:
        return connection.scalar(sa.select(ACCOUNTS.c.reopened).where(ACCOUNTS.c.name == account)) or 0
