"""Label responses with an oracle under hard caps: concurrent, resumable, one ledger entry per query."""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from models.core import progress
from models.core.data import Label, LabelStatus, Response
from models.core.errors import NinefoldError, UnusableOutput
from models.core.event_loop import STOP, run
from models.core.money import NO_CAP, Amount, total
from models.core.rubric import Rubric
from models.labelling.batcher import LedgerBatcher
from models.labelling.human_queue import Queue
from models.labelling.retry import PATIENCE, CircuitBreaker, Flight, backoff_seconds
from models.labelling.watch import ReplyWatch
from models.ledger.accounts import BudgetExhausted, PurseExhausted
from models.ledger.database import is_away, reason_of
from models.ledger.entries import Answer, Loss, QueryRequest, QueryResult, Reservation
from models.ledger.journal import Journal
from models.ledger.ledger import Ledger
from models.ledger.liveness import described, labelling
from models.ledger.purses import Purse
from models.ledger.tables import Question
from models.oracles.base import (
    AnnotationTask,
    MaybeBilledError,
    Oracle,
    QuestionRejected,
    RateLimited,
    RequestRejected,
    RetryableError,
    Verdict,
)

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_TELL_SECONDS = 30.0  # between two lines about one that waits for another
_TRIES = 6
_REFUSALS, _OTHERS = 20, 100  # times that a rate limit meets one question while so many others are answered


@dataclass(frozen=True)
class LabellingSession:
    """Where labels are bought: the oracle, the criterion, and the account that pays.

    Labels of an `replicate` are apart from all others: the same question may be bought once on each. What is bought is
    charged to the `purses` too.
    """

    ledger: Ledger
    oracle: Oracle
    rubric: Rubric
    account: str
    replicate: str = ""
    patience: float = PATIENCE  # seconds without an answer of the oracle, or of the ledger
    least_usable: float = 0.0  # share of the replies that must hold a verdict
    purses: tuple[Purse, ...] = ()

    @cached_property
    def _asked_of(self) -> tuple[str, str]:
        criterion = self.rubric.digest()
        return self.oracle.fingerprint(), f"{criterion} {self.replicate}" if self.replicate else criterion

    @property
    def paid_by(self) -> list[str]:
        """The purses by name."""
        return [purse.name for purse in self.purses]

    @property
    def annotation_task(self) -> AnnotationTask | None:
        """On what terms people are asked; None for oracles that answer when called."""
        return self.oracle.annotation_task(self.rubric)

    def for_replicate(self, purpose: str, replicate: str) -> "LabellingSession":
        """Return a desk whose labels and account are those of an replicate, for a check of the oracle."""
        return replace(self, replicate=replicate, account=f"{purpose} {replicate} {self.oracle.fingerprint()}")

    def question(self, response: Response) -> Question:
        """Return the query about a response, as the ledger knows it."""
        return Question(*self._asked_of, response.prompt, response.text)

    def order(self, response: Response, holder: str | None = None) -> QueryRequest:
        """Return that query with the most it may cost, and who answers for it."""
        asked = response.prompt, response.text
        ceiling = Amount(self.oracle.max_cost(*asked), self.oracle.max_query_tokens(*asked))
        told = self.oracle.billed_on_failure, holder, self.oracle.costs_money
        return QueryRequest(self.question(response), ceiling, *told)


class LabellingStopped(NinefoldError):
    """The oracle failed; every label paid for so far is in the ledger and is not bought again."""


class AnswersPending(LabellingStopped):
    """People have been asked, and have not answered everything yet."""

    def __init__(self, questions: int) -> None:
        super().__init__(
            f"{questions} questions wait for people: ninefold labels export queue.csv --queue, then ninefold labels import "
            "queue.csv; the same command goes on from there"
        )
        self.questions = questions


