"""Client of OpenAI-compatible chat servers: one call with rate limits, price and failure policy."""

import asyncio
import atexit
import logging
import math
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from models.core.errors import ConfigError
from models.core.event_loop import run, unless_stopped
from models.core.money import Amount, Prices
from models.core.registry import Frozen
from models.oracles.base import (
    CostEstimate,
    MaybeBilledError,
    QuestionRejected,
    RateLimited,
    RequestRejected,
    RetryableError,
    TokenCounter,
)
from models.oracles.endpoint_policy import canonical, check_address, check_key_name, is_loopback
from models.oracles.failures import Failure, failure_of, meaning
from models.oracles.replies import Reply, reply_of
from models.oracles.request_style import RequestStyle, remedy_for

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._types import RequestOptions

log = logging.getLogger(__name__)

Message = Mapping[str, str]

# A byte-level tokenizer makes no more tokens than bytes; the chat template adds a few for each message.
_TOKENS_PER_MESSAGE = 16
_SAID = 400  # characters of what a server says of a failure
_SECONDS_PER_TOKEN = (
    0.02  # of a reply, and as much as thirty of them before the first: usual, where nothing was measured
)


def most_tokens(text: str) -> int:
    """Return an upper bound of a text's tokens."""
    return len(text.encode())


def most_tokens_sent(messages: Sequence[Message]) -> int:
    """Return an upper bound of the input tokens of a call."""
    return sum(most_tokens(m["content"]) + _TOKENS_PER_MESSAGE for m in messages)


