"""Failure policy of chat servers: free or billed, this question or the whole oracle."""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# free: nothing was done, ask again · busy: the same, and it takes no more for now · billed: perhaps, ask again
# question: this one will not be answered, and costs nothing · doubtful: the same, unless others are refused alike
# oracle: no question will be answered
Meaning = Literal["free", "busy", "billed", "question", "doubtful", "oracle"]

_BUSY = {409, 425, 429, 500, 503, 529}
_TAKES_NO_MORE = {429, 503, 529}
_GATEWAYS = {408, 499, 502, 504, 520, 522, 524, 598, 599}  # a gateway that waits no longer: the model may have answered
_ABOUT_TEXTS = {400, 413, 414, 422, 431}

_READ = 600  # characters of what is said: after them servers repeat what was asked

# Of codes, types and messages, in small letters. Servers of the same status mean different things, and say so in words.
_QUOTA = re.compile(
    r"insufficient.?(quota|balance|credit|fund)|billing_?(hard_?limit|not_?active)|"
    r"credit balance is too low|payment.required|account.{0,20}(suspended|deactivated|overdue)|arrearage"
)
_NOBODY = re.compile(
    r"(invalid|incorrect|missing|no).{0,12}api.?key|authenti|permission|not authori|unauthori|access.{0,8}denied|"
    r"model.{0,60}(not.?found|does.?not.?exist|not.?exist|not.?supported|decommissioned|deprecated|unavailable)|"
    r"(unknown|invalid|no such|unsupported).?model"
)
_ONE_IS_TOO_MUCH = re.compile(r"request too large")
_RATE = re.compile(r"rate.?limit|too.?many.?requests|throttl|overload|try again later")
_FILTERED = re.compile(
    r"content.{0,3}(filter|policy|management|moderation)|responsible.?ai|safety|moderation|flagged|"
    r"usage.?polic(y|ies)|data.?inspection|invalid_prompt|(sensitive|inappropriate|prohibited|unsafe|harmful).{0,3}content"
)
_TOO_LONG_CODE = re.compile(r"context.?(length|window)|string_above_max_length|too.?(long|large)|max.?length")
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|too (long|large|many (input )?tokens)|maximum.{0,20}(length|tokens)|input.{0,10}tokens|"
    r"exceeds?.{0,40}(tokens|length|limit|size)|reduce.{0,30}(length|messages|prompt)"
)
_OF_THE_TEXT = re.compile(r"context|(input|prompt).{0,10}tokens|messages")
# what every call sends, or every call of an oracle
_ALWAYS_SENT = {
    *("model", "max_tokens", "max_completion_tokens", "temperature", "seed", "response_format", "json_schema"),
    *("logprobs", "top_logprobs", "stream", "n"),
}
_NAMED = re.compile(rf"\b({'|'.join(sorted(_ALWAYS_SENT - {'model', 'n', 'stream'}))})\b")
_OF_A_PARAMETER = re.compile(r"(unsupported|unknown|invalid|unrecognized).?(parameter|value|argument|field)")


class Failure(NamedTuple):
    """What a server says of a call that has failed: a status, where it gives one, and its words, without the key."""

    status: int | None
    words: str
    code: str = ""
    kind: str = ""
    param: str = ""

    @property
    def signature(self) -> str:
        """What is the same of two refusals for the same reason: without the numbers and quotations of each question."""
        shape = re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "", self.words)[:60]
        return "|".join([str(self.status), self.code, self.kind, self.param, shape])


