"""Ask again what an oracle has not answered: replies without a verdict, and calls that brought no reply."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from models.core.data import Response
from models.core.money import MicroUsd
from models.labelling.label import LabellingSession, label_responses
from models.ledger.reopening import reopen
from models.oracles.base import approximate_tokens

Row = dict[str, Any]  # of the ledger


def account_of_retries(account: str) -> str:
    """Return the account that pays for what is asked again of another, on top of that one's caps."""
    return f"retry {account}"


class RetryPrice(NamedTuple):
    """What asking again costs, in micro-dollars: expected, and at most."""

    expected: MicroUsd
    most: MicroUsd


class Retried(NamedTuple):
    """How many questions were asked again, how many now have a verdict, and what that cost, in micro-dollars."""

    asked: int
    answered: int
    micro_usd: MicroUsd


def retry_price(session: LabellingSession, rows: Sequence[Row]) -> RetryPrice:
    """Return the price of asking an oracle again about the questions of these rows."""
    asked, oracle = {(row["prompt"], row["response"]) for row in rows}, session.oracle
    return RetryPrice(
        sum(oracle.estimate(*each, approximate_tokens).micro_usd for each in asked),
        sum(oracle.max_cost(*each) for each in asked),
    )


def retry_rows(session: LabellingSession, rows: Sequence[Row], *, most: MicroUsd, concurrency: int) -> Retried:
    """Ask again about rows of the ledger that the session's account is charged for, for at most so many micro-dollars.

    They are given up first, their cost with them, so that this account has room for the new answers when its run is run
    again. What this pays is on an account of its own. Raises as label_responses: the next try goes on from there.
    """
    ledger, payer = session.ledger, account_of_retries(session.account)
    ledger.open_account(payer, max_queries=0, max_micro_usd=0, max_tokens=0)
    reopen(ledger, [row["id"] for row in rows], to=payer)
    questions = list(dict.fromkeys((row["prompt"], row["response"]) for row in rows))
    before = ledger.spent(payer)
    labels = label_responses(
        [Response.recorded(str(number), *each) for number, each in enumerate(questions)],
        replace(session, account=payer),
        max_queries=before.queries + len(questions),
        max_micro_usd=before.micro_usd + most,
        concurrency=concurrency,
    )
    answered = sum(label.status == "labelled" for label in labels)
    return Retried(len(labels), answered, ledger.spent(payer).micro_usd - before.micro_usd)