def label_responses(
    responses: Sequence[Response],
    session: LabellingSession,
    *,
    max_queries: int,
    max_micro_usd: int,
    max_tokens: int = NO_CAP,
    concurrency: int = 1,
) -> list[Label]:
    """Ask the oracle about each response, within the caps, and return the labels in the order of the responses.

    Quarantined replies (NaN, ±inf) are returned with that status. As many are asked at once as their ceilings allow;
    what they cost less than that pays for more, until the next ceiling no longer fits: the last responses are not asked,
    whatever the number of workers. Raises LabellingStopped when the oracle raises, or a purse is empty; running again asks
    only for what is missing. Raises AnswersPending while people have not answered.
    """
    with _opened(session, Caps(max_queries, max_micro_usd, max_tokens), concurrency) as (holder, journal):
        asked = [session.order(response, holder) for response in responses]
        unique = {order.question.key: order for order in asked}  # what is asked twice is one query
        orders, places = list(unique.values())[:max_queries], {key: place for place, key in enumerate(unique)}
        answers: list[Answer | BudgetExhausted] = []
        left = Amount(max_micro_usd, max_tokens)
        with progress.bar(
            total=len(orders), desc="labelling", unit="query", disable=session.annotation_task is not None
        ) as bar:
            asking = _Asking(session, concurrency, bar, journal)
            while covered := _covered(orders[len(answers) :], left):
                wanted = orders[len(answers) : len(answers) + covered]
                if session.annotation_task and (
                    waiting := Queue(session.ledger).post(
                        session.account,
                        wanted,
                        session.annotation_task,
                        session.oracle.query_type,
                        paid_by=session.paid_by,
                    )
                ):
                    raise AnswersPending(waiting)
                found = _ask_all(wanted, asking, len(answers))
                answers += found
                if any(isinstance(answer, BudgetExhausted) for answer in found):
                    break
                spent = total(Amount(a.micro_usd, a.tokens) for a in found if isinstance(a, Answer))
                left = left.plus(spent.negative)
    if len(answers) < len(places):
        log.warning("the caps cover %d of %d queries: the rest is not asked", len(answers), len(places))
    unpaid = [a for a in answers if isinstance(a, BudgetExhausted)]
    if unpaid:
        log.warning("%d of %d queries were not asked: %s", len(unpaid), len(places), unpaid[0])
    labels, seen = [], set[int]()
    for response, order in zip(responses, asked, strict=True):
        place = places[order.question.key]
        answer = answers[place] if place < len(answers) else None
        if isinstance(answer, Answer):
            labels.append(_label(response, answer, again=place in seen))
            seen.add(place)
    return labels


class Caps(NamedTuple):
    """The most that an account may be charged."""

    queries: int
    micro_usd: int
    tokens: int


@contextmanager
def _opened(session: LabellingSession, caps: Caps, concurrency: int) -> Iterator[tuple[str | None, Journal | None]]:
    """Open the account, and yield who holds this labelling's reservations and where its replies go if all else fails.

    What others have left behind is booked or given up first. Raises LabellingStopped if the ledger cannot be reached now.
    """
    ledger, (queries, micro_usd, tokens) = session.ledger, caps
    try:
        ledger.open_account(session.account, max_queries=queries, max_micro_usd=micro_usd, max_tokens=tokens)
        for purse in session.purses:
            ledger.open_account(purse.name, max_micro_usd=purse.micro_usd)
        if recovered := ledger.release_stale():
            log.warning("%d reservations of processes that died were given up", recovered)
    except Exception as error:
        if not is_away(error):
            raise
        raise LabellingStopped(f"the ledger cannot be reached, and nothing was asked: {reason_of(error)}") from error
    if session.annotation_task:
        yield None, None
        return
    with labelling() as holder:
        journal = ledger.journal(holder, in_flight=concurrency)
        try:
            yield holder, journal
        finally:
            if journal is not None:
                journal.close()


def _label(response: Response, answer: Answer, *, again: bool) -> Label:
    """Return a response's label; one that is asked about `again` has cost nothing more."""
    return Label(
        response_id=response.id,
        score=answer.score if answer.status == "labelled" else math.nan,
        micro_usd=0 if again else answer.micro_usd,
        tokens=0 if again else answer.tokens,
        bought=answer.bought and not again,
        status=answer.status,
    )


def _covered(orders: Sequence[QueryRequest], left: Amount) -> int:
    """Return how many of the orders, from the first on, can certainly be paid for."""
    for count, order in enumerate(orders):
        left = left.plus(order.ceiling.negative)
        if min(left) < 0:
            return count
    return len(orders)