class Endpoint(Frozen):
    """A model behind a server. The key is read from the environment variable `api_key_env` and goes nowhere else."""

    # What it costs and how long it may take, and how many tokens: none of it makes another answer of the same question.
    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "prices", "max_tokens", "timeout", "requests_per_minute", "tokens_per_minute"}
    )

    model: str = Field(description="Name of the model, as the server calls it.")
    base_url: str = Field("https://api.openai.com/v1", description="URL of the OpenAI-compatible server.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$", description="Environment variable that holds the key."
    )
    name: str = Field(
        "", description="Name under which labels are owned, in the place of base_url: for servers that move."
    )
    prices: Prices
    max_tokens: PositiveInt = Field(512, description="Most tokens of a reply, those of reasoning included.")
    temperature: NonNegativeFloat | None = Field(
        0.0, description="Sampling temperature of the judge; null sends none, for models that take none."
    )
    request: RequestStyle = Field(RequestStyle(), description="How this server wants to be asked.")
    timeout: PositiveFloat = Field(60.0, description="Seconds that a call may take.")
    requests_per_minute: PositiveInt | None = Field(None, description="Most calls per minute; no limit by default.")
    tokens_per_minute: PositiveInt | None = Field(None, description="Most tokens per minute; no limit by default.")

    @field_validator("base_url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError("base_url must start with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "base_url must hold no user, password or query: set the key in the environment variable api_key_env"
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _of_an_oracle(cls, name: str) -> str:
        return check_key_name(name)

    def identity(self) -> dict[str, Any]:
        """Return what a reply depends on: not prices, limits, patience, the name of the key, or how an address is spelt."""
        where = self.name or canonical(self.base_url)
        return {
            "model": self.model,
            "server": where,
            "temperature": self.temperature,
            "request": self.request.identity(),
        }

    def most(self, sent: int) -> Amount:
        """Return the most that one call may cost that sends at most so many tokens."""
        return Amount(self.prices.most(input_tokens=sent, output_tokens=self.max_tokens), sent + self.max_tokens)

    def estimate(self, messages: Sequence[Message], count: TokenCounter, *, output_tokens: int) -> CostEstimate:
        """Return what one call usually costs."""
        sent, written = sum(count(m["content"]) for m in messages), min(output_tokens, self.max_tokens)
        price = self.prices.cost(input_tokens=sent, output_tokens=written)
        return CostEstimate(price, sent + written, seconds=(written + 30) * _SECONDS_PER_TOKEN)

    def rate_limit_seconds(self, calls: int, tokens: int) -> float:
        """Return the seconds that the rate limits make of so many calls and tokens."""
        rates = (calls, self.requests_per_minute), (tokens, self.tokens_per_minute)
        return max(60.0 * number / limit if limit else 0.0 for number, limit in rates)

    def check(self) -> None:
        """Raise ConfigError if there is no key, or the server is where none may be, before anything is bought."""
        check_address(self.base_url)
        if not os.environ.get(self.api_key_env):
            raise ConfigError(
                f"environment variable {self.api_key_env} is not set: export the key of {self.base_url} in it"
            )

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: Mapping[str, Any] | None = None,
        top_logprobs: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """Return the reply to one call.

        `schema` asks for JSON of that shape, `top_logprobs` for that many alternatives of each token. Raises RetryableError
        where nothing was billed (a rate limit, an error of the server, no connection), QuestionRejected where these messages
        will not be answered, RequestRejected where none will, and MaybeBilledError where the reply may have been paid for
        and never came, or cannot be read. `models.oracles.failures.meaning` says which failure is which.
        """
        await self._wait(self.most(most_tokens_sent(messages)).tokens)
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.request.reasoning_effort is not None:
            options["reasoning_effort"] = self.request.reasoning_effort
        if seed is not None and self.request.seed:
            options["seed"] = seed
        if schema is not None:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            }
        if top_logprobs:
            options |= {"logprobs": True, "top_logprobs": top_logprobs}
        asked = self.request.messages([dict(message) for message in messages])
        body = {"model": self.model, "messages": asked, **options, **self.request.extra}
        known = self.digest()
        field = _field_of(self, known)
        try:
            return await self._post(body, messages, known)
        except RequestRejected as refused:
            if not _learn_field(self, known, refused) and _field_of(self, known) == field:  # another may have learnt it
                raise
            return await self._post(body, messages, known)

    async def _post(self, body: Mapping[str, Any], messages: Sequence[Message], known: str) -> Reply:
        """Return the reply to a request of the endpoint with the digest `known`. Raises as `complete`."""
        client, field = _client(self, known), _field_of(self, known)
        sent = {**body, field: self.max_tokens} if field is not None else body
        try:
            async with asyncio.timeout(self.timeout):  # of the whole call; the SDK's is of each part of it
                # `chat.completions.create` does the same and takes twice the time, in types that are read once
                answer = await client.post("/chat/completions", body=sent, cast_to=object, options=_key_of(self))
            if isinstance(answer, Mapping) and answer.get("error") and not answer.get("choices"):
                raise self._meant(failure_of(None, answer), {}, messages)
            reply = reply_of(answer, self.prices, sent=most_tokens_sent(messages), written=self.max_tokens)
            if reply.doubt:
                _warn_once(self.base_url, self.model, reply.doubt)
            return reply
        except (RetryableError, MaybeBilledError):
            raise
        except Exception as error:
            failure = self._failure(error, messages)
            if failure is None:
                raise
            # not `from error`: servers say a key that they refuse, and tracebacks are logged
            raise failure from None

    def _failure(self, error: Exception, messages: Sequence[Message]) -> Exception | None:
        """Return what an error of a call means for whoever pays; None for one that is not the server's. Says no key."""
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._meant(failure_of(error.status_code, error.body), error.response.headers, messages)
        said = self._without_key(str(getattr(error, "message", error)))
        if isinstance(error, TimeoutError):
            return MaybeBilledError(
                f"no whole reply from {self.base_url} in {self.timeout:g} s", most=self.most(most_tokens_sent(messages))
            )
        if isinstance(error, openai.APIConnectionError) and _never_sent(error):
            return RetryableError(f"no connection to {self.base_url}")
        if isinstance(error, openai.APIConnectionError):
            said = f"no reply from {self.base_url}: {error.__cause__ or said}"
        elif isinstance(
            error, openai.APIError | ValueError | TypeError | AttributeError | LookupError | RecursionError
        ):
            said = f"the reply of {self.base_url} cannot be read: {said}"
        else:
            return None
        return MaybeBilledError(said, most=self.most(most_tokens_sent(messages)))

    def _meant(self, failure: Failure, headers: Mapping[str, str], messages: Sequence[Message]) -> Exception:
        """Return the error for what a server has said of a call."""
        means, status = meaning(failure), failure.status or "an error in its reply"
        said = self._without_key(failure.words)[:_SAID]
        if means in {"free", "busy"}:
            what = "rate limit" if status == 429 else f"server error {status}"
            kind = RateLimited if means == "busy" else RetryableError
            return kind(f"{what} of {self.base_url}: {said}", retry_after=_retry_after(headers))
        if means == "billed":
            told = f"{self.base_url} failed with {status}, and may have billed the call: {said}"
            return MaybeBilledError(told, most=self.most(most_tokens_sent(messages)))
        told = f"{self.base_url} refused the call with {status}: {said}"
        if means in {"oracle", "doubtful"} and (remedy := remedy_for(failure.param, failure.words)):
            told += f" ({remedy})"
        if means == "oracle":
            return RequestRejected(told, param=failure.param, words=failure.words)
        return QuestionRejected(told, signature=failure.signature, certain=means == "question")

    def _without_key(self, said: str) -> str:
        return said.replace(os.environ[self.api_key_env], f"${self.api_key_env}")

    async def _wait(self, tokens: int) -> None:
        """Return when the limits allow a call of at most so many tokens; raise InterruptedError if labelling stops."""
        limits = (self.requests_per_minute, 1), (self.tokens_per_minute, tokens)
        limiters = _limiters(f"{self.base_url} {self.model}", self.requests_per_minute, self.tokens_per_minute)
        for (limit, weight), limiter in zip(limits, limiters, strict=True):
            if limit is not None:
                await unless_stopped(limiter.try_acquire_async("calls", weight=min(weight, limit)))


