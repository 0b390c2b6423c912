"""Budget accounts. A conditional UPDATE enforces the cap under any concurrency."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.errors import NinefoldError
from models.core.money import Amount, dollars, total
from models.ledger.liveness import PEOPLE
from models.ledger.purses import RAISED_BY, kind_of, ordered
from models.ledger.tables import ACCOUNTS, CHARGES, QUERIES, RESERVED, CompiledStatement, insert_into


class BudgetExhausted(NinefoldError):
    """The account cannot pay for one more query; `held` says that calls in flight may yet give some of it back."""

    def __init__(self, message: str, *, held: bool) -> None:
        super().__init__(message)
        self.held = held


class PurseExhausted(NinefoldError):
    """The purse of a run, a sweep or the lab cannot pay for one more query; `held` as of BudgetExhausted."""

    def __init__(self, message: str, *, purse: str, held: bool) -> None:
        super().__init__(message)
        self.purse = purse
        self.held = held


class Spent(NamedTuple):
    """An account's charges: all of them (virtual), the part paid for by it, the tokens of all, and what brought no reply."""

    queries: int
    micro_usd: int
    bought_queries: int
    bought_micro_usd: int
    tokens: int
    lost_queries: int
    lost_micro_usd: int


_COUNTED = ("queries", "micro_usd", "tokens")
_MORE = {name: ACCOUNTS.c[name] + sa.bindparam(f"more_{name}", type_=sa.BigInteger) for name in _COUNTED}
_MINE = sa.update(ACCOUNTS).where(ACCOUNTS.c.name == sa.bindparam("account")).values(_MORE)
_ADJUST = CompiledStatement(_MINE)
_TAKE = CompiledStatement(_MINE.where(*(_MORE[name] <= ACCOUNTS.c[f"max_{name}"] for name in _COUNTED)))
_CHARGE = CompiledStatement(sa.insert(CHARGES))
_RECHARGE = CompiledStatement(
    sa.update(CHARGES)
    .where(CHARGES.c.account == sa.bindparam("by"), CHARGES.c.query_id == sa.bindparam("of"))
    .values(micro_usd=sa.bindparam("price"), tokens=sa.bindparam("used"))
)


def open_account(connection: Connection, name: str, *, queries: int, micro_usd: int, tokens: int) -> None:
    """Make the account, or set new caps on it; what it has spent stays."""
    caps = {"max_queries": queries, "max_micro_usd": micro_usd, "max_tokens": tokens}
    opened = insert_into(ACCOUNTS, connection.dialect.name).values(name=name, queries=0, micro_usd=0, tokens=0, **caps)
    connection.execute(opened.on_conflict_do_update(index_elements=["name"], set_=caps))


def afford(connection: Connection, accounts: Sequence[str], prices: Sequence[Amount]) -> list[str]:
    """Charge accounts for each query whose price the caps of all still allow, in order; else say which one refuses.

    All of them pay for a query, or none.
    """
    refusing = _take(connection, accounts, len(prices), total(prices)) if prices else ""
    if not refusing or len(prices) == 1:
        return [refusing] * len(prices)
    return [_take(connection, accounts, 1, price) for price in prices]


def _take(connection: Connection, accounts: Sequence[str], queries: int, price: Amount) -> str:
    """Charge every account, and return ""; or none of them, and return the one that refuses."""
    for place, account in enumerate(accounts):
        if _TAKE(connection, _more(account, queries, price)) != 1:
            for charged in accounts[:place]:
                adjust(connection, charged, queries=-queries, by=price.negative)
            return account
    return ""


class Changes:
    """What a transaction changes of accounts and their purses: summed, and then done in one order.

    One statement for each of them, however many queries it is about, and no two transactions wait for one another.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, tuple[int, Amount]] = {}
        self._purses: dict[str, tuple[int, Amount]] = {}

    def add(self, account: str, purses: str | None, *, queries: int, by: Amount) -> None:
        """Change what an account has spent, and what the purses in a row's `purses` have paid."""
        _sum(self._accounts, account, queries, by)
        for purse in json.loads(purses) if purses else ():
            _sum(self._purses, purse, queries, by)

    def apply(self, connection: Connection) -> None:
        """Change them: the accounts, then the purses."""
        for changed, names in ((self._accounts, sorted(self._accounts)), (self._purses, ordered([*self._purses]))):
            for name in names:
                queries, by = changed[name]
                if queries or any(by):
                    adjust(connection, name, queries=queries, by=by)


def _sum(sums: dict[str, tuple[int, Amount]], name: str, queries: int, by: Amount) -> None:
    before, amount = sums.get(name, (0, Amount(0, 0)))
    sums[name] = before + queries, amount.plus(by)


