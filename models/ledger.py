"""Every oracle query bought: reserve → call → settle, transactional, so that a paid label is never bought again.

An account is a budget: reservations are charged to it before the call, by one conditional UPDATE, so the cap holds
under any number of processes. A query is identified by (oracle fingerprint, criterion, prompt hash, response hash);
whoever asks it again is charged its price virtually (arms stay comparable) while nothing is paid.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models import ledger_tables as tables
from models.cost import dollars
from models.ledger_tables import ACCOUNTS, CHARGES, LIVE, QUERIES, Question
from models.preference import LabelStatus

QueryStatus = Literal["reserved", "labelled", "quarantined", "lost"]


class BudgetExhausted(Exception):
    """The account cannot pay for one more query; `held` says that calls in flight may yet give some of it back."""

    def __init__(self, message: str, *, held: bool) -> None:
        super().__init__(message)
        self.held = held


class Reservation(NamedTuple):
    """Money set aside for one call; settle, quarantine, release or lose it."""

    query_id: int
    account: str
    micro_usd: int


class Answer(NamedTuple):
    """What the ledger holds for a question; `bought` says whether this account paid for it."""

    score: float
    micro_usd: int
    tokens: int
    bought: bool
    status: LabelStatus


class Spent(NamedTuple):
    """An account's charges: all of them (virtual), and the part that was paid for by it."""

    queries: int
    micro_usd: int
    bought_queries: int
    bought_micro_usd: int


