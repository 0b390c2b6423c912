"""Circuit breaker and backoff for failing oracles."""

import asyncio
import logging
from collections import Counter

from models.core.randomness import stream
from models.oracles.base import MaybeBilledError, QuestionRejected, RetryableError

log = logging.getLogger(__name__)

_LEAST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_BREAK_AFTER = 12  # failures in a row, of all workers together: the oracle is down, and asking on would only lose money

_REFUSED_ALIKE = 5  # questions, with no answer in between: it is not about them


def pause_after(attempt: int, failure: RetryableError | MaybeBilledError, *, seed: str) -> float:
    """Return the seconds to wait: what the server asks, else twice as long each time; up to half as much again by chance."""
    asked = failure.retry_after if isinstance(failure, RetryableError) else None
    pause = asked if asked is not None else min(_LEAST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
    return pause * (1.0 + stream(0, attempt, seed).random() / 2.0)


class Breaker:
    """Stops the desk when the oracle fails many times in a row, or refuses many questions alike, whoever asks."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._failures = 0
        self._refused = Counter[str]()

    def worked(self) -> None:
        """Note an answer."""
        self._failures = 0
        self._refused.clear()

    def refused(self, refusal: QuestionRejected) -> str:
        """Note a refused question; return what is wrong if it is every question that is refused, "" otherwise."""
        if refusal.certain:
            return ""
        self._refused[refusal.signature] += 1
        if self._refused[refusal.signature] < _REFUSED_ALIKE:
            return ""
        return f"{_REFUSED_ALIKE} different questions in a row were refused alike, and none was answered: {refusal}"

    def failed(self, failure: Exception) -> bool:
        """Note a failure; true if it is one too many."""
        self._failures += 1
        if self._failures < _BREAK_AFTER:
            return False
        log.warning("the oracle has failed %d times in a row, last with: %s", _BREAK_AFTER, failure)
        return True