def meaning(said: Failure) -> Meaning:
    """Return what a failure means.

    | the server says                                                              | meaning                          |
    | ---------------------------------------------------------------------------- | -------------------------------- |
    | quota, credit or billing, at any status; 402                                 | oracle: stop                     |
    | 401, 403, 404, 405 and other 3xx, 4xx                                        | oracle: stop                     |
    | 403 or 451 of a content filter                                               | question: quarantined, goes on   |
    | 429, 503, 529; other 409, 425, 5xx in words of a rate limit or overload      | busy: fewer are asked, later     |
    | 409, 425; 500 and other 5xx                                                  | free: asked again                |
    | 408, 499, 502, 504, 520, 522, 524, 598, 599: a gateway has waited            | billed, perhaps: asked again     |
    | 400, 413, 414, 422: code or words of a content filter, or code of the length | question: quarantined, goes on   |
    | 413, 414                                                                     | question: quarantined, goes on   |
    | 400, 422 that names a parameter of every call, the key or the model          | oracle: stop                     |
    | 400, 422 of the length and of `max_tokens`: together they may be too much    | doubtful: question, if others go |
    | 400, 422 of the length, in words alone                                       | question: quarantined, goes on   |
    | 400, 422, anything else                                                      | doubtful: question, if others go |
    | no status (an error in a reply of status 200): by its words, else            | billed, perhaps: asked again     |
    """
    status, named = said.status, f"{said.code} {said.kind}".lower()
    words = f"{named} {said.words[:_READ].lower()}"
    filtered = status in {None, 403, 451, *_ABOUT_TEXTS} and _FILTERED.search(words)
    busy = _RATE.search(words) if status is None else status in _BUSY or status >= 500
    if status == 402 or _QUOTA.search(words):
        return "oracle"
    if status in _GATEWAYS:
        return "billed"
    if busy and status == 429 and _ONE_IS_TOO_MUCH.search(words):
        return "doubtful"  # more than a minute's tokens at once: it will never pass
    if busy:
        return "busy" if status in _TAKES_NO_MORE or _RATE.search(words) else "free"
    if filtered or status in _ABOUT_TEXTS or status is None:
        return "question" if filtered else _about_a_text(said, named, words)
    return "oracle"


def _about_a_text(said: Failure, named: str, words: str) -> Meaning:
    if _TOO_LONG_CODE.search(named) or said.status in {413, 414}:
        return "question"
    of_every_call = _top(said.param) in _ALWAYS_SENT or _NAMED.search(words)
    if _TOO_LONG.search(words) and (not of_every_call or _OF_THE_TEXT.search(words)):
        return "doubtful" if of_every_call else "question"
    if of_every_call or _NOBODY.search(words) or _OF_A_PARAMETER.search(named):
        return "oracle"
    return "billed" if said.status is None else "doubtful"


def _top(param: str) -> str:
    return re.split(r"[.\[]", param, maxsplit=1)[0]


def failure_of(status: int | None, body: object) -> Failure:
    """Return what the body of a failed call says, in any of the shapes that servers give it.

    `status` is the reply's; None for an error in a reply of status 200, which may tell one of its own.
    """
    error: Any = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping) and _problems(error.get("detail")):
        return _of_problems(status, error["detail"])
    if isinstance(error, list) and len(error) == 1:
        error = error[0].get("error", error[0]) if isinstance(error[0], Mapping) else error[0]
    if not isinstance(error, Mapping):
        return Failure(status, error if isinstance(error, str) else _written(error))
    inner = error.get("innererror") or error.get("inner_error")
    codes = [error.get("code"), inner.get("code") if isinstance(inner, Mapping) else None, error.get("status")]
    if status is None:
        status = next((number for number in map(_status, codes) if number is not None), None)
    message = error.get("message")
    return Failure(
        status,
        message if isinstance(message, str) and message else _written(error),
        code=" ".join(str(code) for code in codes if code is not None),
        kind=str(error.get("type") or ""),
        param=str(error.get("param") or ""),
    )


def _problems(detail: object) -> bool:
    return (
        isinstance(detail, list) and bool(detail) and all(isinstance(one, Mapping) and "msg" in one for one in detail)
    )


def _of_problems(status: int | None, detail: list[Mapping[str, Any]]) -> Failure:
    """Return what a server says that checks fields by pydantic: where and what, without the input that it repeats."""
    places = [".".join(str(part) for part in one.get("loc") or () if part != "body") for one in detail]
    words = "; ".join(f"{place}: {one['msg']}" for place, one in zip(places, detail, strict=True))
    return Failure(status, words, kind=str(detail[0].get("type") or ""), param=places[0])


def _status(code: object) -> int | None:
    number = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3 else code
    return number if type(number) is int and 400 <= number < 600 else None


def _written(error: object) -> str:
    return json.dumps(error, ensure_ascii=False, default=str)
