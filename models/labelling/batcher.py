"""Batch concurrent ledger operations into one transaction at a time, and outlast a database that is away."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from models.core.errors import NinefoldError
from models.labelling.retry import PATIENCE
from models.ledger.database import is_away, reason_of
from models.ledger.entries import (
    Answer,
    Closing,
    Loss,
    QueryRequest,
    QueryResult,
    Release,
    Reservation,
    ReservationResult,
)
from models.ledger.journal import Journal
from models.ledger.ledger import Ledger

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Result = TypeVar("Result")
_Waiting = list[tuple[Request, "asyncio.Future[Result]"]]
_Closed = Answer | ValueError | None

_HURRY = 2.0  # seconds, once labelling has been stopped
_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_TELL = 30.0  # seconds between two lines about one absence
_AT_ONCE = 2.0  # seconds that are not worth a line


class LedgerAway(NinefoldError):
    """The ledger's database has not taken what was to be booked; it is kept in a journal."""


class LedgerBatcher:
    """One account's way to the ledger, for coroutines of one event loop.

    While a transaction is under way, what is wanted meanwhile gathers and shares the next: the more calls are in flight,
    the less each of them costs. While the database is away, all wait for it, for `patience` seconds; then, or soon after
    `stop` is set, what was to be booked goes to the `journal`, and the rest fails with LedgerAway.
    """

    def __init__(
        self,
        ledger: Ledger,
        account: str,
        *,
        paid_by: Sequence[str] = (),
        journal: Journal | None = None,
        stop: asyncio.Event | None = None,
        patience: float = PATIENCE,
        on_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.ledger = ledger
        self.account = account
        self._paid_by = paid_by
        self._journal, self._stop, self._patience = journal, stop or asyncio.Event(), patience
        self._on_back = on_back
        self._orders: _Waiting[QueryRequest, ReservationResult] = []
        self._closings: _Waiting[Closing, _Closed] = []
        self._at_work: asyncio.Task[None] | None = None

    async def reserve(self, order: QueryRequest) -> ReservationResult:
        """Return what `Ledger.reserve` would, BudgetExhausted and PurseExhausted as values."""
        return await self._wait(self._orders, order)

    async def settle(self, reply: QueryResult) -> Answer:
        """Settle a reply; raises as `Ledger.settle`, or LedgerAway."""
        answer = await self._wait(self._closings, reply)
        if isinstance(answer, Answer):
            return answer
        raise answer or TypeError("a settlement has no answer")

    async def release(self, reservation: Reservation) -> None:
        """Undo a reservation whose call has cost nothing. Raises LedgerAway."""
        await self._wait(self._closings, Release(reservation))

    async def mark_lost(self, lost: Loss) -> None:
        """Count a call as paid whose reply has never arrived. Raises LedgerAway."""
        await self._wait(self._closings, lost)

    async def _wait(self, waiting: "_Waiting[Request, Result]", wanted: Request) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting.append((wanted, future))
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._orders or self._closings:
            await asyncio.sleep(0)  # whoever is about to want something comes along
            orders, closings = self._orders, self._closings
            self._orders, self._closings = [], []
            try:
                closed, reserved = await self._outlast([c for c, _ in closings], [order for order, _ in orders])
            except LedgerAway as away:
                _reject(orders, away)
                self._keep(closings, away)
            except Exception as error:
                if len(orders) + len(closings) == 1:
                    _reject(orders, error)
                    self._keep(closings, error)
                else:  # what is wrong with one must not cost the others
                    await self._each_alone(closings, orders)
            else:
                _resolve(closings, closed)
                _resolve(orders, reserved)

    async def _each_alone(
        self, closings: "_Waiting[Closing, _Closed]", orders: "_Waiting[QueryRequest, ReservationResult]"
    ) -> None:
        for closing in closings:
            try:
                (closed,), _ = await self._outlast([closing[0]], [])
                _resolve([closing], [closed])
            except Exception as error:
                self._keep([closing], error)
        for order in orders:
            try:
                _, (reserved,) = await self._outlast([], [order[0]])
                _resolve([order], [reserved])
            except Exception as error:
                _reject([order], error)

    async def _outlast(
        self, closings: list[Closing], orders: list[QueryRequest]
    ) -> tuple[list[_Closed], list[ReservationResult]]:
        """Return what `Ledger.settle_and_reserve` does, repeated while the database is away. Raises LedgerAway at last."""
        began, told, pause = time.monotonic(), _AT_ONCE - _TELL, _PAUSE
        while True:
            try:
                done = await self._exchange(closings, orders)
                if time.monotonic() - began > _AT_ONCE:
                    self._on_back()
                return done
            except Exception as error:
                if not is_away(error):
                    raise
                waited = time.monotonic() - began
                left = (_HURRY if self._stop.is_set() else self._patience) - waited
                why = reason_of(error)
                if left <= 0:
                    raise LedgerAway(f"the ledger could not be reached for {waited:.0f} s: {why}") from error
                if waited - told >= _TELL:
                    log.warning(
                        "the ledger cannot be reached (%s): %d calls wait to be booked, and nothing new is asked. It is "
                        "tried for %.0f s more; then they are kept in a journal",
                        *(why, len(closings) + len(self._closings), left),
                    )
                    told = waited
                await self._pause(min(pause, left))
                pause = min(pause * 2.0, _LONGEST_PAUSE)

    async def _pause(self, seconds: float) -> None:
        if self._stop.is_set():
            await asyncio.sleep(min(seconds, _PAUSE))
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _keep(self, closings: "_Waiting[Closing, _Closed]", why: Exception) -> None:
        """Write down how calls have ended that were not booked, and tell those who wait."""
        for closing, future in closings:
            told: Exception = why
            if self._journal is not None:
                try:
                    self._journal.append(closing)
                    told = LedgerAway(f"{why}. It is kept in {self._journal.file}, and the next start books it")
                except Exception as error:  # whatever it is: whoever waits must not wait for ever
                    log.error("%s takes no more (%s): this is not kept: %s", self._journal.file, error, closing)
            future.set_exception(told)

    async def _exchange(
        self, closings: list[Closing], orders: list[QueryRequest]
    ) -> tuple[list[_Closed], list[ReservationResult]]:
        book = partial(self.ledger.settle_and_reserve, self.account, closings, orders, paid_by=self._paid_by)
        if self.ledger.embedded:  # a file: two threads that wait for each other's turn take longer than the transaction
            return book(wait=0.0)  # the loop has other work
        return await asyncio.to_thread(book)


def _reject(waiting: "_Waiting[Request, Result]", error: BaseException) -> None:
    for _, future in waiting:
        future.set_exception(error)


def _resolve(waiting: "_Waiting[Request, Result]", results: list[Result]) -> None:
    for (_, future), result in zip(waiting, results, strict=True):
        future.set_result(result)
