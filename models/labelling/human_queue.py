"""Annotation queue in the ledger: several judgements per question, one verdict by majority."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.rubric import LEVELS
from models.ledger.accounts import Changes
from models.ledger.entries import QueryRequest, QueryResult, Reservation
from models.ledger.ledger import Ledger
from models.ledger.liveness import PEOPLE
from models.ledger.tables import ITEMS, JUDGEMENTS, QUERIES, insert_into, live_rows
from models.oracles.base import AnnotationTask

BETTER = {"a": 1, "b": -1, "neither": 0}
SCALES: dict[str, tuple[int, ...]] = {"pointwise": tuple(range(LEVELS)), "pairwise": tuple(BETTER.values())}


class Judgement(NamedTuple):
    """What one annotator says of an item: a score of its scale, or None for “cannot judge”."""

    item: int
    annotator: str
    score: int | None
    note: str = ""


@dataclass(frozen=True)
class Item:
    """An open question: what it is about, on which scale, how many judgements it wants, and those it has, by annotator."""

    id: int
    reservation: Reservation
    query_type: str
    guide: str
    prompt: str
    response: str
    wanted: int
    micro_usd_each: int
    judgements: dict[str, Judgement] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """The response, or the two of a pair."""
        return tuple(json.loads(self.response)) if self.query_type == "pairwise" else (self.response,)

    @property
    def missing(self) -> int:
        """How many judgements it waits for; one after a tie."""
        return max(self.wanted - len(self.judgements), 1)

    @property
    def verdict(self) -> float | None:
        """What has been decided so far."""
        return adjudicate([judgement.score for judgement in self.judgements.values()], self.wanted)


class RecordedJudgement(NamedTuple):
    """What became of judgements: new, known, changed, or no longer asked for; and how many items they have settled."""

    new: int
    known: int
    changed: int
    surplus: int
    settled: int


def adjudicate(scores: Sequence[int | None], wanted: int) -> float | None:
    """Return the most frequent score; None while judgements are missing, and NaN where nobody can tell.

    A tie asks for one judgement more than `wanted`; what is tied after it is NaN: nothing is guessed.
    """
    if len(scores) < wanted:
        return None
    votes = Counter(score for score in scores if score is not None).most_common(2)
    if not votes:
        return math.nan
    if len(votes) == 1 or votes[0][1] > votes[1][1]:
        return float(votes[0][0])
    return None if len(scores) == wanted else math.nan


class Queue:
    """The questions that wait for people. Each is a reservation in the ledger that is never given up."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def post(
        self,
        account: str,
        orders: Sequence[QueryRequest],
        terms: AnnotationTask,
        query_type: str,
        *,
        paid_by: Sequence[str] = (),
    ) -> int:
        """Ask what is not asked yet, and return how many of the questions are open, whoever has asked them."""
        asked = [order._replace(holder=PEOPLE) for order in orders]
        self.ledger.settle_and_reserve(account, [], asked, paid_by=paid_by)
        told = {
            "query_type": query_type,
            "guide": terms.guide,
            "judgements": terms.judgements,
            "micro_usd_each": terms.micro_usd,
        }

        def work(connection: Connection) -> int:
            rows = live_rows(connection, [order.question for order in orders])
            waiting = [row.id for row in rows.values() if row.status == "reserved" and row.holder == PEOPLE]
            if waiting:
                put = insert_into(ITEMS, connection.dialect.name).on_conflict_do_nothing()
                connection.execute(put, [{"query_id": number, **told} for number in waiting])
            return len(waiting)

        return self.ledger.transact(work)

    def items(self) -> list[Item]:
        """Return the open questions, oldest first."""
        return self.ledger.transact(lambda connection: list(self._items(connection).values()))

    def record(self, judgements: Sequence[Judgement]) -> RecordedJudgement:
        """Take judgements, all or none, and settle every item that they decide.

        An annotator's second judgement of an open item replaces the first. Those of settled items change nothing.
        """

        def work(connection: Connection) -> RecordedJudgement:
            counts: Counter[str] = Counter()
            items = self._items(connection)
            settled: dict[int, Item] = {}
            for judgement in judgements:
                item = items.get(judgement.item)
                before = item.judgements.get(judgement.annotator) if item is not None else None
                if item is None or judgement.item in settled:
                    counts["surplus"] += 1
                elif before is not None and before.score == judgement.score:
                    counts["known"] += 1
                else:
                    counts["new" if before is None else "changed"] += 1
                    item.judgements[judgement.annotator] = judgement
                    self._write(connection, item, judgement)
                    if item.verdict is not None:
                        settled[item.id] = item
            self._settle(connection, list(settled.values()), changes := Changes())
            changes.apply(connection)
            return RecordedJudgement(counts["new"], counts["known"], counts["changed"], counts["surplus"], len(settled))

        return self.ledger.transact(work)

    def withdraw(self) -> tuple[int, int]:
        """Empty the queue: undo what nobody has judged, settle the rest by what there is. Returns how many of each.

        A run that still waits asks again: stop it first.
        """

        def work(connection: Connection) -> tuple[int, int]:
            items = list(self._items(connection).values())
            judged = [item for item in items if item.judgements]
            changes = Changes()
            self._settle(connection, [replace(item, wanted=len(item.judgements)) for item in judged], changes)
            for item in items:
                if not item.judgements:
                    self.ledger.cancel_within(connection, item.reservation, changes)
            changes.apply(connection)
            return len(items) - len(judged), len(judged)

        return self.ledger.transact(work)

    def _items(self, connection: Connection) -> dict[int, Item]:
        """Return the open items by number; on PostgreSQL they are locked until the transaction ends."""
        both = QUERIES.join(ITEMS, ITEMS.c.query_id == QUERIES.c.id)
        columns = [QUERIES.c[name] for name in ("id", "account", "micro_usd", "tokens", "prompt", "response")]
        query = sa.select(
            *columns, *[ITEMS.c[name] for name in ("query_type", "guide", "judgements", "micro_usd_each")]
        )
        asked = QUERIES.c.status == "reserved", QUERIES.c.holder == PEOPLE
        waiting = query.select_from(both).where(*asked).order_by(QUERIES.c.id)
        items = {
            row.id: Item(
                id=row.id,
                reservation=Reservation(row.id, row.account, row.micro_usd, row.tokens),
                query_type=row.query_type,
                guide=row.guide,
                prompt=row.prompt,
                response=row.response,
                wanted=row.judgements,
                micro_usd_each=row.micro_usd_each,
            )
            for row in connection.execute(waiting.with_for_update())
        }
        given = sa.select(JUDGEMENTS).where(
            JUDGEMENTS.c.query_id.in_(sa.select(QUERIES.c.id).where(QUERIES.c.status == "reserved"))
        )
        for row in connection.execute(given.order_by(JUDGEMENTS.c.query_id, JUDGEMENTS.c.place)):
            if row.query_id in items:
                score = None if row.score is None else int(row.score)
                items[row.query_id].judgements[row.annotator] = Judgement(row.query_id, row.annotator, score, row.note)
        return items

    def _write(self, connection: Connection, item: Item, judgement: Judgement) -> None:
        said = {"score": judgement.score, "note": judgement.note}
        key = {"query_id": item.id, "annotator": judgement.annotator, "place": len(item.judgements)}
        put = insert_into(JUDGEMENTS, connection.dialect.name).values(**key, **said)
        connection.execute(put.on_conflict_do_update(index_elements=["query_id", "annotator"], set_=said))

    def _settle(self, connection: Connection, items: Sequence[Item], changes: Changes) -> None:
        for item in items:
            verdict = item.verdict
            score = math.nan if verdict is None else verdict
            given = item.judgements.values()
            reply = QueryResult(
                item.reservation,
                status="labelled" if math.isfinite(score) else "quarantined",
                score=score,
                raw=json.dumps({"judgements": [[j.annotator, j.score, j.note] for j in given]}, ensure_ascii=False),
                tokens=0,
                micro_usd=item.micro_usd_each * len(given),
                seconds=0.0,
            )
            self.ledger.settle_within(connection, item.reservation.account, [reply], changes)
