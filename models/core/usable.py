"""How much of what a stage has made can be used; the bound that stops a run before the next expense."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import Field

from models.core.data import Response
from models.core.errors import UnusableOutput

_SHOWN = 160  # characters of a text that cannot be used
_ODD = 0.1  # share of characters that no text has: the decoder's mark of broken bytes, and control characters
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
HALF = 0.5


def least_usable(of: str) -> float:
    """Return the field of a bound, with what it is the share of."""
    bound: float = Field(
        HALF,
        ge=0,
        le=1,
        description=f"Smallest share of {of}; with less, the run stops before the next expense. It changes no result.",
    )
    return bound


def require(usable: int, total: int, least: float, *, field: str, what: str, told: str) -> None:
    """Raise UnusableOutput, with what is `told` besides, if fewer than the share `least` of what was made can be used."""
    if total and usable < least * total:
        raise UnusableOutput(f"{usable} of {total} {what}, and {field} asks for {least:.0%}. {told}")


def another(example: str, remedy: str) -> str:
    """Return the beginning of one that cannot be used, and what may help, in words."""
    return f"Another one: {beginning(example)}. {remedy}"


def beginning(text: str) -> str:
    """Return the beginning of a text for people, in one line and in quotes."""
    return f"{text[:_SHOWN]!r}{'…' if len(text) > _SHOWN else ''}"


def is_readable(text: str) -> bool:
    """Whether a text says something: it has a letter or a digit, and hardly a character that no text has."""
    odd = sum(c == _REPLACEMENT or (ord(c) < ord(" ") and not c.isspace()) for c in text)
    return odd <= _ODD * len(text) and any(c.isalnum() for c in text)


class ResponseShares(NamedTuple):
    """What a policy has written, as shares of N responses: with no text at all; readable; ended by the model itself before
    the most tokens; unlike every earlier response to the same prompt."""

    empty: float
    readable: float
    finished: float
    distinct: float


def response_shares(responses: Sequence[Response], *, max_new_tokens: int) -> ResponseShares:
    """Return the shares of at least one response."""
    total, different = len(responses), {(r.prompt_id, r.text) for r in responses}
    return ResponseShares(
        empty=sum(not r.text.strip() for r in responses) / total,
        readable=sum(is_readable(r.text) for r in responses) / total,
        finished=sum(r.tokens < max_new_tokens for r in responses) / total,
        distinct=len(different) / total,
    )


def require_responses(responses: Sequence[Response], *, least: float, samples: int) -> None:
    """Raise UnusableOutput unless the share `least` of the responses can be read, and of the prompts has two that differ."""
    unread = [r for r in responses if not is_readable(r.text)]
    require(
        len(responses) - len(unread),
        len(responses),
        least,
        field="generation.least_usable",
        what="responses can be read",
        told=another(
            next((r.text for r in unread), ""),
            "See policy.template, policy.dtype and policy.sft: the model does not write text",
        ),
    )
    texts = defaultdict[str, set[str]](set)
    for r in responses:
        texts[r.prompt_id].add(r.text)
    alike = [said for said in texts.values() if len(said) < 2]
    require(
        len(texts) - len(alike) if samples > 1 else len(texts),
        len(texts),
        least,
        field="generation.least_usable",
        what="prompts have two responses that differ, as a preference needs",
        told=another(
            next((text for said in alike for text in said), ""), "Raise generation.temperature or generation.samples"
        ),
    )


def same_score(scores: Iterable[float]) -> float | None:
    """Return the score that all of many have; None where they differ, or are too few to say."""
    known = list(scores)
    return known[0] if len(known) >= ENOUGH and len(set(known)) == 1 else None


ENOUGH = 20  # replies, before any conclusion is drawn of them