def _warn_once(base_url: str, model: str, doubt: str) -> None:
    if (base_url, model) not in _warned:
        _warned.add((base_url, model))
        log.warning("%s (%s): %s. Its calls are booked at the most that they may cost", base_url, model, doubt)


_warned: set[tuple[str, str]] = set()


def _never_sent(error: BaseException | None) -> bool:
    """Whether no connection was made. The SDK calls any broken one a connect time-out: only aiohttp's own error tells."""
    import aiohttp

    while error is not None and not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        error = error.__cause__
    return error is not None


_BYTES = 1 << 20  # of a reply, and so many more for each of its tokens, which may have twenty alternatives
_BYTES_PER_TOKEN = 4096


def _most_bytes(endpoint: Endpoint) -> int:
    return _BYTES + endpoint.max_tokens * _BYTES_PER_TOKEN


class _Response(Protocol):
    _content: bytes

    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


async def _read(response: _Response, *, most: int) -> None:
    """Read a reply as the client would, but no more of it than a reply may have; raise ValueError if it goes on."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(f"the reply is longer than {most:,} bytes")
    response._content = b"".join(parts)  # where `aread` keeps it


def close_clients() -> None:
    """Close every connection; the next call opens new ones."""
    while _clients:
        _, client = _clients.popitem()
        run(client.close())


_clients: "dict[str, AsyncOpenAI]" = {}  # by digest; used on the event loop, each by every call to its endpoint
atexit.register(close_clients)


def _client(endpoint: Endpoint, known: str) -> "AsyncOpenAI":
    import openai

    if known not in _clients:
        client = openai.AsyncOpenAI(
            api_key=os.environ[endpoint.api_key_env],
            base_url=endpoint.base_url,
            default_query=dict(endpoint.request.query),
            timeout=endpoint.timeout,
            max_retries=0,  # every attempt has its own reservation in the ledger, so that none is made behind its back
            # half the time per call of the default; where a server sends us to has not been checked
            http_client=openai.DefaultAioHttpClient(
                follow_redirects=False,
                trust_env=not is_loopback(endpoint.base_url),  # no proxy stands before this machine itself
                event_hooks={"response": [partial(_read, most=_most_bytes(endpoint))]},
            ),
        )
        # of the environment nothing leaves but the key that is named
        client.organization = client.project = client.admin_api_key = None
        client._custom_headers = {}
        _clients[known] = client
    return _clients[known]


def _key_of(endpoint: Endpoint) -> "RequestOptions":
    """Return the headers of a request whose key is in another one than `Authorization`; nothing for that one."""
    import openai

    header = endpoint.request.key_header
    if header == "Authorization":
        return {}
    return {"headers": {header: os.environ[endpoint.api_key_env], "Authorization": openai.Omit()}}


_UNKNOWN_FIELD = re.compile(
    r"unsupported|not supported|unknown|unrecogni[sz]ed|unexpected|extra|deprecated", re.IGNORECASE
)
_WRONG_VALUE = re.compile(r"too (large|high|many|big)|at most|less than|maximum|must be|exceed", re.IGNORECASE)
_other_field: set[str] = set()  # digests of endpoints that want their most tokens in the other field


def _field_of(endpoint: Endpoint, known: str) -> str | None:
    """Return the field that carries the most tokens: as it is set, or as the server has asked for it."""
    field = endpoint.request.max_tokens_as
    if field is None or known not in _other_field:
        return field
    return "max_tokens" if field == "max_completion_tokens" else "max_completion_tokens"


def _learn_field(endpoint: Endpoint, known: str, refused: RequestRejected) -> bool:
    """Note, once, that a server wants its most tokens in the other of the two fields; whether it does."""
    now = endpoint.request.max_tokens_as
    if now is None or known in _other_field:
        return False
    other = "max_tokens" if now == "max_completion_tokens" else "max_completion_tokens"
    unknown = refused.param == now and _UNKNOWN_FIELD.search(refused.words) and not _WRONG_VALUE.search(refused.words)
    if other not in refused.words and not unknown:
        return False
    log.info("%s (%s) wants %s in the place of %s", endpoint.base_url, endpoint.model, other, now)
    _other_field.add(known)
    return True


@lru_cache(maxsize=8)
def _limiters(server: str, calls: int | None, tokens: int | None) -> tuple[Any, Any]:
    """Return a server's limiters of calls and of tokens per minute; None where there is no limit."""
    del server  # each has its own
    from pyrate_limiter import Duration, Limiter, Rate, StateBucket

    def limiter(per_minute: int | None) -> Limiter | None:
        return None if per_minute is None else Limiter(StateBucket([Rate(per_minute, Duration.MINUTE)]))

    return limiter(calls), limiter(tokens)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait, in either form of RFC 9110; None where it says nothing readable."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError, TypeError, OverflowError):
            told = headers[name].strip()
            try:
                seconds = float(told) * unit
            except ValueError:
                seconds = parsedate_to_datetime(told).timestamp() - time.time()
            if not math.isnan(seconds):
                return max(seconds, 0.0)
    return None
