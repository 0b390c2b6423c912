"""Client of OpenAI-compatible chat servers: one call with rate limits, price and failure policy."""

import asyncio
import atexit
import logging
import math
import os
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
from models.oracles.endpoint_policy import check_address, check_key_name
from models.oracles.failures import Failure, failure_of, meaning
from models.oracles.replies import Reply, reply_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

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

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "timeout", "requests_per_minute", "tokens_per_minute"}
    )

    model: str = Field(description="Name of the model, as the server calls it.")
    base_url: str = Field("https://api.openai.com/v1", description="URL of the OpenAI-compatible server.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$", description="Environment variable that holds the key."
    )
    prices: Prices
    max_tokens: PositiveInt = Field(512, description="Most tokens of a reply.")
    temperature: NonNegativeFloat = Field(0.0, description="Sampling temperature of the judge.")
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
        """Return what a reply depends on: not the limits, the patience or the name of the key."""
        return self.model_dump(mode="json", exclude=set(self.execution_fields))

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
        options: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if seed is not None:
            options["seed"] = seed
        if schema is not None:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            }
        if top_logprobs:
            options |= {"logprobs": True, "top_logprobs": top_logprobs}
        body = {"model": self.model, "messages": list(messages), **options}
        try:
            # `chat.completions.create` does the same and takes twice the time for each call, in types that are read once
            client = _client(self)
            async with asyncio.timeout(self.timeout):  # of the whole call; the SDK's is of each part of it
                answer = await client.post("/chat/completions", body=body, cast_to=object)
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
        if means == "oracle":
            return RequestRejected(told)
        return QuestionRejected(told, signature=failure.signature, certain=means == "question")

    def _without_key(self, said: str) -> str:
        return said.replace(os.environ[self.api_key_env], f"${self.api_key_env}")

    async def _wait(self, tokens: int) -> None:
        """Return when the limits allow a call of at most so many tokens; raise InterruptedError if labelling stops."""
        limits = (self.requests_per_minute, 1), (self.tokens_per_minute, tokens)
        for (limit, weight), limiter in zip(limits, _limiters(self), strict=True):
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


_clients: "dict[Endpoint, AsyncOpenAI]" = {}  # used on the event loop, each by every call to its endpoint
atexit.register(close_clients)


def _client(endpoint: Endpoint) -> "AsyncOpenAI":
    import openai

    if endpoint not in _clients:
        _clients[endpoint] = openai.AsyncOpenAI(
            api_key=os.environ[endpoint.api_key_env],
            base_url=endpoint.base_url,
            timeout=endpoint.timeout,
            max_retries=0,  # every attempt has its own reservation in the ledger, so that none is made behind its back
            # half the time per call of the default; where a server sends us to has not been checked
            http_client=openai.DefaultAioHttpClient(
                follow_redirects=False, event_hooks={"response": [partial(_read, most=_most_bytes(endpoint))]}
            ),
        )
    return _clients[endpoint]


@lru_cache(maxsize=8)
def _limiters(endpoint: Endpoint) -> tuple[Any, Any]:
    """Return the limiters of calls and of tokens; None where there is no limit."""
    from pyrate_limiter import Duration, Limiter, Rate, StateBucket

    def limiter(per_minute: int | None) -> Limiter | None:
        return None if per_minute is None else Limiter(StateBucket([Rate(per_minute, Duration.MINUTE)]))

    return limiter(endpoint.requests_per_minute), limiter(endpoint.tokens_per_minute)


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
