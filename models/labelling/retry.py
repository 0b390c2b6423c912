"""How many calls are in flight, when they wait, and when labelling gives an oracle up."""

import asyncio
import logging
import time
from collections import Counter

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
_LESS = 0.7  # of the calls in flight, after the server has taken no more


def pause_after(attempt: int, failure: Exception, *, seed: str) -> float:
    """Return the seconds to wait: what the server asks, else twice as long each time; up to half as much again by chance.

    Never longer than a minute, whatever is asked: to look again sooner costs nothing.
    """
    asked = failure.retry_after if isinstance(failure, RetryableError) else None
    pause = _LEAST_PAUSE * 2.0 ** min(attempt - 1, 16) if asked is None else asked
    return min(pause * (1.0 + stream(0, attempt, seed).random() / 2.0), _LONGEST_PAUSE)


class Flight:
    """Slots for calls, for `async with`: at most `most`, and as many as the server takes.

    Additive increase, multiplicative decrease (Chiu and Jain 1989): an answer adds a part of a slot, a refusal takes
    three in ten away, once for all calls that were under way. While the server has asked to wait, nobody asks.
    """

    def __init__(self, most: int, stop: asyncio.Event) -> None:
        self.limit = float(most)
        self._most, self._stop = float(most), stop
        self._flying = self._refusals = 0
        self._not_before = self._cut = 0.0
        self._freed = asyncio.Event()

    async def __aenter__(self) -> float:
        """Wait for a slot, and return when it was had; raise InterruptedError once labelling is stopped."""
        while True:
            if self._stop.is_set():
                raise InterruptedError("labelling was stopped before this query was asked")
            wait = self._not_before - time.monotonic()
            if wait <= 0.0 and self._flying < max(int(self.limit), 1):
                self._flying += 1
                return time.monotonic()
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), min(wait, _LOOK) if wait > 0.0 else _LOOK)
            except TimeoutError:
                continue

    async def __aexit__(self, *_: object) -> None:
        self._flying -= 1
        self._freed.set()

    def answered(self) -> None:
        """Note an answer: the server takes a little more."""
        self._refusals = 0
        self.limit = min(self.limit + 1.0 / self.limit, self._most)

    def refused(self, began: float, failure: RetryableError) -> None:
        """Note that the server took no more, of a call that `began` then: fewer are asked at once, and later."""
        now = time.monotonic()
        if began > self._cut:
            self.limit = max(self.limit * _LESS, 1.0)
            self._cut = now
            self._refusals += 1
        wait = pause_after(self._refusals, failure, seed="flight")
        if now + wait > self._not_before:
            if wait >= _TOLD and self._not_before < now:
                log.warning("%s: nothing is asked for %.0f s, then %d at once", failure, wait, int(self.limit))
            self._not_before = now + wait


class Breaker:
    """Stops labelling when nothing is answered for too long, or many questions are refused alike, whoever asks."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.stop = asyncio.Event()
        self.answers = 0
        self._patience = patience
        self._since = self._told = time.monotonic()
        self._lost = 0
        self._refused = Counter[str]()

    def worked(self) -> None:
        """Note an answer."""
        self.answers += 1
        self._since = self._told = time.monotonic()
        self._lost = 0
        self._refused.clear()

    def refused(self, refusal: QuestionRejected) -> str:
        """Note a refused question; return what is wrong if it is every question that is refused, "" otherwise."""
        if refusal.certain:
            return ""
        self._refused[refusal.signature] += 1
        if self._refused[refusal.signature] < _REFUSED_ALIKE:
            return ""
        return f"{_REFUSED_ALIKE} different questions in a row were refused alike, and none was answered: {refusal}"

    def failed(self, failure: Exception) -> str:
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
