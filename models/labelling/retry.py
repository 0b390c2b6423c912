"""How many calls are in flight, when they wait, and when labelling gives an oracle up."""

import asyncio
import logging
import time
from collections import Counter, deque
from contextlib import suppress

from models.core.randomness import stream
from models.oracles.base import MaybeBilledError, QuestionRejected, RetryableError

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds without an answer, of the oracle or of the ledger
_LEAST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_LOOK = 0.25  # seconds
_TELL = 30.0  # seconds between two lines about one silence
_TOLD = 5.0  # seconds of waiting, from which a line tells of it
_LOST_IN_A_ROW = 12  # calls, of all workers, that may each have been paid for: asking on would only lose money
_REFUSED_ALIKE = 5  # questions, with no answer in between: it is not about them
_ROUNDS = 10.0  # of calls that go well, before one more is tried at once; up to four times as many if that is refused
_ALIKE, _MOST_ALIKE = 0.1, 2  # limits that differ by a tenth are the same; doublings of the rounds


def backoff_seconds(attempt: int, failure: Exception, *, seed: str) -> float:
    """Return the seconds to wait: what the server asks, else twice as long each time; up to half as much again by chance.

    Never longer than a minute, whatever is asked: to look again sooner costs nothing.
    """
    asked = failure.retry_after if isinstance(failure, RetryableError) else None
    pause = _LEAST_PAUSE * 2.0 ** min(attempt - 1, 16) if asked is None else asked
    return min(pause * (1.0 + stream(0, attempt, seed).random() / 2.0), _LONGEST_PAUSE)


class Flight:
    """Slots for calls, for `async with`: at most `most`, and as many as the server takes.

    A refusal leaves as many slots as there are calls that it has not met, and nobody asks before the time that the server
    names. When that many have gone well for a while, one more is tried in each round, then two, then four. The while is
    twice as long where the last try was refused at the same number: each try that fails costs the wait of all.
    """

    def __init__(self, most: int, stop: asyncio.Event) -> None:
        self.limit = float(most)
        self._most, self._stop = float(most), stop
        self._flying = self._refusals = 0
        self._not_before = self._cut = self._hold = 0.0
        self._step, self._round, self._seconds = 1.0, 0.0, 0.0
        self._level, self._alike = 0.0, 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> float:
        """Wait for a slot, and return when it was had; raise InterruptedError once labelling is stopped."""
        while True:
            if self._stop.is_set():
                raise InterruptedError("labelling was stopped before this query was asked")
            now = time.monotonic()
            if self._not_before <= now and self._flying < max(int(self.limit), 1):
                self._flying += 1
                return now
            wait = self._not_before - now
            await self._woken(min(wait, _LOOK) if wait > 0.0 else _LOOK)

    async def __aexit__(self, *_: object) -> None:
        self._flying -= 1
        self._wake(max(int(self.limit) - self._flying, 1))

    async def _woken(self, seconds: float) -> None:
        """Wait until a slot is free, at most so long. By a bare future: its task goes on at once, and asks before the ledger
        takes the loop for a transaction, where `wait_for` would let that pass."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiting)
        if self._timer is None or self._timer.when() > loop.time() + seconds:  # one for all
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(seconds, self._wake_all)
        try:
            await waiting
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(waiting)
            raise

    def _wake(self, most: int) -> None:
        while self._waiting and most > 0:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                most -= 1

    def _wake_all(self) -> None:
        self._timer = None
        self._wake(len(self._waiting))

    def answered(self, began: float) -> None:
        """Note an answer to a call that `began` then: after enough of them the server may take more."""
        now = time.monotonic()
        self._refusals = 0
        self._seconds = now - began if self._seconds == 0.0 else 0.9 * self._seconds + 0.1 * (now - began)
        if now < self._hold or self.limit >= self._most:
            return
        self.limit = min(self.limit + self._step / self.limit, self._most)
        self._round += 1.0 / self.limit
        if self._round >= 1.0:
            self._step, self._round = 2.0 * self._step, 0.0

    def refused(self, began: float, failure: RetryableError) -> None:
        """Note that the server took no more, of a call that `began` then: fewer are asked at once, and later."""
        now = time.monotonic()
        lowered = min(self.limit, max(self._flying - 1.0, 1.0))
        if began > self._cut:
            self._cut = now
            self._refusals += 1
            alike = abs(lowered - self._level) <= max(1.0, _ALIKE * lowered)
            self._alike = min(self._alike + 1, _MOST_ALIKE) if alike else 0
        self.limit = self._level = lowered
        self._step, self._round = 1.0, 0.0
        wait = backoff_seconds(self._refusals, failure, seed="flight")
        if now + wait > self._not_before:
            if wait >= _TOLD and self._not_before < now:
                log.warning("%s: nothing is asked for %.0f s, then fewer at once", failure, wait)
            self._not_before = now + wait
        self._hold = self._not_before + _ROUNDS * 2.0**self._alike * max(self._seconds, _LOOK)


class CircuitBreaker:
    """Stops labelling when nothing is answered for too long, or many questions are refused alike, whoever asks."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.stop = asyncio.Event()
        self.answers = 0
        self._patience = patience
        self._since = self._told = time.monotonic()
        self._lost = 0
        self._refused = Counter[str]()

    def record_success(self) -> None:
        """Note an answer."""
        self.answers += 1
        self._since = self._told = time.monotonic()
        self._lost = 0
        self._refused.clear()

    def excuse(self) -> None:
        """Count the silence from now on: it was not the oracle's."""
        self._since = self._told = time.monotonic()

    def refused(self, refusal: QuestionRejected) -> str:
        """Note a refused question; return what is wrong if it is every question that is refused, "" otherwise."""
        if refusal.certain:
            return ""
        self._refused[refusal.signature] += 1
        if self._refused[refusal.signature] < _REFUSED_ALIKE:
            return ""
        return f"{_REFUSED_ALIKE} different questions in a row were refused alike, and none was answered: {refusal}"

    def record_failure(self, failure: Exception) -> str:
        """Note a failure; return why labelling stops if it is one too many, "" otherwise."""
        now = time.monotonic()
        silent = now - self._since
        if isinstance(failure, MaybeBilledError):
            self._lost += 1
            if self._lost >= _LOST_IN_A_ROW:
                return f"{self._lost} calls in a row may have been billed, and brought nothing; last: {failure}"
        if silent >= self._patience:
            return (
                f"nothing was answered for {silent:.0f} s (labelling.patience is {self._patience:.0f}); last: {failure}"
            )
        if now - self._told >= _TELL:
            self._told = now
            log.warning(
                "nothing was answered for %.0f s (%s); labelling stops after %.0f s", silent, failure, self._patience
            )
        return ""
