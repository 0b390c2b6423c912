"""Batch concurrent ledger operations into one transaction at a time."""

import asyncio
from typing import TypeVar

from models.ledger.entries import Answer, Order, Outcome, Settlement
from models.ledger.ledger import Ledger

Request = TypeVar("Request")
Result = TypeVar("Result")
_Waiting = list[tuple[Request, "asyncio.Future[Result]"]]


class LedgerBatcher:
    """One account's way to the ledger, for coroutines of one event loop.

    While a transaction is under way, what is wanted meanwhile gathers and shares the next: the more calls are in flight,
    the less each of them costs.
    """

    def __init__(self, ledger: Ledger, account: str) -> None:
        self.ledger = ledger
        self.account = account
        self._orders: _Waiting[Order, Outcome] = []
        self._replies: _Waiting[Settlement, Answer | ValueError] = []
        self._at_work: asyncio.Task[None] | None = None

    async def reserve(self, order: Order) -> Outcome:
        """Return what `Ledger.reserve` would, BudgetExhausted as a value."""
        return await self._wait(self._orders, order)

    async def settle(self, reply: Settlement) -> Answer:
        """Settle a reply; raises as `Ledger.settle`."""
        answer = await self._wait(self._replies, reply)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    async def _wait(self, waiting: "_Waiting[Request, Result]", wanted: Request) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting.append((wanted, future))
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._orders or self._replies:
            await asyncio.sleep(0)  # whoever is about to want something comes along
            orders, replies = self._orders, self._replies
            self._orders, self._replies = [], []
            wanted = [reply for reply, _ in replies], [order for order, _ in orders]
            try:
                settled, reserved = await self._exchange(*wanted)
            except Exception as error:
                _fail(orders, error)
                await self._settle_alone(replies)  # paid for: what was wrong with an order must not cost them
                continue
            _hand_out(replies, settled)
            _hand_out(orders, reserved)

    async def _settle_alone(self, replies: "_Waiting[Settlement, Answer | ValueError]") -> None:
        try:
            settled, _ = await self._exchange([reply for reply, _ in replies], [])
        except Exception as error:
            _fail(replies, error)
        else:
            _hand_out(replies, settled)

    async def _exchange(
        self, replies: list[Settlement], orders: list[Order]
    ) -> tuple[list[Answer | ValueError], list[Outcome]]:
        if self.ledger.embedded:  # a file: two threads that wait for each other's turn take longer than the transaction
            return self.ledger.exchange(self.account, replies, orders)
        return await asyncio.to_thread(self.ledger.exchange, self.account, replies, orders)


def _fail(waiting: "_Waiting[Request, Result]", error: BaseException) -> None:
    for _, future in waiting:
        future.set_exception(error)


def _hand_out(waiting: "_Waiting[Request, Result]", results: list[Result]) -> None:
    for (_, future), result in zip(waiting, results, strict=True):
        future.set_result(result)