def _ask_all(orders: Sequence[QueryRequest], asking: "_Asking", before: int) -> list[Answer | BudgetExhausted]:
    # on Ctrl-C what is in flight is settled, and what is queued is not asked
    outcomes = run(asking.all(orders), on_interrupt=asking.breaker.stop.set)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer | BudgetExhausted)]
    if errors := [outcome for outcome in outcomes if isinstance(outcome, Exception) and outcome not in answers]:
        cause = next((e for e in errors if not isinstance(e, InterruptedError | QuestionRejected)), errors[0])
        raise LabellingStopped(
            f"labelling stopped after {before + len(answers)} of {asking.bar.total} queries: {cause}. "
            "The labels are kept; run again to go on from here"
        ) from cause
    return answers


class _Asking:
    """Asks the oracle about many tuples at once."""

    def __init__(self, session: LabellingSession, concurrency: int, bar: progress.Bar, journal: Journal | None) -> None:
        self.session = session
        self.breaker = CircuitBreaker(session.patience)
        self.watch = ReplyWatch(session.oracle, session.least_usable)
        self.batcher = LedgerBatcher(
            *(session.ledger, session.account),
            paid_by=session.paid_by,
            journal=journal,
            stop=self.breaker.stop,
            patience=session.patience,
            on_back=self.breaker.excuse,
        )
        self.flight = Flight(concurrency, self.breaker.stop)
        self.looking = asyncio.Lock()
        # some have their reservation in hand when a slot comes free: the ledger's time is not the oracle's idle time
        self.ready = concurrency + max(concurrency // 4, 1)
        self.bar = bar

    async def all(self, orders: Sequence[QueryRequest]) -> list[Answer | Exception | None]:
        """Return what came of each order; None for those that were not asked because another has failed."""
        outcomes: list[Answer | Exception | None] = [None] * len(orders)
        waiting = iter(enumerate(orders))

        async def work() -> None:
            for place, order in waiting:
                if self.breaker.stop.is_set():
                    return
                try:
                    outcomes[place] = await self._ask(order)
                except Exception as error:
                    outcomes[place] = error
                    if not isinstance(error, BudgetExhausted | QuestionRejected):
                        self.breaker.stop.set()  # at once: the others must not go on paying an oracle that fails
                self.bar.update()

        await asyncio.gather(*(work() for _ in range(self.ready)))
        for place, refusal in enumerate(outcomes):
            # not where labelling stopped, perhaps for what was refused
            if isinstance(refusal, QuestionRejected) and not self.breaker.stop.is_set():
                outcomes[place] = await self._quarantine(orders[place], refusal)
        return outcomes

    async def _ask(self, order: QueryRequest) -> Answer:
        failures, refusals, answered = 0, 0, self.breaker.answers
        while True:
            try:
                return await self._ask_once(order)
            except (RequestRejected, QuestionRejected):
                raise
            except (RetryableError, MaybeBilledError) as failure:
                if why := self.breaker.record_failure(failure):
                    raise RequestRejected(why) from failure
                others = self.breaker.answers - answered
                if isinstance(failure, RateLimited):  # no fault of the question, most likely, and the slots wait
                    refusals += 1
                    if refusals >= _REFUSALS and others >= _OTHERS:
                        self._give_up(refusals, failure, others=others)
                    continue
                failures += 1
                if failures >= _TRIES:
                    self._give_up(failures, failure, others=others)
                log.debug("asking again after %s", failure)
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self.breaker.stop.wait(),
                        backoff_seconds(failures, failure, seed=order.question.prompt + order.question.response),
                    )

    def _give_up(self, failures: int, failure: Exception, *, others: int) -> None:
        """Raise QuestionRejected where it is this question that fails; the failure, where going on would cost money."""
        if others:
            told = f"asked {failures} times, and failed each time while {others} others were answered: {failure}"
            raise QuestionRejected(told, signature="", certain=True)
        if isinstance(failure, MaybeBilledError):
            raise failure

    async def _ask_once(self, order: QueryRequest) -> Answer:
        reserved = await self._reserve(order)
        if isinstance(reserved, Answer):
            return reserved
        try:
            verdict, seconds = await self._call(order.question)
        except (RetryableError, InterruptedError) as failure:
            if isinstance(failure, QuestionRejected) and failure.certain:
                return await self._settle_refused(reserved, failure)
            await self.batcher.release(reserved)
            raise
        except MaybeBilledError as lost:
            await self.batcher.mark_lost(Loss(reserved, lost.most))
            raise
        except BaseException:
            if order.billed_on_failure:
                await self.batcher.mark_lost(Loss(reserved))
            else:
                await self.batcher.release(reserved)
            raise
        found = verdict.score, verdict.raw, verdict.tokens, verdict.micro_usd, seconds
        status: LabelStatus = "labelled" if math.isfinite(verdict.score) else "quarantined"
        why = self.watch.note(verdict.raw, usable=status == "labelled")
        if why:
            self.breaker.stop.set()  # before this reply is booked: the others must not go on paying
        answer = await self.batcher.settle(QueryResult(reserved, status, *found))
        if why:
            raise UnusableOutput(why)
        return answer

    async def _quarantine(self, order: QueryRequest, refusal: QuestionRejected) -> Answer | Exception:
        """Return the quarantined label of a question that was refused while others were answered."""
        try:
            held = await self._reserve(order)
        except (BudgetExhausted, PurseExhausted, InterruptedError) as error:
            return error
        return held if isinstance(held, Answer) else await self._settle_refused(held, refusal)

    async def _settle_refused(self, reserved: Reservation, refusal: QuestionRejected) -> Answer:
        log.warning("a question is quarantined, and costs nothing: %s", refusal)
        return await self.batcher.settle(QueryResult(reserved, "quarantined", math.nan, refusal.raw, 0, 0, 0.0))

    async def _call(self, question: Question) -> tuple[Verdict, float]:
        """Return the verdict and the seconds it took; what will not pass stops the others before the slot is free."""
        async with self.flight as began:
            STOP.set(self.breaker.stop)
            started = time.monotonic()
            try:
                verdict = await self.session.oracle.judge_async(question.prompt, question.response, self.session.rubric)
            except QuestionRejected as refusal:
                if every := self.breaker.refused(refusal):
                    self.breaker.stop.set()
                    raise RequestRejected(every) from None
                raise
            except RateLimited as failure:
                self.flight.refused(began, failure)
                raise
            except BaseException as error:
                if isinstance(error, RequestRejected) or not isinstance(error, RetryableError | MaybeBilledError):
                    self.breaker.stop.set()
                raise
            self.breaker.record_success()
            self.flight.answered(began)
            return verdict, time.monotonic() - started

    async def _reserve(self, order: QueryRequest) -> Reservation | Answer:
        began = told = time.monotonic()
        while True:
            self._go_on()
            outcome = await self.batcher.reserve(order)
            if isinstance(outcome, Reservation | Answer):
                return outcome
            if outcome is not None and not outcome.held:
                raise outcome
            # another asks the same now, or holds the money that its call in flight may not need
            await asyncio.sleep(_POLL_SECONDS)
            try:
                if not self.looking.locked():  # one looks for all that wait, in one session
                    async with self.looking:
                        await asyncio.to_thread(self.session.ledger.release_stale)
                if time.monotonic() - told >= _TELL_SECONDS:
                    told = time.monotonic()
                    await asyncio.to_thread(self._tell_of_waiting, order, told - began, money=outcome)
            except Exception as error:
                if not is_away(error):
                    raise

    def _tell_of_waiting(
        self, order: QueryRequest, seconds: float, *, money: BudgetExhausted | PurseExhausted | None
    ) -> None:
        """Log for whom a question waits."""
        ledger = self.session.ledger
        if money is not None:
            held = ledger.holders_of(money.purse if isinstance(money, PurseExhausted) else self.session.account)
            what = "the money that their calls in flight may not need"
        else:
            held, what = [ledger.holder_of(order.question)], "their answer to the same question"
        whom = ", ".join(dict.fromkeys(described(holder) for holder in held if holder)) or "others"
        log.warning("a question has waited %.0f s for %s: %s", seconds, whom, what)

    def _go_on(self) -> None:
        if self.breaker.stop.is_set():
            raise InterruptedError("labelling was stopped before this query was asked")
