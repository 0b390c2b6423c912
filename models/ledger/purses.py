"""Purses: budgets of a run, of a sweep and of the whole lab, above the accounts; only what is bought now is charged to them.

A purse is an account by another name: what stands in the ledger already costs it nothing.
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from models.core.errors import ConfigError
from models.core.money import MICRO, NO_CAP, MicroUsd
from models.core.registry import Frozen
from models.ledger.database import database_exists, open_engine, transact
from models.ledger.tables import ACCOUNTS, IMPORTED, QUERIES, insert_into

# In this order they are charged, everywhere: two transactions then never wait for one another. What most share comes last.
RAISED_BY = {
    "run": "labelling.max_micro_usd or evaluation.max_micro_usd",
    "sweep": "max_micro_usd of the sweep",
    "lab": "NINEFOLD_BUDGET",
}
_KINDS = list(RAISED_BY)
_PERIODS = ("hour", "day", "week", "month")
_WRITTEN = re.compile(
    rf"\$?\s*(\d+(?:\.\d{{1,6}})?)\s*(?:USD)?\s*(?:/\s*({'|'.join(_PERIODS)}))?", re.IGNORECASE | re.ASCII
)


class Purse(Frozen):
    """A budget that a labelling pays from beside its account, by the name of its account in the ledger."""

    name: str
    micro_usd: MicroUsd


class Period(NamedTuple):
    """The lab's purse at a time: its name, and when it began, in seconds."""

    purse: str
    since: float


class Budget(NamedTuple):
    """The most that the lab pays in each hour, day, week (from Monday) or month, by UTC; or ever, without a period."""

    micro_usd: int
    period: str = ""

    def at(self, seconds: float) -> Period:
        """Return the purse that pays at a time."""
        now = datetime.fromtimestamp(seconds, UTC)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        week = day - timedelta(days=day.weekday())
        purses = {
            "hour": (f"{now:%Y-%m-%dT%H}", now.replace(minute=0, second=0, microsecond=0)),
            "day": (f"{now:%Y-%m-%d}", day),
            "week": (f"{week:%G-W%V}", week),
            "month": (f"{now:%Y-%m}", day.replace(day=1)),
        }
        if not self.period:
            return Period("lab", 0.0)
        name, began = purses[self.period]
        return Period(f"lab {name}", began.timestamp())


def parse_budget(text: str) -> Budget:
    """Read a budget such as `50 USD / month`, `20/day` or `100`; raise ConfigError if it is none."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"NINEFOLD_BUDGET={text!r} is no budget: write dollars and, if it begins anew, {', '.join(_PERIODS)}, as in "
            "50 USD / month, 20/day or 100"
        )
    micro_usd = int(Decimal(found[1]) * MICRO)
    if micro_usd >= NO_CAP:
        raise ConfigError(f"NINEFOLD_BUDGET={text!r} is more than can be counted: leave it out for no limit")
    return Budget(micro_usd, (found[2] or "").lower())


def kind_of(account: str) -> str:
    """Return which purse an account is: run, sweep or lab; "" for an ordinary account."""
    kind = account.partition(" ")[0]
    return kind if kind in RAISED_BY else ""


def ordered(names: Sequence[str]) -> tuple[str, ...]:
    """Return purses in the order in which they are charged."""
    return tuple(sorted(set(names), key=lambda name: (_KINDS.index(kind_of(name)), name)))


class LabPurse:
    """The lab's way to pay: its budget's purse of the moment, opened where a period begins."""

    def __init__(self, engine: Engine, budget: Budget | None) -> None:
        self._engine, self._budget, self._opened = engine, budget, ""

    def payers(self, paid_by: Sequence[str], wait: float) -> dict[bool, tuple[str, ...]]:
        """Return the purses of a query, beside its own the lab's, by whether it costs money."""
        own = ordered(paid_by)
        if self._budget is None:
            return {True: own, False: own}
        period, cap = self._budget.at(time.time()), self._budget.micro_usd
        if period.purse != self._opened:  # in a transaction of its own: accounts are taken first, everywhere
            transact(self._engine, lambda connection: _open(connection, period, cap), wait=wait)
            self._opened = period.purse
        return {True: ordered([*own, period.purse]), False: own}


def paid_since(connection: Connection, since: float) -> tuple[int, int, int]:
    """Return the queries, micro-dollars and tokens that have been bought since a time, on their way or settled."""
    sums = (sa.func.coalesce(sa.func.sum(QUERIES.c[name]), 0) for name in ("micro_usd", "tokens"))
    queries, micro_usd, tokens = connection.execute(
        sa.select(sa.func.count(), *sums).where(
            QUERIES.c.reserved_at >= since,
            QUERIES.c.account != IMPORTED,
            QUERIES.c.costs_money.is_distinct_from(False),  # an earlier version did not say
        )
    ).one()
    return int(queries), int(micro_usd), int(tokens)


class Left(NamedTuple):
    """What a purse has paid (None where nobody has opened it), and what the lab's has left (None without a budget)."""

    paid: int | None
    lab: int | None


def look_into(url: str, purse: str, budget: Budget | None) -> Left:
    """Return what has been paid from a purse, and what is left of the lab's at this moment, and open neither."""
    if not database_exists(url):
        return Left(None, None if budget is None else budget.micro_usd)
    paid = sa.select(ACCOUNTS.c.micro_usd)
    with open_engine(url).execution_options(reads_only=True).connect() as connection:
        own = connection.scalar(paid.where(ACCOUNTS.c.name == purse))
        if budget is None:
            return Left(own, None)
        period = budget.at(time.time())
        of_lab = connection.scalar(paid.where(ACCOUNTS.c.name == period.purse))
        if of_lab is None:
            of_lab = paid_since(connection, period.since)[1]
    return Left(own, max(budget.micro_usd - of_lab, 0))


def _open(connection: Connection, period: Period, micro_usd: int) -> None:
    """Make the lab's purse of a period, with what has been paid in it already; or set the cap of the one there is."""
    already = (0, 0, 0)
    if connection.scalar(sa.select(ACCOUNTS.c.name).where(ACCOUNTS.c.name == period.purse)) is None:
        already = paid_since(connection, period.since)
    counted = dict(zip(("queries", "micro_usd", "tokens"), already, strict=True))
    caps = {"max_queries": NO_CAP, "max_micro_usd": micro_usd, "max_tokens": NO_CAP}
    opened = insert_into(ACCOUNTS, connection.dialect.name).values(name=period.purse, **counted, **caps)
    connection.execute(opened.on_conflict_do_update(index_elements=["name"], set_=caps))
