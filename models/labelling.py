"""Spend a budget on an expert: one ledger entry per query, concurrent, resumable, never past the cap."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from threading import Event

from tqdm import tqdm

from models.ledger import Answer, BudgetExhausted, Ledger
from models.ledger_tables import Question
from models.oracles.base import Oracle, UnpaidFailure
from models.preference import Label, Response
from models.rubric import Rubric

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_UNPAID_TRIES = 3


@dataclass(frozen=True)
class Desk:
    """Where labels are bought: the expert, the criterion, and the account that pays."""

    ledger: Ledger
    oracle: Oracle
    rubric: Rubric
    account: str

    @cached_property
    def _asked_of(self) -> tuple[str, str]:
        return self.oracle.fingerprint(), self.rubric.digest()

    def question(self, response: Response) -> Question:
        """Return the query about a response, as the ledger knows it."""
        return Question(*self._asked_of, response.prompt, response.text)


class LabellingStopped(Exception):
    """The expert failed; every label paid for so far is in the ledger and is not bought again."""


def label(
    responses: Sequence[Response], desk: Desk, *, max_queries: int, max_micro_usd: int, workers: int = 1
) -> list[Label]:
    """Ask the expert about each response, within both caps, and return the labels in the order of the responses.

    Quarantined replies (NaN, ±inf) are returned with that status. Responses whose price ceilings no longer fit the caps
    are not asked, the last ones first, whatever the number of workers. Raises LabellingStopped when the expert
    raises; running again asks only for what is missing.
    """
    covered = _covered(responses, desk.oracle, max_queries, max_micro_usd)
    if covered < len(responses):
        log.warning("the caps cover %d of %d queries: the rest is not asked", covered, len(responses))
    responses = responses[:covered]
    desk.ledger.open_account(desk.account, max_queries=max_queries, max_micro_usd=max_micro_usd)
    if recovered := desk.ledger.recover():
        log.warning("%d reservations of processes that died were given up", recovered)
    stop = Event()
    with (
        ThreadPoolExecutor(max_workers=workers, thread_name_prefix="oracle") as pool,
        tqdm(total=len(responses), desc="labelling", unit="query") as bar,
    ):
        futures = [pool.submit(_ask, response, desk, stop) for response in responses]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: what is in flight is settled, what is queued is not asked
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    outcomes = [future.exception() for future in futures if not future.cancelled()]
    errors = [error for error in outcomes if error is not None]
    if errors:
        cause = next((error for error in errors if not isinstance(error, InterruptedError)), errors[0])
        kept = len(outcomes) - len(errors)
        raise LabellingStopped(
            f"labelling stopped after {kept} of {len(responses)} queries: {cause}. "
            "The labels are kept; run again to go on from here"
        ) from cause
    answers = [future.result() for future in futures]
    unpaid = [a for a in answers if isinstance(a, BudgetExhausted)]
    if unpaid:
        log.warning("%d of %d queries were not asked: %s", len(unpaid), len(responses), unpaid[0])
    return [
        Label(
            response_id=response.id,
            score=answer.score if answer.status == "labelled" else math.nan,
            micro_usd=answer.micro_usd,
            tokens=answer.tokens,
            bought=answer.bought,
            status=answer.status,
        )
        for response, answer in zip(responses, answers, strict=True)
        if isinstance(answer, Answer)
    ]


def _covered(responses: Sequence[Response], oracle: Oracle, max_queries: int, max_micro_usd: int) -> int:
    money = max_micro_usd
    for count, response in enumerate(responses[:max_queries]):
        money -= oracle.ceiling(response.prompt, response.text)
        if money < 0:
            return count
    return min(len(responses), max_queries)


def _ask(response: Response, desk: Desk, stop: Event) -> Answer | BudgetExhausted:
    question = desk.question(response)
    ceiling = desk.oracle.ceiling(response.prompt, response.text)
    try:
        for attempt in range(_UNPAID_TRIES):
            try:
                return _ask_once(question, ceiling, desk, stop)
            except UnpaidFailure as failure:
                if attempt + 1 == _UNPAID_TRIES:
                    raise
                log.info("unpaid failure, asking again: %s", failure)
    except BudgetExhausted as exhausted:
        return exhausted
    except BaseException:
        stop.set()  # at once: the other workers must not go on paying an expert that fails
        raise
    raise AssertionError("unreachable")


def _ask_once(question: Question, ceiling: int, desk: Desk, stop: Event) -> Answer:
    while True:
        if stop.is_set():
            raise InterruptedError("labelling was stopped before this query was asked")
        reserved = desk.ledger.reserve(desk.account, question, ceiling=ceiling, paid_on_loss=desk.oracle.paid_on_loss)
        if isinstance(reserved, Answer):
            return reserved
        if reserved is not None:
            break
        time.sleep(_POLL_SECONDS)
        desk.ledger.recover()
    started = time.monotonic()
    try:
        verdict = desk.oracle.judge(question.prompt, question.response, desk.rubric)
    except UnpaidFailure:
        desk.ledger.release(reserved)
        raise
    except BaseException:
        if desk.oracle.paid_on_loss:
            desk.ledger.lose(reserved)
        else:
            desk.ledger.release(reserved)
        raise
    return desk.ledger.settle(
        reserved,
        status="labelled" if math.isfinite(verdict.score) else "quarantined",
        score=verdict.score,
        raw=verdict.raw,
        tokens=verdict.tokens,
        micro_usd=verdict.micro_usd,
        seconds=time.monotonic() - started,
    )
