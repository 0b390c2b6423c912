"""An OpenAI-compatible server on 127.0.0.1 that judges by a rule and fails on purpose: for tests, chaos and throughput.

The right score of a response is the last digit in it, or where it has none the number of its letters, modulo 6; of two
responses the better one scores higher. Asked in AlpacaEval's words it names the better of the two outputs.
"""

import asyncio
import hashlib
import json
import logging
import math
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

# of AlpacaEval's prompt: the name of each output, and the output
_OUTPUTS = re.compile(r'"model_identifier": "(m|M)",\s*"output": """(.*?)"""\s*\}', re.DOTALL)

# what is said with a quarter beside a token that has three
_OTHER = {"m": "M", "M": "m"} | {str(digit): str(digit - 1) for digit in range(1, 10)}


def right_score(text: str) -> int:
    """Return what the server says of a response when nothing goes wrong."""
    digits = re.findall(r"\d", text)
    return (int(digits[-1]) if digits else len(text)) % 6


@dataclass
class LoopbackJudge:
    """The server, for `with`. `faults` are probabilities by name, decided by (seed, request body, n-th time it is asked).

    `about` are faults by a part of what is asked, and `says` faults that are made up: status and body by name.
    """

    latency: float = 0.0
    slots: int | None = None  # calls that it takes at once; more are refused for now
    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    hang: float = 30.0
    prompt_tokens: int = 100
    completion_tokens: int = 10
    prefers_first: bool = False  # a judge with a bias for the place
    key: str | None = None  # of those who may ask; others are refused, and told which key they have come with
    refuse_after: int | None = None  # calls: what comes later is refused
    usage: Any = (
        ...
    )  # what is said in place of the true count; ... for the true one, None for `null`, "absent" for nothing
    # as other servers are:
    refused_fields: dict[str, Any] = field(default_factory=dict)  # of a body: ... any value, a number the most
    no_system: bool = False  # it knows no role for instructions
    key_header: str = "Authorization"
    api_version: str | None = None  # that the query must name
    names_model: bool = True
    no_logprobs: bool = False  # it leaves them out, whoever asks for them
    form: str = ""  # of a reply: fence, think, bold or parts
    about: dict[str, str] = field(default_factory=dict)
    says: dict[str, tuple[int, Any]] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    log: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # what was asked, and what was done

    def __enter__(self) -> Self:
        self._asked: Counter[str] = Counter()
        self._taken = 0
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        """Return the base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def served(self) -> Counter[str]:
        """Return the number of calls by what was done with them."""
        return Counter(what for _, what in self.log)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Return what was asked."""
        return [body for body, _ in self.log]

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients that hang up are the point
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = int(runner.addresses[0][1])
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def _fault(self, body: bytes) -> str | None:
        key = hashlib.sha256(body).hexdigest()
        self._asked[key] += 1
        draw = int(hashlib.sha256(f"{self.seed}{key}{self._asked[key]}".encode()).hexdigest()[:12], 16) / 16**12
        for name, chance in self.faults.items():
            if draw < chance:
                return name
            draw -= chance
        return None

    def _fault_about(self, body: dict[str, Any]) -> str | None:
        asked = body["messages"][-1]["content"]
        return next((fault for part, fault in self.about.items() if part in asked), None)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.slots is not None and self._taken >= self.slots:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "1"})
        self._taken += 1
        try:
            return await self._reply_to(request)
        finally:
            self._taken -= 1

    async def _reply_to(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        self.headers.append(dict(request.headers))
        given = request.headers.get(self.key_header, "").removeprefix("Bearer ")
        fault = "key" if self.key is not None and given != self.key else self._fault_about(body) or self._fault(raw)
        if self.refuse_after is not None and len(self.log) >= self.refuse_after:
            fault = "no_model"
        refusal = self._refusal(request, body)
        fault = fault or ("refused" if refusal else None)
        self.log.append((body, fault or "reply"))
        await asyncio.sleep(self.latency)
        failures = {
            "rate_limit": (429, "slow down"),
            "error": (500, "broken"),
            "gateway": (504, "the model has not answered in time"),
            "bad_request": (400, "this cannot be judged"),
            "no_model": (404, f"The model {body['model']!r} does not exist"),
            "key": (401, f"Incorrect API key: {given}"),
        }
        if refusal is not None and fault == "refused":
            return web.json_response({"error": {**refusal, "type": "invalid_request_error"}}, status=400)
        if fault in self.says:
            status, told = self.says[fault]
            return web.json_response(told, status=status)
        if fault in failures:
            status, message = failures[fault]
            return web.json_response({"error": {"message": message}}, status=status, headers={"retry-after-ms": "20"})
        if fault == "timeout":
            await asyncio.sleep(self.hang)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        reply = json.dumps(self._reply(body, fault)).encode()
        if fault == "truncated":
            return web.Response(body=reply[: len(reply) // 2], content_type="application/json")
        if fault == "drip":  # a blank at a time, and no end
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            for _ in range(int(self.hang * 20)):
                await stream.write(b" ")
                await asyncio.sleep(0.05)
            return stream
        if fault == "slow":
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            for begin in range(0, len(reply), 64):
                await stream.write(reply[begin : begin + 64])
                await asyncio.sleep(0.005)
            return stream
        return web.Response(body=reply, content_type="application/json")

    def _refusal(self, request: web.Request, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is said of a request that is not written as this server wants it; None where it is."""
        if self.api_version is not None and request.query.get("api-version") != self.api_version:
            return {"message": "api-version is missing or not supported", "param": "api-version"}
        if self.no_system and any(message["role"] != "user" for message in body["messages"][:-1]):
            return {"message": "System role not supported", "param": None}
        for name, most in self.refused_fields.items():
            if name in body and most is ...:
                instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                return {"message": f"Unsupported parameter: {name!r} is not supported.{instead}", "param": name}
            if body.get(name, 0) and most is not ... and body[name] > most:
                return {"message": f"Invalid value for {name!r}: at most {most}", "param": name}
        return None

    def _formed(self, text: str) -> Any:
        """Return the content of a message as servers put it."""
        if self.form == "fence":
            return f"```json\n{text}\n```"
        if self.form == "think":
            return f"<think>\nIs it 3, or 4?\n</think>\n\n{text}"
        if self.form == "bold":
            return re.sub(r"^(\w+: \w+)$", r"**\1**", text, flags=re.MULTILINE)
        if self.form == "parts":
            return [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
        return text

    def _text(self, asked: str, structured_output: bool, fault: str | None) -> str:
        wrong = fault == "out_of_range"
        if "\n\nResponse B: " in asked:
            name: str = "better"
            verdict: str | int = "C" if wrong else "A" if self.prefers_first else _better(asked)
        else:
            name, verdict = "score", 9 if wrong else right_score(asked.rsplit("\n\nResponse: ", 1)[-1])
        said = {"justification": "by the rule", name: verdict}
        return json.dumps(said) if structured_output else f"By the rule.\n{name.title()}: {verdict}"

    def _reply(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        asked = body["messages"][-1]["content"]
        outputs = _OUTPUTS.findall(asked)
        text = self._text(asked, "response_format" in body, fault) if not outputs else _named(outputs, fault)
        if fault in ("empty", "refusal"):
            text = ""
        message = {
            "role": "assistant",
            "content": self._formed(text),
            "refusal": "I would rather not" if fault == "refusal" else None,
        }
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs") and text and not self.no_logprobs:
            choice["logprobs"] = {"content": [_place(token) for token in re.findall(r"\d|[^\d]+", text)]}
        named = {"model": f"{body['model']}-0001", "system_fingerprint": "fp"} if self.names_model else {}
        usage = {"usage": self._usage() if self.usage is ... else self.usage} if self.usage != "absent" else {}
        return {"id": "x", "object": "chat.completion", "created": 0, **named, "choices": [choice], **usage}

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 40},
        }


def _named(outputs: list[tuple[str, str]], fault: str | None) -> str:
    """Return the name of the better of AlpacaEval's two outputs; the second's if they are as good."""
    if fault == "out_of_range":
        return "Q"
    return max(reversed(outputs), key=lambda output: right_score(output[1]))[0]


def _better(asked: str) -> str:
    first, second = (right_score(text) for text in re.split(r"\n\nResponse [AB]: ", asked)[1:])
    return "A" if first > second else "B" if first < second else "tie"


def _place(token: str) -> dict[str, Any]:
    """Return a token with its alternatives: a digit or a name has three quarters, the next lower or other one a quarter."""
    likely = [(token, 0.75), (_OTHER[token], 0.25)] if token in _OTHER else [(token, 1.0)]
    tops = [{"token": other, "logprob": math.log(p), "bytes": None} for other, p in likely]
    return {"token": token, "logprob": tops[0]["logprob"], "bytes": None, "top_logprobs": tops}
