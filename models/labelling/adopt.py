"""Take over labels that the ledger holds under another identity of the same oracle: nothing is paid for them again."""

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from models.core.data import SETTLED
from models.core.errors import ConfigError
from models.ledger.ledger import Ledger
from models.ledger.tables import QUERIES, Question

_ANSWER = ("status", "score", "raw", "tokens", "micro_usd")


class Holding(NamedTuple):
    """What the ledger holds of one oracle by one criterion: how many labels, and what they cost."""

    oracle: str
    criterion: str
    labels: int
    micro_usd: int


def holdings(ledger: Ledger) -> list[Holding]:
    """Return what the ledger holds, the most labels first."""
    count, paid = sa.func.count(), sa.func.sum(QUERIES.c.micro_usd)
    named = sa.select(QUERIES.c.oracle, QUERIES.c.criterion, count, paid).where(QUERIES.c.status.in_(SETTLED))
    grouped = named.group_by(QUERIES.c.oracle, QUERIES.c.criterion).order_by(count.desc(), QUERIES.c.oracle)
    with ledger.reader.connect() as connection:
        return [Holding(oracle, criterion, n, int(cost)) for oracle, criterion, n, cost in connection.execute(grouped)]


def labels_of(ledger: Ledger, oracle: str, *, criterion: str) -> list[tuple[Question, dict[str, object]]]:
    """Return the settled labels of an oracle by a criterion, as `import_labels` takes them. Raises ConfigError if none."""
    columns = [QUERIES.c[name] for name in ("prompt", "response", *_ANSWER)]
    wanted = sa.select(*columns).where(
        QUERIES.c.oracle == oracle, QUERIES.c.criterion == criterion, QUERIES.c.status.in_(SETTLED)
    )
    with ledger.reader.connect() as connection:
        rows = connection.execute(wanted.order_by(QUERIES.c.id)).mappings().all()
    if not rows:
        raise ConfigError(
            f"the ledger holds no label of {oracle!r} by criterion {criterion!r}: leave out --from to see what it holds"
        )
    return [
        (Question(oracle, criterion, row["prompt"], row["response"]), {name: row[name] for name in _ANSWER})
        for row in rows
    ]


def adopt(ledger: Ledger, labels: Sequence[tuple[Question, dict[str, object]]], oracle: str) -> int:
    """Copy labels for another identity of their oracle, and return how many it did not have; nobody pays for them."""
    return ledger.import_labels(
        [
            (Question(oracle, question.criterion, question.prompt, question.response), answer)
            for question, answer in labels
        ]
    )
