"""How fast labels are bought: queries per second beside concurrency ÷ latency, and what the ledger costs per query.

    python benchmarks/labelling_throughput.py                    # a minute
    python benchmarks/labelling_throughput.py --latency 0.2      # a slower server
    python benchmarks/labelling_throughput.py --slots 20         # one that takes 20 calls of a second at once

A loopback server in a process of its own answers every call after the latency. Each number of calls in flight is measured
with a new SQLite ledger, beside two loops that send the same requests and keep no books: a bare HTTP client, which is what
this machine can do at all, and the openai SDK as its documentation uses it. The ledger is also measured alone, one query
at a time, back to back. Medians of the repetitions. With `--slots`, the server refuses what passes them with a rate limit:
as many calls in flight as it takes are held against 64. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.core.data import Response  # noqa: E402
from models.core.money import Prices  # noqa: E402
from models.core.rubric import Rubric  # noqa: E402
from models.labelling.label import LabellingSession, label_responses  # noqa: E402
from models.ledger.entries import Reservation  # noqa: E402
from models.ledger.ledger import Ledger  # noqa: E402
from models.ledger.tables import Question  # noqa: E402
from models.oracles.llm_calls import messages_of  # noqa: E402
from models.oracles.llm_judge import LLMJudge  # noqa: E402
from tests.support.fake_judge import LoopbackJudge  # noqa: E402

_IN_FLIGHT = (1, 4, 16, 64)
_SECONDS = 4.0  # of each measurement, roughly
_LIMITED_SECONDS = 40.0  # likewise, with a server that has to be found out


def serve(latency: float, slots: int | None, url: "Queue[str]") -> None:
    """Answer until this process is ended."""
    with LoopbackJudge(latency=latency, slots=slots) as server:
        url.put(server.url)
        time.sleep(3600)


def questions(count: int) -> list[Response]:
    """Return distinct tuples."""
    return [
        Response(f"r{n}", "p", "tell a story", n, f"a story of {n} words, {'long ' * 60}", 5, -9.0)
        for n in range(count)
    ]


def ours(judge: LLMJudge, asked: list[Response], workers: int) -> tuple[float, float]:
    """Return queries per second, and milliseconds of ledger transactions per query."""
    spent = 0.0

    class Timed(Ledger):
        def settle_and_reserve(self, *given: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal spent
            started = time.perf_counter()
            try:
                return super().settle_and_reserve(*given, **options)
            finally:
                spent += time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        session = LabellingSession(Timed(f"sqlite:///{folder}/ledger.sqlite"), judge, Rubric(), "a")
        started = time.perf_counter()
        labels = label_responses(asked, session, max_queries=len(asked), max_micro_usd=10**12, concurrency=workers)
        seconds = time.perf_counter() - started
    if len(labels) != len(asked):
        raise RuntimeError(f"{len(labels)} labels of {len(asked)}")
    return len(asked) / seconds, spent / len(asked) * 1000


async def bare(judge: LLMJudge, asked: list[Response], workers: int) -> float:
    """Return queries per second of an HTTP client without SDK or ledger."""
    import aiohttp

    waiting = iter(asked)
    url, started = f"{judge.endpoint.base_url}/chat/completions", time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for response in waiting:
                question = Rubric().render(response.prompt, response.text)
                messages = messages_of(question, structured_output=True, discourage_length_bias=True)
                async with session.post(url, json={"model": "judge", "messages": messages}) as reply:
                    await reply.json()

        await asyncio.gather(*(work() for _ in range(workers)))
    return len(asked) / (time.perf_counter() - started)


async def sdk(judge: LLMJudge, asked: list[Response], workers: int) -> float:
    """Return queries per second of the openai SDK without a ledger."""
    import openai

    waiting, started = iter(asked), time.perf_counter()
    async with openai.AsyncOpenAI(base_url=judge.endpoint.base_url, max_retries=0) as client:

        async def work() -> None:
            for response in waiting:
                question = Rubric().render(response.prompt, response.text)
                messages: Any = messages_of(question, structured_output=True, discourage_length_bias=True)
                await client.chat.completions.create(model="judge", messages=messages)

        await asyncio.gather(*(work() for _ in range(workers)))
    return len(asked) / (time.perf_counter() - started)


def ledger_alone(asked: list[Response]) -> float:
    """Return milliseconds per query of reserving and settling, one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
        ledger.open_account("a", max_queries=len(asked), max_micro_usd=10**12)
        reply: dict[str, Any] = {
            "status": "labelled",
            "score": 1.0,
            "raw": "{}",
            "tokens": 10,
            "micro_usd": 5,
            "seconds": 0.05,
        }
        started = time.perf_counter()
        for response in asked:
            question = Question("judge", "rubric", response.prompt, response.text)
            reserved = ledger.reserve("a", question, ceiling=10, tokens=20, billed_on_failure=True)
            if not isinstance(reserved, Reservation):
                raise RuntimeError(f"a new question was answered {reserved}")
            ledger.settle(reserved, **reply)
        return (time.perf_counter() - started) / len(asked) * 1000


