"""Ledger of every oracle query: reserve, call, settle, so that a paid label is never bought again.

An account is a budget: reservations are charged to it before the call, so that its caps hold under any number of processes.
Purses above it (of a run, a sweep, the lab) pay in the same transaction for what is bought, and for nothing that is found.
A query is identified by (oracle fingerprint, criterion, prompt hash, response hash); whoever asks it again is charged its
price virtually (arms stay comparable) while nothing is paid. Many calls in flight share one transaction
(`settle_and_reserve`).
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.data import LabelStatus
from models.core.errors import ConfigError
from models.core.money import NO_CAP, Amount
from models.ledger import accounts, database, purses, tables
from models.ledger import liveness as holders
from models.ledger.accounts import BudgetExhausted, PurseExhausted, Spent
from models.ledger.entries import (
    REPLIED,
    Answer,
    Closing,
    Loss,
    QueryRequest,
    QueryResult,
    QueryStatus,
    Release,
    Reservation,
    ReservationResult,
    checked,
)
from models.ledger.journal import Journal, booking, has_journal, journals
from models.ledger.tables import CHARGES, ITEMS, JUDGEMENTS, QUERIES, Question

log = logging.getLogger(__name__)

T = TypeVar("T")


class Ledger:
    """The record of queries at a SQLAlchemy URL; safe under concurrent threads, processes and machines."""

    def __init__(self, url: str, *, journal: Path | None = None, budget: purses.Budget | None = None) -> None:
        """Open it. What its database does not take is kept in the folder `journal`: beside a SQLite file, if not said.

        All that is bought through it is charged to the `budget` of the lab.
        """
        self.engine = database.open_engine(url)
        self.reader = self.engine.execution_options(reads_only=True)
        self.embedded = self.engine.dialect.name == "sqlite"
        self._lab = purses.LabPurse(self.engine, budget)
        self._journals = journal or database.folder_of(self.engine.url, "journal")
        at_work = holders.Lease(self.engine, of=self) if self.embedded else None
        self._presence = at_work or holders.SessionHeartbeat(self.engine.url, of=self)
        self._watch = holders.Watch()

    def open_account(
        self, name: str, *, max_queries: int = NO_CAP, max_micro_usd: int, max_tokens: int = NO_CAP
    ) -> None:
        """Make the account, or set new caps on it; what it has spent stays."""
        caps = {"queries": max_queries, "micro_usd": max_micro_usd, "tokens": max_tokens}
        self.transact(lambda c: accounts.open_account(c, name, **caps))

    def reserve(
        self,
        account: str,
        question: Question,
        *,
        ceiling: int,
        billed_on_failure: bool,
        tokens: int = 0,
        paid_by: Sequence[str] = (),
    ) -> Reservation | Answer | None:
        """Set `ceiling` micro-dollars and `tokens` aside for a call; or return the answer that was paid for earlier.

        None means that another is asking the same question now: try again shortly. Raises BudgetExhausted or PurseExhausted,
        having charged nothing, when a cap would be passed.
        """
        _, (outcome,) = self.settle_and_reserve(
            account, [], [QueryRequest(question, Amount(ceiling, tokens), billed_on_failure)], paid_by=paid_by
        )
        if isinstance(outcome, BudgetExhausted | PurseExhausted):
            raise outcome
        return outcome

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
        row owns the label. Raises ConfigError, with the reply kept, if the price passes the reserved ceiling (the caps no
        longer hold), or if the reservation was settled or released before.
        """
        reply = QueryResult(reservation, status, score, raw, tokens, micro_usd, seconds)
        (answer,) = self.transact(lambda c: self.settle_within(c, reservation.account, [reply]))
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def settle_and_reserve(
        self,
        account: str,
        closings: Sequence[Closing],
        orders: Sequence[QueryRequest],
        *,
        paid_by: Sequence[str] = (),
        wait: float = database.BUSY_SECONDS,
    ) -> tuple[list[Answer | ValueError | None], list[ReservationResult]]:
        """Book how calls have ended, then reserve for orders of different questions, all in one transaction.

        New ones are `paid_by` these purses too, and the lab's: by the account and all purses, or not at all. Returns what
        `settle`, `release` or `lose`, and `reserve` would, errors included, in the given order. Done again where nobody
        knows whether the database has kept it, it changes nothing. Waits at most `wait` seconds for other writers of a
        SQLite file.
        """

        def work(connection: Connection) -> tuple[list[Answer | ValueError | None], list[ReservationResult]]:
            closed = self._close(connection, account, closings) if closings else []
            return closed, self._reserve(connection, account, orders, payers) if orders else []

        payers = self._lab.payers(paid_by, wait) if orders else {}
        if orders:
            self._presence.hold()
        return database.transact(self.engine, work, wait=wait)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns within one transaction; see `database.transact`."""
        return database.transact(self.engine, work)

    def _reserve(
        self,
        connection: Connection,
        account: str,
        orders: Sequence[QueryRequest],
        payers: Mapping[bool, tuple[str, ...]],
    ) -> list[ReservationResult]:
        found = tables.live_rows(connection, [order.question for order in orders])
        outcomes: dict[int, ReservationResult] = {}
        new: list[int] = []
        owned: dict[int, Any] = {}
        asked: set[tables.Key] = set()
        for place, order in enumerate(orders):
            row = found.get(order.question.key)
            if order.question.key in asked:
                outcomes[place] = None  # asked a moment ago, in this same exchange
                continue
            asked.add(order.question.key)
            if row is None:
                new.append(place)
            elif row.status == "reserved" and row.holder == order.holder and row.account == account:
                # of this very labelling, which has not heard that the database kept it
                outcomes[place] = Reservation(row.id, account, row.micro_usd, row.tokens)
            elif row.status == "reserved":
                outcomes[place] = None
            else:
                owned[place] = row
        outcomes |= self._own(connection, account, owned)
        for costs_money, paid_by in payers.items():
            wanted = {place: orders[place] for place in new if orders[place].costs_money == costs_money}
            ceilings = [order.ceiling for order in wanted.values()]
            refusing = dict(zip(wanted, accounts.afford(connection, (account, *paid_by), ceilings), strict=True))
            paid = {place: order for place, order in wanted.items() if not refusing[place]}
            outcomes |= self._insert(connection, account, paid, paid_by)
            for place in wanted.keys() - paid.keys():
                outcomes[place] = accounts.exhausted(connection, refusing[place], wanted[place].ceiling)
        return [outcomes[place] for place in range(len(orders))]

    def _own(self, connection: Connection, account: str, rows: Mapping[int, Any]) -> dict[int, ReservationResult]:
        """Charge an account for labels that are owned already, where it has not been charged for them, and return them."""
        charged = accounts.charged_for(connection, account, [row.id for row in rows.values()])
        fresh = {place: row for place, row in rows.items() if row.id not in charged}
        prices = {place: Amount(row.micro_usd, row.tokens) for place, row in fresh.items()}
        refusing = accounts.afford(connection, [account], list(prices.values()))
        paid = [place for place, by in zip(fresh, refusing, strict=True) if not by]
        accounts.charge(connection, account, [(fresh[p].id, prices[p]) for p in paid], bought=False)
        answers: dict[int, ReservationResult] = {
            place: Answer(row.score, row.micro_usd, row.tokens, charged.get(row.id, False), row.status)
            for place, row in rows.items()
        }
        return answers | {p: accounts.exhausted(connection, account, prices[p]) for p in fresh if p not in paid}

    def _insert(
        self, connection: Connection, account: str, orders: Mapping[int, QueryRequest], paid_by: Sequence[str]
    ) -> dict[int, ReservationResult]:
        """Write the reservations of orders that the account, and the purses, have been charged for."""
        if not orders:
            return {}
        now, here, payers = time.time(), holders.this_process(), json.dumps(paid_by)
        changes = accounts.Changes()
        rows = [
            {
                **order.question.columns(),
                "status": "reserved",
                "micro_usd": order.ceiling.micro_usd,
                "tokens": order.ceiling.tokens,
                "account": account,
                "purses": payers,
                "costs_money": order.costs_money,
                "holder": order.holder or here,
                "billed_on_failure": order.billed_on_failure,
                "reserved_at": now,
            }
            for order in orders.values()
        ]
        ids = tables.insert_new(connection, rows)
        outcomes: dict[int, ReservationResult] = {}
        for place, order in orders.items():
            query_id = ids.get(order.question.key)
            if query_id is None:  # PostgreSQL: another first asker was faster between our look and our insert
                changes.add(account, payers, queries=-1, by=order.ceiling.negative)
                outcomes[place] = None
            else:
                outcomes[place] = Reservation(query_id, account, *order.ceiling)
        kept = [(r.query_id, Amount(r.micro_usd, r.tokens)) for r in outcomes.values() if isinstance(r, Reservation)]
        accounts.charge(connection, account, kept, bought=True)
        changes.apply(connection)
        return outcomes

    def _close(
        self, connection: Connection, account: str, closings: Sequence[Closing]
    ) -> list[Answer | ValueError | None]:
        replies = [closing for closing in closings if isinstance(closing, QueryResult)]
        changes = accounts.Changes()
        answers = iter(self.settle_within(connection, account, replies, changes) if replies else [])
        closed: list[Answer | ValueError | None] = []
        for closing in closings:
            if isinstance(closing, Release):
                self.cancel_within(connection, closing.reservation, changes)
            elif isinstance(closing, Loss):
                self._lose(connection, closing, changes)
            closed.append(next(answers) if isinstance(closing, QueryResult) else None)
        changes.apply(connection)
        return closed

    def settle_within(
        self,
        connection: Connection,
        account: str,
        replies: Sequence[QueryResult],
        changes: accounts.Changes | None = None,
    ) -> list[Answer | ValueError]:
        """Settle replies of one account within a transaction of the caller's, who applies `changes` if they are given."""
        ids = [reply.reservation.query_id for reply in replies]
        before = {row.id: row for row in connection.execute(_BEFORE, {"ids": ids})}
        rows, answers, saved = [], list[Answer | ValueError](), list[tuple[str, str | None, Amount]]()
        prices: dict[str, list[tuple[int, Amount]]] = {}
        for given in replies:
            query_id, was = given.reservation.query_id, before.get(given.reservation.query_id)
            if was is None or was.status not in ("reserved", "lost"):
                known = None if was is None else self._answered(connection, given)
                gone = ConfigError(f"query {query_id} is not reserved: it was settled or released before")
                answers.append(known or gone)
                continue
            charged = Amount(was.micro_usd, was.tokens)
            (reply, wrong), status = checked(given, charged), given.status
            if was.status == "lost" and not tables.reactivate(connection, query_id):
                status = "lost"  # type: ignore[assignment] # the question was asked again: the other row owns the label
            price = Amount(reply.micro_usd, reply.tokens)
            rows.append(reply.parameters(status))
            prices.setdefault(was.account, []).append((query_id, price))  # another's since it was asked again
            saved.append((was.account, was.purses, price.plus(charged.negative)))
            answers.append(wrong or Answer(reply.score, *price, True, reply.status))
        if rows:
            _SETTLE(connection, rows)
            for payer in sorted(prices):
                accounts.recharge(connection, payer, prices[payer])
            with accounts.changing(connection, changes) as sums:
                for payer, payers, by in saved:
                    sums.add(payer, payers, queries=0, by=by)
        return answers

    def _answered(self, connection: Connection, reply: QueryResult) -> Answer | None:
        """Return the answer if this very reply was booked before: nobody has heard of it, and it is booked again."""
        mine = sa.select(QUERIES).where(QUERIES.c.id == reply.reservation.query_id)
        row = connection.execute(mine).mappings().one()
        again = reply.parameters(row["status"])
        if row["micro_usd"] > reply.reservation.micro_usd or any(
            row[name] != again[f"new_{name}"] for name in ("raw", "score", "seconds")
        ):
            return None
        return Answer(reply.score, row["micro_usd"], row["tokens"], True, row["status"])

    def release(self, reservation: Reservation) -> None:
        """Undo a reservation whose call is known to have cost nothing."""
        self.transact(lambda c: self.cancel_within(c, reservation))

    def mark_lost(self, reservation: Reservation, *, most: Amount | None = None) -> None:
        """Count a call whose reply never arrived as paid; the question may be asked again.

        Paid at `most`, what it may have cost; at what was reserved where that is not known, or less.
        """
        self.transact(lambda c: self._lose(c, Loss(reservation, most)))

    def _lose(self, connection: Connection, lost: Loss, changes: accounts.Changes | None = None) -> None:
        reservation = lost.reservation
        reserved = Amount(reservation.micro_usd, reservation.tokens)
        price = reserved if lost.most is None else Amount(*map(min, lost.most, reserved))
        if self._mark_lost(connection, reservation.query_id) and price != reserved:
            mine = sa.update(QUERIES).where(QUERIES.c.id == reservation.query_id).returning(QUERIES.c.purses)
            payers = connection.scalar(mine.values(micro_usd=price.micro_usd, tokens=price.tokens))
            accounts.recharge(connection, reservation.account, [(reservation.query_id, price)])
            with accounts.changing(connection, changes) as sums:
                sums.add(reservation.account, payers, queries=0, by=price.plus(reserved.negative))

    def journal(self, holder: str, *, in_flight: int) -> Journal | None:
        """Open a holder's journal, for so many calls in flight; None where no folder was named. Raises as Journal."""
        if self._journals is None:
            return None
        return Journal(self._journals, self._name, holder=holder, in_flight=in_flight)

    def book_journals(self) -> int:
        """Book what labellings that are over could not, and return how many calls it was."""
        folder, booked = self._journals, 0
        if folder is None or not any(folder.glob("*.jsonl")):
            return 0
        with booking(folder):
            for kept in journals(folder, self._name):
                failed = sum(not self._book(closing, kept.file) for closing in kept.closings)
                booked += len(kept.closings) - failed
                kept.remove(failed=failed)
        return booked

    def _book(self, closing: Closing, file: Path) -> bool:
        """Book one entry of a journal, by itself, and say whether that went well: another may be wrong."""
        try:
            (wrong,), _ = self.settle_and_reserve(closing.reservation.account, [closing], [])
        except Exception as error:
            if database.is_away(error):
                raise
            log.error("an entry of %s cannot be booked: %s", file, error)
            return False
        if isinstance(wrong, ValueError):
            log.warning("%s of the journal %s: %s", type(closing).__name__, file, wrong)
        return True

    @property
    def _name(self) -> str:
        """Return what tells this ledger's journals from those of another: its file, or its server and database."""
        url = self.engine.url
        if self.embedded:
            return str(Path(url.database or "").resolve())
        return f"{database.server_of(url)}/{url.database}"

    def holders_of(self, account: str) -> list[str]:
        """Return who asks at this moment on the money of an account, or of a purse."""
        flying = sa.select(QUERIES.c.holder).where(accounts.paying(account), tables.RESERVED).distinct()
        with self.reader.connect() as connection:
            return list(connection.scalars(flying))

    def holder_of(self, question: Question) -> str:
        """Return who is asking a question at this moment; "" if nobody is."""
        with self.reader.connect() as connection:
            row = tables.live_rows(connection, [question]).get(question.key)
        return row.holder if row is not None and row.status == "reserved" else ""

    def release_stale(self) -> int:
        """Give up the reservations of dead processes and labellings, and return how many there were.

        What journals hold is booked first. One that may have been paid for keeps its charge (status lost); one by an oracle
        that charges nothing for an undelivered answer is undone.
        """

        # Who is dead is asked first: who writes a journal lives, and one that has ended since is looked at another time.
        dead = self._dead()
        if booked := self.book_journals():
            log.warning("%d calls are booked that the ledger could not take when they ended", booked)
        return self.transact(lambda c: self._give_up(c, dead)) if dead else 0

    def _dead(self) -> dict[int, str]:
        """Return the holders of reservations that nobody will settle, by query."""
        with self.reader.connect() as connection:
            reserved = connection.execute(sa.select(QUERIES).where(tables.RESERVED)).mappings().all()
            gone = self._watch.dead(connection, {row["holder"] for row in reserved})
        dead = (row for row in reserved if not holders.may_settle(row["holder"], gone))
        return {row["id"]: row["holder"] for row in dead}

    def _give_up(self, connection: Connection, dead: Mapping[int, str]) -> int:
        still = sa.select(QUERIES).where(QUERIES.c.id.in_(list(dead)), tables.RESERVED)
        given_up, changes = 0, accounts.Changes()
        for row in connection.execute(still).mappings().all():
            if row["holder"] != dead[row["id"]] or self._may_be_booked(row["holder"]):
                continue
            if row["billed_on_failure"]:
                self._mark_lost(connection, row["id"])
            else:
                reservation = Reservation(row["id"], row["account"], row["micro_usd"], row["tokens"])
                self.cancel_within(connection, reservation, changes)
            given_up += 1
        changes.apply(connection)
        return given_up

    def _may_be_booked(self, holder: str) -> bool:
        """Whether a journal of a holder lies here: somebody has it open, be it a child that the holder has left."""
        return self._journals is not None and has_journal(self._journals, self._name, holder)

    def spent(self, account: str) -> Spent:
        """Return what an account has been charged; zeros for an account that was never opened."""
        with self.reader.connect() as connection:
            return accounts.spent(connection, account)

    def rows(self, *, status: QueryStatus | None = None, account: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the queries as dictionaries, oldest first; those of one status, or that one account is charged for."""
        query = sa.select(QUERIES).order_by(QUERIES.c.id)
        if status is not None:
            query = query.where(QUERIES.c.status == status)
        if account is not None:
            query = query.where(QUERIES.c.id.in_(sa.select(CHARGES.c.query_id).where(CHARGES.c.account == account)))
        with self.reader.connect() as connection:
            yield from (dict(row) for row in connection.execute(query).mappings())

    def import_labels(self, labels: Sequence[tuple[Question, Mapping[str, Any]]]) -> int:
        """Take over labels paid for elsewhere (an import), all or none; return how many this ledger did not hold yet.

        With each question come its status, score, raw, tokens and micro_usd. People who were asked need not answer any
        more; what a process is asking about at this moment stays as it is.
        """
        now = time.time()
        kept = {"account": tables.IMPORTED, "billed_on_failure": True, "reserved_at": now, "settled_at": now}

        def work(connection: Connection) -> int:
            for row in tables.live_rows(connection, [question for question, _ in labels]).values():
                if row.status == "reserved" and row.holder == holders.PEOPLE:
                    self.cancel_within(connection, Reservation(row.id, row.account, row.micro_usd, row.tokens))
            rows = [{**question.columns(), **values, **kept} for question, values in labels]
            return len(tables.insert_new(connection, rows)) if rows else 0

        return self.transact(work)

    def cancel_within(
        self, connection: Connection, reservation: Reservation, changes: accounts.Changes | None = None
    ) -> None:
        """Undo a reservation within a transaction of the caller's; nothing if it was settled or undone before.

        The caller applies `changes` of accounts if they are given.
        """
        reserved = sa.delete(QUERIES).where(QUERIES.c.id == reservation.query_id, QUERIES.c.status == "reserved")
        deleted = connection.execute(reserved.returning(QUERIES.c.purses)).first()
        if deleted is not None:
            mine = CHARGES.c.account == reservation.account
            connection.execute(sa.delete(CHARGES).where(mine, CHARGES.c.query_id == reservation.query_id))
            for table in (ITEMS, JUDGEMENTS):  # SQLite gives the number to another question
                connection.execute(sa.delete(table).where(table.c.query_id == reservation.query_id))
            freed = Amount(-reservation.micro_usd, -reservation.tokens)
            with accounts.changing(connection, changes) as sums:
                sums.add(reservation.account, deleted.purses, queries=-1, by=freed)

    def _mark_lost(self, connection: Connection, query_id: int) -> bool:
        """Give a query up, and say whether it was reserved until now."""
        reserved = sa.update(QUERIES).where(QUERIES.c.id == query_id, QUERIES.c.status == "reserved")
        return connection.execute(reserved.values(status="lost", settled_at=time.time())).rowcount == 1


_BEFORE = sa.select(*(QUERIES.c[name] for name in ("id", "status", "account", "micro_usd", "tokens", "purses"))).where(
    QUERIES.c.id.in_(sa.bindparam("ids", expanding=True))
)
_SETTLE = tables.CompiledStatement(
    sa.update(QUERIES)
    .where(QUERIES.c.id == sa.bindparam("query_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in REPLIED})
)
