"""Price a call from the server's `usage`, or at its ceiling where that is impossible."""

from collections.abc import Mapping
from typing import NamedTuple

from models.core.errors import ConfigError
from models.core.money import Amount, Prices

# What a server may add to a call unseen: its own system prompt, reasoning that `max_tokens` does not count. What counts more
# than this has not counted one call.
_MOST_ADDED = 100_000


class Bill(NamedTuple):
    """The price and the tokens of one call; `doubt` says why they are not the server's own count, "" where they are."""

    cost: Amount
    doubt: str = ""


class _Counts(NamedTuple):
    sent: int
    cached: int
    cache_writes: int
    written: int


def bill(usage: object, prices: Prices, *, sent: int, written: int, text: str) -> Bill:
    """Return what a call has cost that could send at most `sent` tokens, could write `written`, and has brought a text.

    | usage                                                  | booked                                         |
    | ------------------------------------------------------ | ---------------------------------------------- |
    | whole counts, cached + cache writes ≤ prompt           | what they cost, above the ceiling too          |
    | `total_tokens` above their sum                         | the same, and what is above it as output       |
    | none, or a count that is missing, negative, no integer | the most that the call may cost                |
    | more of both together than prompt tokens               | the same: a gateway that counts them apart     |
    | nothing sent, or nothing written though there is text  | the same                                       |
    | 100,000 tokens more than could be sent, or written     | the same: it is no count of this call          |

    A price above the ceiling is a real one, of a server that does not keep to `max_tokens`: the ledger keeps it and stops.
    """
    try:
        counts = _counts(usage, text)
        if counts.sent > sent + _MOST_ADDED or counts.written > written + _MOST_ADDED:
            raise ConfigError(
                f"of {counts.sent} tokens sent and {counts.written} written, {sent} and {written} are the most"
            )
    except ValueError as doubt:
        said = f"the usage {str(usage)[:200]} cannot be this call's: {doubt}"
        return Bill(Amount(prices.most(input_tokens=sent, output_tokens=written), sent + written), said)
    price = prices.cost(
        input_tokens=counts.sent,
        output_tokens=counts.written,
        cached_tokens=counts.cached,
        cache_writes=counts.cache_writes,
    )
    return Bill(Amount(price, counts.sent + counts.written))


def _counts(usage: object, text: str) -> _Counts:
    """Return what a usage counts; raise ConfigError that says why it counts no call."""
    if not isinstance(usage, Mapping):
        raise ConfigError("it says nothing")
    sent, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    details = usage.get("prompt_tokens_details")
    if details is not None and not isinstance(details, Mapping):
        raise ConfigError("prompt_tokens_details holds no counts")
    cached = _most_said(details or {}, "cached_tokens")
    # gateways call the same count by one name or another, or by two at once
    writes = max(
        _most_said(details or {}, "cache_write_tokens", "cache_creation_tokens"),
        _most_said(usage, "cache_creation_input_tokens"),
    )
    if cached + writes > sent:
        raise ConfigError(f"{cached} cached tokens and {writes} cache writes of {sent} sent")
    # servers that count reasoning in the total alone bill it as output
    if usage.get("total_tokens") is not None:
        written += max(_count(usage, "total_tokens") - sent - written, 0)
    if not sent or (text and not written):
        raise ConfigError("nothing sent, or nothing written")
    return _Counts(sent, cached, writes, written)


def _most_said(counts: Mapping[str, object], *names: str) -> int:
    """Return the largest of the counts that are there; 0 where none is."""
    return max((_count(counts, name) for name in names if counts.get(name) is not None), default=0)


def _count(counts: Mapping[str, object], name: str) -> int:
    value = counts.get(name)
    if type(value) is not int or value < 0:  # a bool is an int, and no count
        raise ConfigError(f"{name} is {str(value)[:40]!r}, no count")
    return value
