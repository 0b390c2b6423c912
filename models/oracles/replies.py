"""Parse a chat completion's reply: text, price, alternatives, refusal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models.core.money import Prices
from models.oracles.usage import bill


class Reply(NamedTuple):
    """What came back. `alternatives` are (token, probability by token) along the text, where they were asked for.

    `doubt` says why the price is the most that the call may have cost, where the server's usage tells none.
    """

    text: str
    refused: bool
    alternatives: Sequence[tuple[str, Mapping[str, float]]]
    model: str
    tokens: int
    micro_usd: int
    doubt: str = ""
    cut_off: bool = False  # by the most tokens that it may have


def reply_of(answer: object, prices: Prices, *, sent: int, written: int) -> Reply:
    """Return what a server has answered to a call that could send and write at most so many tokens.

    A reply without a choice is a refusal: filters leave it so. Raises KeyError if there are no choices at all.
    """
    told = _mapping(answer)
    choices = told["choices"]
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    message = _mapping(choice.get("message"))
    text = text_of(message.get("content"))
    price, doubt = bill(told.get("usage"), prices, sent=sent, written=written, text=text)
    return Reply(
        text=text,
        refused=not choice or bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter",
        alternatives=_alternatives(choice.get("logprobs")),
        model=f"{told.get('model') or ''} {told.get('system_fingerprint') or ''}".strip(),
        tokens=price.tokens,
        micro_usd=price.micro_usd,
        doubt=doubt,
        cut_off=choice.get("finish_reason") == "length",
    )


def text_of(content: object) -> str:
    """Return the text of a reply's content: a text, or a list of parts, of which those that are no text are left out.

    What is neither states no verdict, and is returned as it is written, for people to look at.
    """
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") in ("text", "output_text")]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else "" if content is None else repr(content)


_TAG = r"(think|thinking|reasoning|thought)"
_OPENS = re.compile(rf"\s*+<{_TAG}>", re.IGNORECASE)
_CLOSES = re.compile(rf"</{_TAG}>\s*+", re.IGNORECASE)
_VERDICT = re.compile(r"^\W*+(score|better)\b|\"(score|better)\"", re.IGNORECASE | re.MULTILINE)


class Inner(NamedTuple):
    """What a reply says without what it thought first, and without a fence around it; and where that begins."""

    text: str
    begin: int


def unwrapped(text: str) -> Inner:
    """Return what a reply says.

    Taken off: one block of thoughts at its beginning, whose opening tag the chat template may have written, then one fence
    around all that is left. Thoughts that do not end say nothing. Whatever else stands in the reply stays, and is read as
    strictly as before; so does a part that might be thoughts and states a verdict.
    """
    begin = 0
    if opened := _OPENS.match(text):
        closed = re.compile(rf"</{opened[1]}>\s*+", re.IGNORECASE).search(text, opened.end())
        if closed is None:
            return Inner("", len(text))
        begin = closed.end()
    elif text.lstrip()[:1] not in {"{", "`", "~"}:  # a verdict may speak of such tags itself
        *_, last = (None, *_CLOSES.finditer(text))
        if last is not None and not _VERDICT.search(text, 0, last.start()):
            begin = last.end()
    return _unfenced(text, begin)


def _unfenced(text: str, begin: int) -> Inner:
    """Return what stands in a fence that holds all from `begin` on; all of it where there is none."""
    stripped = text[begin:].strip()
    mark = stripped[:3]
    head, newline, rest = stripped.partition("\n")
    if mark not in {"```", "~~~"} or not newline or not re.fullmatch(r"(`{3,}|~{3,})[\t ]*+\w*+[\t ]*+\r?", head):
        return Inner(text[begin:], begin)
    fence = head.rstrip()[: len(head) - len(head.lstrip(mark[0]))]
    if not rest.endswith(fence) or mark in (body := rest[: -len(fence)]):
        return Inner(text[begin:], begin)
    start = text.index(stripped, begin) + len(head) + 1
    return Inner(body, start)


def _alternatives(logprobs: object) -> list[tuple[str, Mapping[str, float]]]:
    """Return (token, probability by token) along a text; nothing where the server says it in another way."""
    try:
        return [
            (str(place["token"]), {str(top["token"]): math.exp(top["logprob"]) for top in place["top_logprobs"]})
            for place in _mapping(logprobs).get("content") or ()
        ]
    except (ArithmeticError, LookupError, TypeError):
        return []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