@contextmanager
def changing(connection: Connection, changes: Changes | None) -> Iterator[Changes]:
    """Yield the changes of the caller, who applies them; or new ones, which are applied at the end."""
    if changes is not None:
        yield changes
        return
    yield (own := Changes())
    own.apply(connection)


def adjust(connection: Connection, account: str, *, queries: int, by: Amount) -> None:
    """Change what an account has spent, caps or no caps: the difference between a ceiling and a real price."""
    _ADJUST(connection, _more(account, queries, by))


def _more(account: str, queries: int, by: Amount) -> dict[str, str | int]:
    return {"account": account, "more_queries": queries, "more_micro_usd": by.micro_usd, "more_tokens": by.tokens}


def exhausted(connection: Connection, account: str, price: Amount) -> BudgetExhausted | PurseExhausted:
    """Return why one more query at this price does not fit; raise KeyError if there is no such account or purse."""
    row = connection.execute(sa.select(ACCOUNTS).where(ACCOUNTS.c.name == account)).mappings().first()
    if row is None:
        raise KeyError(f"account {account!r} is not open: call open_account first")
    if kind := kind_of(account):
        held = _any(connection, paying(account), QUERIES.c.holder != PEOPLE)  # people may take weeks
        return PurseExhausted(
            f"the purse {account!r} has paid {dollars(row['micro_usd'])} of {dollars(row['max_micro_usd'])}; one more query "
            f"at {dollars(price.micro_usd)} does not fit"
            f"{', though calls in flight may give some back' if held else ''}: raise {RAISED_BY[kind]}",
            purse=account,
            held=held,
        )
    tokens = f", {row['tokens']} of {row['max_tokens']} tokens" if price.tokens else ""
    return BudgetExhausted(
        f"account {account!r} has spent {row['queries']} of {row['max_queries']} queries, "
        f"{dollars(row['micro_usd'])} of {dollars(row['max_micro_usd'])}{tokens}; one more at {dollars(price.micro_usd)} "
        f"{f'and {price.tokens} tokens ' if price.tokens else ''}"
        "does not fit: raise labelling.queries, labelling.max_micro_usd or labelling.max_tokens",
        held=_any(connection, QUERIES.c.account == account),
    )


def paying(account: str) -> "sa.ColumnElement[bool]":
    """Whether an account, or a purse of this name, has paid for a query."""
    if not kind_of(account):
        return QUERIES.c.account == account
    return QUERIES.c.purses.contains(json.dumps(account), autoescape=True)


def _any(connection: Connection, *which: "sa.ColumnElement[bool]") -> bool:
    """Whether any of these queries is on its way."""
    return connection.execute(sa.select(QUERIES.c.id).where(RESERVED, *which).limit(1)).first() is not None


def charge(connection: Connection, account: str, prices: Sequence[tuple[int, Amount]], *, bought: bool) -> None:
    """Write down, by query id, what an account has been charged for."""
    rows = [
        {
            "account": account,
            "query_id": query_id,
            "micro_usd": price.micro_usd,
            "tokens": price.tokens,
            "bought": bought,
        }
        for query_id, price in prices
    ]
    if rows:
        _CHARGE(connection, rows)


def recharge(connection: Connection, account: str, prices: Sequence[tuple[int, Amount]]) -> None:
    """Charge other prices for an account's queries, by id, than were charged before.

    Nobody else has been charged for them: a query is found by others only once it is settled.
    """
    changed = [{"by": account, "of": i, "price": price.micro_usd, "used": price.tokens} for i, price in prices]
    _RECHARGE(connection, changed)


def charged_for(connection: Connection, account: str, query_ids: Sequence[int]) -> dict[int, bool]:
    """Return which of the queries an account has been charged for, and whether it has bought them."""
    mine = sa.select(CHARGES.c.query_id, CHARGES.c.bought).where(CHARGES.c.account == account)
    found = connection.execute(mine.where(CHARGES.c.query_id.in_(query_ids))) if query_ids else ()
    return {query_id: bool(bought) for query_id, bought in found}


def spent(connection: Connection, account: str) -> Spent:
    """Return what an account has been charged; zeros for an account that was never opened."""
    price, lost = CHARGES.c.micro_usd, QUERIES.c.status == "lost"
    of_bought, of_lost = (sa.case((which, price), else_=0) for which in (CHARGES.c.bought, lost))
    every, bought, gone = (sa.func.count(sa.case((which, 1))) for which in (sa.true(), CHARGES.c.bought, lost))
    sums = [sa.func.coalesce(sa.func.sum(what), 0) for what in (price, of_bought, CHARGES.c.tokens, of_lost)]
    counted = sa.select(every, sums[0], bought, sums[1], sums[2], gone, sums[3])
    both = CHARGES.join(QUERIES, CHARGES.c.query_id == QUERIES.c.id)
    row = connection.execute(counted.select_from(both).where(CHARGES.c.account == account)).one()
    return Spent(*(int(value) for value in row))