def against_slots(judge: LLMJudge, slots: int, latency: float) -> list[dict[str, float]]:
    """Return what so many slots of a server give, with as many calls in flight and with 64."""
    found = []
    for workers in (slots, max(_IN_FLIGHT)):
        rate, _ = ours(judge, questions(int(slots / latency * _LIMITED_SECONDS)), workers)
        found.append({"in_flight": workers, "slots": slots, "ninefold": rate, "of_limit": rate * latency / slots})
        print(f"{workers:9} {slots / latency:7.0f}/s {rate:7.1f}/s {found[-1]['of_limit']:7.3f}", flush=True)
    return found


def main() -> None:
    """Measure each number of calls in flight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, help="seconds (default 0.05; 1 with --slots)")
    parser.add_argument("--slots", type=int, help="calls that the server takes at once (default: all)")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    latency: float = given.latency or (0.05 if given.slots is None else 1.0)
    os.environ["OPENAI_API_KEY"] = "loopback"
    context = multiprocessing.get_context("spawn")
    urls: Queue[str] = context.Queue()
    server = context.Process(target=serve, args=(latency, given.slots, urls), daemon=True)
    server.start()
    model = {"model": "judge", "base_url": urls.get(), "prices": Prices(input=1_000_000, output=2_000_000)}
    judge = LLMJudge.model_validate({"endpoint": model})
    ours(judge, questions(16), 16)  # what is loaded on first use is loaded
    if given.slots is not None:
        print(f"{'in flight':>9} {'limit':>9} {'ninefold':>9} {'/limit':>7}")
        limited = against_slots(judge, given.slots, latency)
        server.kill()
        print(json.dumps({"latency": latency, "limited": limited}))
        return
    found = []
    alone = statistics.median(ledger_alone(questions(500)) for _ in range(given.repeat))
    print(f"ledger alone, one query at a time: {alone:.2f} ms per query")
    print(
        f"{'in flight':>9} {'limit':>9} {'HTTP':>9} {'SDK':>9} {'ninefold':>9} {'/limit':>7} {'/SDK':>6} {'ledger':>9}"
    )
    for workers in _IN_FLIGHT:
        asked, limit = questions(int(workers / latency * _SECONDS)), workers / latency
        plain = statistics.median(asyncio.run(bare(judge, asked, workers)) for _ in range(given.repeat))
        peer = statistics.median(asyncio.run(sdk(judge, asked, workers)) for _ in range(given.repeat))
        runs = [ours(judge, asked, workers) for _ in range(given.repeat)]
        rate, ledger = (statistics.median(values) for values in zip(*runs, strict=True))
        row = {"in_flight": workers, "limit": limit, "http": plain, "sdk": peer, "ninefold": rate}
        found.append(row | {"of_limit": rate / limit, "of_sdk": rate / peer, "ledger_ms": ledger})
        print(
            f"{workers:9} {limit:7.0f}/s {plain:7.0f}/s {peer:7.0f}/s {rate:7.0f}/s {rate / limit:7.2f} {rate / peer:6.2f} "
            f"{ledger:6.2f} ms",
            flush=True,
        )
    server.kill()
    print(json.dumps({"latency": latency, "ledger_alone_ms": alone, "cases": found}))


if __name__ == "__main__":
    main()