class Ledger:
    """The record of queries at a SQLAlchemy URL; safe under concurrent threads, processes and machines."""

    def __init__(self, url: str) -> None:
        self.engine = tables.open_engine(url)

    def open_account(self, name: str, *, max_queries: int, max_micro_usd: int) -> None:
        """Make the account, or set new caps on it; what it has spent stays."""
        caps = {"max_queries": max_queries, "max_micro_usd": max_micro_usd}
        opened = tables.insert_into(ACCOUNTS, self.engine).values(name=name, queries=0, micro_usd=0, **caps)
        with self.engine.begin() as connection:
            connection.execute(opened.on_conflict_do_update(index_elements=["name"], set_=caps))

    def reserve(
        self, account: str, question: Question, *, ceiling: int, paid_on_loss: bool
    ) -> Reservation | Answer | None:
        """Set `ceiling` micro-dollars aside for a call; or return the answer that was paid for earlier.

        None means that another live process is asking the same question now: try again shortly. Raises
        BudgetExhausted, having charged nothing, when either cap would be passed.
        """
        try:
            return self._reserve(account, question, ceiling, paid_on_loss)
        except sa.exc.IntegrityError:  # PostgreSQL: another first asker was faster between our look and our insert
            return None

    def _reserve(
        self, account: str, question: Question, ceiling: int, paid_on_loss: bool
    ) -> Reservation | Answer | None:
        with self.engine.begin() as connection:
            row = connection.execute(sa.select(QUERIES).where(question.match(), LIVE)).mappings().first()
            if row is not None and row["status"] == "reserved":
                return None
            if row is not None:
                charged = sa.select(CHARGES).where(CHARGES.c.account == account, CHARGES.c.query_id == row["id"])
                charge = connection.execute(charged).mappings().first()
                if charge is None:
                    self._charge(connection, account, row["id"], row["micro_usd"], bought=False)
                bought = bool(charge["bought"]) if charge is not None else False
                return Answer(row["score"], row["micro_usd"], row["tokens"], bought, row["status"])
            inserted = connection.execute(
                sa.insert(QUERIES).values(
                    **question.columns(),
                    status="reserved",
                    micro_usd=ceiling,
                    account=account,
                    holder=tables.this_process(),
                    paid_on_loss=paid_on_loss,
                    reserved_at=time.time(),
                )
            )
            query_id = int(inserted.inserted_primary_key[0])  # type: ignore[index]
            self._charge(connection, account, query_id, ceiling, bought=True)
            return Reservation(query_id, account, ceiling)

    def settle(
        self,
        reservation: Reservation,
        *,
        status: LabelStatus,
        score: float,
        raw: str,
        tokens: int,
        micro_usd: int,
        seconds: float,
    ) -> Answer:
        """Record the reply and its real price; the label is now owned for ever.

        A reply so late that its question was asked again meanwhile is kept on its own row, which stays `lost`: the other
        row owns the label. Raises ValueError, with the reply kept, if the price passes the reserved ceiling: the cap
        no longer holds.
        """
        row = {
            "score": score if status == "labelled" else None,
            "raw": raw,
            "tokens": tokens,
            "micro_usd": micro_usd,
            "seconds": seconds,
            "settled_at": time.time(),
        }
        try:
            charged = self._settle(reservation, status, row)
        except sa.exc.IntegrityError:  # PostgreSQL: the question was asked again between our look and our update
            charged = self._settle(reservation, status, row)
        if micro_usd > charged:
            raise ValueError(
                f"oracle asked {dollars(micro_usd)} for a query reserved at {dollars(charged)}: "
                "its price ceiling is too low; the reply is kept"
            )
        return Answer(score, micro_usd, tokens, True, status)

    def _settle(self, reservation: Reservation, status: LabelStatus, row: dict[str, Any]) -> int:
        """Record a reply in one transaction and return what was charged for it until now, in micro-dollars."""
        mine = QUERIES.c.id == reservation.query_id
        with self.engine.begin() as connection:
            late = connection.execute(tables.asked_again(reservation.query_id)).first() is not None
            charged = connection.scalar(sa.select(QUERIES.c.micro_usd).where(mine))
            open_ = sa.update(QUERIES).where(mine, QUERIES.c.status.in_(["reserved", "lost"]))
            settled = connection.execute(open_.values(status="lost" if late else status, **row))
            if charged is None or settled.rowcount != 1:
                raise ValueError(f"query {reservation.query_id} is not reserved: it was settled or released before")
            self._recharge(connection, reservation, before=int(charged), after=row["micro_usd"])
            return int(charged)

    def release(self, reservation: Reservation) -> None:
        """Undo a reservation whose call is known to have cost nothing."""
        with self.engine.begin() as connection:
            self._void(connection, reservation)

    def lose(self, reservation: Reservation, *, micro_usd: int | None = None) -> None:
        """Count a call whose reply never arrived as paid; the question may be asked again.

        Paid at `micro_usd`, the most that it may have cost; at what was reserved where that is not known.
        """
        with self.engine.begin() as connection:
            self._mark_lost(connection, reservation.query_id)
            if micro_usd is not None and micro_usd < reservation.micro_usd:
                mine = sa.update(QUERIES).where(QUERIES.c.id == reservation.query_id)
                connection.execute(mine.values(micro_usd=micro_usd))
                self._recharge(connection, reservation, before=reservation.micro_usd, after=micro_usd)

    def recover(self) -> int:
        """Give up the reservations of dead processes and return how many there were.

        One that may have been paid for keeps its charge (status lost); one by an oracle that charges nothing for
        an undelivered answer is undone.
        """
        with self.engine.begin() as connection:
            reserved = connection.execute(sa.select(QUERIES).where(QUERIES.c.status == "reserved")).mappings().all()
            dead = [row for row in reserved if not tables.alive(row["holder"], row["reserved_at"])]
            for row in dead:
                if row["paid_on_loss"]:
                    self._mark_lost(connection, row["id"])
                else:
                    self._void(connection, Reservation(row["id"], row["account"], row["micro_usd"]))
        return len(dead)

    def spent(self, account: str) -> Spent:
        """Return what an account has been charged; zeros for an account that was never opened."""
        total, money = sa.func.count(), sa.func.coalesce(sa.func.sum(CHARGES.c.micro_usd), 0)
        counted = sa.select(total, money).where(CHARGES.c.account == account)
        with self.engine.connect() as connection:
            queries, micro_usd = connection.execute(counted).one()
            bought, bought_micro_usd = connection.execute(counted.where(CHARGES.c.bought)).one()
        return Spent(int(queries), int(micro_usd), int(bought), int(bought_micro_usd))

    def rows(self, *, status: QueryStatus | None = None) -> Iterator[dict[str, Any]]:
        """Yield the queries as dictionaries, oldest first."""
        query = sa.select(QUERIES).order_by(QUERIES.c.id)
        if status is not None:
            query = query.where(QUERIES.c.status == status)
        with self.engine.connect() as connection:
            yield from (dict(row) for row in connection.execute(query).mappings())

    def adopt(
        self,
        question: Question,
        *,
        score: float,
        raw: str,
        tokens: int,
        micro_usd: int,
        status: LabelStatus = "labelled",
    ) -> bool:
        """Take over a label paid for elsewhere (an import); false if this ledger already holds the question."""
        with self.engine.begin() as connection:
            if connection.execute(sa.select(QUERIES.c.id).where(question.match(), LIVE)).first():
                return False
            now = time.time()
            connection.execute(
                sa.insert(QUERIES).values(
                    **question.columns(),
                    status=status,
                    score=score if status == "labelled" else None,
                    raw=raw,
                    tokens=tokens,
                    micro_usd=micro_usd,
                    account="import",
                    paid_on_loss=True,
                    reserved_at=now,
                    settled_at=now,
                )
            )
            return True

    def _charge(self, connection: Connection, account: str, query_id: int, micro_usd: int, *, bought: bool) -> None:
        charged = connection.execute(
            sa.update(ACCOUNTS)
            .where(
                ACCOUNTS.c.name == account,
                ACCOUNTS.c.queries + 1 <= ACCOUNTS.c.max_queries,
                ACCOUNTS.c.micro_usd + micro_usd <= ACCOUNTS.c.max_micro_usd,
            )
            .values(queries=ACCOUNTS.c.queries + 1, micro_usd=ACCOUNTS.c.micro_usd + micro_usd)
        )
        if charged.rowcount != 1:
            row = connection.execute(sa.select(ACCOUNTS).where(ACCOUNTS.c.name == account)).mappings().first()
            if row is None:
                raise KeyError(f"account {account!r} is not open: call open_account first")
            flying = QUERIES.c.account == account, QUERIES.c.status == "reserved", QUERIES.c.id != query_id
            raise BudgetExhausted(
                f"account {account!r} has spent {row['queries']} of {row['max_queries']} queries and "
                f"{dollars(row['micro_usd'])} of {dollars(row['max_micro_usd'])}; one more at {dollars(micro_usd)} "
                "does not fit: raise labelling.queries or labelling.max_micro_usd",
                held=connection.execute(sa.select(QUERIES.c.id).where(*flying)).first() is not None,
            )
        connection.execute(
            sa.insert(CHARGES).values(account=account, query_id=query_id, micro_usd=micro_usd, bought=bought)
        )

    def _recharge(self, connection: Connection, reservation: Reservation, *, before: int, after: int) -> None:
        """Charge another price for a query than was charged before."""
        charges = sa.update(CHARGES).where(CHARGES.c.query_id == reservation.query_id)
        connection.execute(charges.values(micro_usd=after))
        self._adjust(connection, reservation, queries=0, micro_usd=after - before)

    def _adjust(self, connection: Connection, reservation: Reservation, *, queries: int, micro_usd: int) -> None:
        connection.execute(
            sa.update(ACCOUNTS)
            .where(ACCOUNTS.c.name == reservation.account)
            .values(queries=ACCOUNTS.c.queries + queries, micro_usd=ACCOUNTS.c.micro_usd + micro_usd)
        )

    def _void(self, connection: Connection, reservation: Reservation) -> None:
        deleted = connection.execute(
            sa.delete(QUERIES).where(QUERIES.c.id == reservation.query_id, QUERIES.c.status == "reserved")
        )
        if deleted.rowcount == 1:
            connection.execute(sa.delete(CHARGES).where(CHARGES.c.query_id == reservation.query_id))
            self._adjust(connection, reservation, queries=-1, micro_usd=-reservation.micro_usd)

    def _mark_lost(self, connection: Connection, query_id: int) -> None:
        connection.execute(
            sa.update(QUERIES)
            .where(QUERIES.c.id == query_id, QUERIES.c.status == "reserved")
            .values(status="lost", settled_at=time.time())
        )
