"""Spend a budget on an expert: one ledger entry per query, concurrent, resumable, never past the cap."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Lock
from typing import Any

from tqdm import tqdm

from models.ledger import Answer, BudgetExhausted, Ledger
from models.ledger_tables import Question
from models.oracles.base import LostReply, Oracle, RefusedCall, UnpaidFailure
from models.preference import Label, Response
from models.randomness import stream
from models.rubric import Rubric

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_TRIES = 6
_LEAST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_BREAK_AFTER = 12  # failures in a row, of all workers together: the expert is down, and asking on would only lose money


@dataclass(frozen=True)
class Desk:
    """Where labels are bought: the expert, the criterion, and the account that pays.

    Labels of an `occasion` are apart from all others: the same question may be bought once on each.
    """

    ledger: Ledger
    oracle: Oracle
    rubric: Rubric
    account: str
    occasion: str = ""

    @cached_property
    def _asked_of(self) -> tuple[str, str]:
        criterion = self.rubric.digest()
        return self.oracle.fingerprint(), f"{criterion} {self.occasion}" if self.occasion else criterion

    def question(self, response: Response) -> Question:
        """Return the query about a response, as the ledger knows it."""
        return Question(*self._asked_of, response.prompt, response.text)


class LabellingStopped(Exception):
    """The expert failed; every label paid for so far is in the ledger and is not bought again."""


def label(
    responses: Sequence[Response], desk: Desk, *, max_queries: int, max_micro_usd: int, workers: int = 1
) -> list[Label]:
    """Ask the expert about each response, within both caps, and return the labels in the order of the responses.

    Quarantined replies (NaN, ±inf) are returned with that status. As many are asked at once as their price ceilings allow;
    what they cost less than that pays for more, until the next ceiling no longer fits: the last responses are not asked,
    whatever the number of workers. Raises LabellingStopped when the expert raises; running again asks only for what is
    missing.
    """
    desk.ledger.open_account(desk.account, max_queries=max_queries, max_micro_usd=max_micro_usd)
    if recovered := desk.ledger.recover():
        log.warning("%d reservations of processes that died were given up", recovered)
    answers: list[Answer | BudgetExhausted] = []
    money, most = max_micro_usd, min(len(responses), max_queries)
    with tqdm(total=most, desc="labelling", unit="query") as bar:
        while covered := _covered(responses[len(answers) : most], desk.oracle, money):
            found = _ask_all(responses[len(answers) : len(answers) + covered], desk, workers, bar, len(answers))
            answers += found
            if any(isinstance(answer, BudgetExhausted) for answer in found):
                break
            money -= sum(answer.micro_usd for answer in found if isinstance(answer, Answer))
    if len(answers) < len(responses):
        log.warning("the caps cover %d of %d queries: the rest is not asked", len(answers), len(responses))
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
        for response, answer in zip(responses, answers, strict=False)
        if isinstance(answer, Answer)
    ]


def _covered(responses: Sequence[Response], oracle: Oracle, money: int) -> int:
    """Return how many of the responses, from the first on, can certainly be paid for."""
    for count, response in enumerate(responses):
        money -= oracle.ceiling(response.prompt, response.text)
        if money < 0:
            return count
    return len(responses)


def _ask_all(
    responses: Sequence[Response], desk: Desk, workers: int, bar: "tqdm[Any]", before: int
) -> list[Answer | BudgetExhausted]:
    breaker = Breaker()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="oracle") as pool:
        futures = [pool.submit(_ask, response, desk, breaker) for response in responses]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: what is in flight is settled, what is queued is not asked
            breaker.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    outcomes = [future.exception() for future in futures if not future.cancelled()]
    errors = [error for error in outcomes if error is not None]
    if errors:
        cause = next((error for error in errors if not isinstance(error, InterruptedError)), errors[0])
        kept = before + len(outcomes) - len(errors)
        raise LabellingStopped(
            f"labelling stopped after {kept} of {bar.total} queries: {cause}. "
            "The labels are kept; run again to go on from here"
        ) from cause
    return [future.result() for future in futures]


def _ask(response: Response, desk: Desk, breaker: "Breaker") -> Answer | BudgetExhausted:
    question = desk.question(response)
    ceiling = desk.oracle.ceiling(response.prompt, response.text)
    try:
        for attempt in range(1, _TRIES + 1):
            try:
                answer = _ask_once(question, ceiling, desk, breaker.stop)
            except RefusedCall:
                raise
            except (UnpaidFailure, LostReply) as failure:
                if attempt == _TRIES or breaker.failed(failure):
                    raise
                log.info("asking again after %s", failure)
                breaker.stop.wait(_pause(attempt, failure, question))
            else:
                breaker.worked()
                return answer
    except BudgetExhausted as exhausted:
        return exhausted
    except BaseException:
        breaker.stop.set()  # at once: the other workers must not go on paying an expert that fails
        raise
    raise AssertionError("unreachable")


def _pause(attempt: int, failure: UnpaidFailure | LostReply, question: Question) -> float:
    """Return the seconds to wait: what the server asks, else twice as long each time; up to half as much again by chance."""
    asked = failure.retry_after if isinstance(failure, UnpaidFailure) else None
    pause = asked if asked is not None else min(_LEAST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
    return pause * (1.0 + stream(0, attempt, question.prompt + question.response).random() / 2.0)


class Breaker:
    """Stops the desk when the expert fails many times in a row, whoever asks."""

    def __init__(self) -> None:
        self.stop = Event()
        self._failures = 0
        self._lock = Lock()

    def worked(self) -> None:
        """Note an answer."""
        with self._lock:
            self._failures = 0

    def failed(self, failure: Exception) -> bool:
        """Note a failure; true if it is one too many."""
        with self._lock:
            self._failures += 1
            if self._failures < _BREAK_AFTER:
                return False
        log.warning("the expert has failed %d times in a row, last with: %s", _BREAK_AFTER, failure)
        return True


def _ask_once(question: Question, ceiling: int, desk: Desk, stop: Event) -> Answer:
    while True:
        if stop.is_set():
            raise InterruptedError("labelling was stopped before this query was asked")
        try:
            reserved = desk.ledger.reserve(
                desk.account, question, ceiling=ceiling, paid_on_loss=desk.oracle.paid_on_loss
            )
        except BudgetExhausted as exhausted:
            if not exhausted.held:
                raise
            reserved = None  # another's call in flight holds the money, and may cost less than it holds
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
    except LostReply as lost:
        desk.ledger.lose(reserved, micro_usd=lost.micro_usd)
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
