"""What goes into the ledger and comes out of it: an order, a reservation, a settlement, an answer."""

import time
from typing import Any, Literal, NamedTuple

from models.cost import Amount, dollars
from models.ledger_accounts import BudgetExhausted
from models.ledger_tables import Question
from models.preference import LabelStatus

REPLIED = ("status", "score", "raw", "tokens", "micro_usd", "seconds", "settled_at")
QueryStatus = Literal["reserved", "labelled", "quarantined", "lost"]


class Order(NamedTuple):
    """A question, and the most that its answer may cost. `holder` answers for the reservation: this process if None."""

    question: Question
    ceiling: Amount
    paid_on_loss: bool
    holder: str | None = None


class Reservation(NamedTuple):
    """Money and tokens set aside for one call; settle, release or lose it."""

    query_id: int
    account: str
    micro_usd: int
    tokens: int = 0


class Settlement(NamedTuple):
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
        values = (status, score, self.raw, self.tokens, self.micro_usd, self.seconds, time.time())
        named = {f"new_{name}": value for name, value in zip(REPLIED, values, strict=True)}
        return {"query_id": self.reservation.query_id, **named}


class Answer(NamedTuple):
    """What the ledger holds for a question; `bought` says whether this account paid for it."""

    score: float
    micro_usd: int
    tokens: int
    bought: bool
    status: LabelStatus


Outcome = Reservation | Answer | BudgetExhausted | None


def dearer(price: Amount, charged: Amount) -> ValueError | None:
    """Return the error of an expert who asks more than was reserved: the caps no longer hold."""
    if price.micro_usd <= charged.micro_usd and (price.tokens <= charged.tokens or not charged.tokens):
        return None
    return ValueError(
        f"oracle asked {dollars(price.micro_usd)} for a query reserved at {dollars(charged.micro_usd)} "
        f"({price.tokens} tokens, reserved {charged.tokens}): its ceiling is too low; the reply is kept"
    )
