"""Value types of the ledger: order, reservation, settlement, answer."""

import time
from numbers import Integral
from typing import Any, Literal, NamedTuple

from models.core.data import LabelStatus
from models.core.errors import ConfigError
from models.core.money import Amount, dollars
from models.ledger.accounts import BudgetExhausted, PurseExhausted
from models.ledger.tables import Question, storable

LARGEST = 2**63  # of a column of numbers
REPLIED = ("status", "score", "raw", "tokens", "micro_usd", "seconds", "settled_at")
QueryStatus = Literal["reserved", "labelled", "quarantined", "lost"]


class QueryRequest(NamedTuple):
    """A question, and the most that its answer may cost. `holder` answers for the reservation: this process if None.

    What a holder of one labelling alone has reserved is its own when it asks again. What `costs_money` is charged to the
    lab's purse.
    """

    question: Question
    ceiling: Amount
    billed_on_failure: bool
    holder: str | None = None
    costs_money: bool = True


class Reservation(NamedTuple):
    """Money and tokens set aside for one call; settle, release or lose it."""

    query_id: int
    account: str
    micro_usd: int
    tokens: int = 0


class QueryResult(NamedTuple):
    """What a call has brought, and its real price."""

    reservation: Reservation
    status: LabelStatus
    score: float
    raw: str
    tokens: int
    micro_usd: int
    seconds: float

    def parameters(self, status: QueryStatus) -> dict[str, Any]:
        """Return what is written of it, as parameters of a statement: `query_id` and, for each of REPLIED, `new_…`."""
        score = self.score if self.status == "labelled" else None
        values = (status, score, storable(self.raw), self.tokens, self.micro_usd, self.seconds, time.time())
        named = {f"new_{name}": value for name, value in zip(REPLIED, values, strict=True)}
        return {"query_id": self.reservation.query_id, **named}


class Release(NamedTuple):
    """A call is known to have cost nothing."""

    reservation: Reservation


class Loss(NamedTuple):
    """A reply has never arrived: it is paid for at `most`, or at what was reserved where that is not known."""

    reservation: Reservation
    most: Amount | None = None


Closing = QueryResult | Release | Loss


class Answer(NamedTuple):
    """What the ledger holds for a question; `bought` says whether this account paid for it."""

    score: float
    micro_usd: int
    tokens: int
    bought: bool
    status: LabelStatus


ReservationResult = Reservation | Answer | BudgetExhausted | PurseExhausted | None


def checked(reply: QueryResult, charged: Amount) -> tuple[QueryResult, ValueError | None]:
    """Return a settlement at a price that can be booked, and the error of an oracle that asks what cannot be, or too much.

    A price above what was reserved is booked: the caps no longer hold, and the account buys nothing more. A negative one,
    or one that is no whole number, is booked at what was reserved.
    """
    price = Amount(reply.micro_usd, reply.tokens)
    if any(not isinstance(part, Integral) or isinstance(part, bool) or not 0 <= part < LARGEST for part in price):
        return reply._replace(micro_usd=charged.micro_usd, tokens=charged.tokens), ConfigError(
            f"oracle asked {price.micro_usd!r} micro-dollars and {price.tokens!r} tokens for a query, which are no whole "
            f"numbers from 0 to 2^63: booked at the {dollars(charged.micro_usd)} reserved; the reply is kept"
        )
    reply = reply._replace(micro_usd=int(price.micro_usd), tokens=int(price.tokens))  # numpy's are not for databases
    if price.micro_usd <= charged.micro_usd and (price.tokens <= charged.tokens or not charged.tokens):
        return reply, None
    return reply, ConfigError(
        f"oracle asked {dollars(price.micro_usd)} for a query reserved at {dollars(charged.micro_usd)} "
        f"({price.tokens} tokens, reserved {charged.tokens}): its ceiling is too low; the reply is kept"
    )
