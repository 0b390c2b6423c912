"""A server that takes fewer calls, is away, waits, drips or floods: asked as it can answer, and given up by the clock."""

import asyncio
import http.server
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.core.event_loop import run
from models.labelling.label import LabellingStopped
from models.labelling.retry import CircuitBreaker, Flight, backoff_seconds
from models.ledger.ledger import Ledger
from models.oracles.base import MaybeBilledError, RateLimited, RetryableError
from models.oracles.chat_client import Endpoint, _retry_after
from models.oracles.llm_judge import LLMJudge
from tests.models.oracles.test_llm_judge import PRICES, ask, judge_at, key  # noqa: F401 - a fixture
from tests.support.fake_judge import LoopbackJudge

Script = Callable[[int], tuple[int, dict[str, str], Any]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[float]]]:
    """Serve what a script says of the n-th call; yields the URL and the times of the calls."""
    calls: list[float] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            with lock:
                number = len(calls)
                calls.append(time.monotonic())
            status, headers, body = script(number)
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", calls
    server.shutdown()


def good(score: int = 3) -> dict[str, Any]:
    said = {"role": "assistant", "content": json.dumps({"justification": "j", "score": score})}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"model": "judge-1", "choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": usage}


def judge(url: str, **fields: Any) -> LLMJudge:
    endpoint = {"model": "judge", "base_url": url, "prices": PRICES, "max_tokens": 64, "timeout": 5.0}
    return LLMJudge(endpoint=Endpoint(**{**endpoint, **fields}))


@pytest.mark.parametrize("workers", [16, 64])
def test_a_rate_limit_is_no_failure_and_fewer_are_asked_at_once(
    ledger: Ledger, make_response: Any, workers: int
) -> None:
    room = threading.Semaphore(20)

    def script(number: int) -> tuple[int, dict[str, str], Any]:
        if not room.acquire(blocking=False):
            return 429, {"retry-after": "0.3"}, {"error": {"message": "rate limit"}}
        try:
            time.sleep(0.3)
            return 200, {}, good()
        finally:
            room.release()

    with scripted(script) as (url, calls):
        began = time.monotonic()
        labels = ask([make_response(n) for n in range(100)], ledger, judge(url), concurrency=workers)
        took = time.monotonic() - began
    assert Counter(entry.status for entry in labels) == {"labelled": 100}
    assert ledger.spent("a").queries == 100
    assert took < 12.0, "a server of 20 at once takes 2 s"
    assert len(calls) < 100 + 4 * workers, "few are refused"


def test_what_the_server_takes_is_found_at_once_and_again_when_it_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("models.labelling.retry.time.monotonic", lambda: now[0])

    async def rounds() -> list[float]:
        flight, found = Flight(64, asyncio.Event()), []
        for takes, many in ((20, 1), (20, 12), (1000, 32)):
            for _ in range(many):
                now[0] += 1.0
                begun = [await flight.__aenter__() for _ in range(int(flight.limit))]
                now[0] += 1.0
                for place, began in enumerate(begun):
                    if place < len(begun) - takes:
                        flight.refused(began, RateLimited("no", retry_after=0.0))
                    else:
                        flight.answered(began)
                    await flight.__aexit__()
            found.append(int(flight.limit))
        return found

    first, steady, risen = run(rounds())
    assert first == 20
    assert steady in {20, 21}
    assert risen == 64


def test_a_server_that_is_away_for_a_while_is_waited_for(ledger: Ledger, make_response: Any) -> None:
    until = time.monotonic() + 4.0

    def script(number: int) -> tuple[int, dict[str, str], Any]:
        return (200, {}, good()) if time.monotonic() > until else (500, {}, {"error": {"message": "broken"}})

    with scripted(script) as (url, _):
        labels = ask([make_response(n) for n in range(20)], ledger, judge(url), concurrency=4)
    assert Counter(entry.status for entry in labels) == {"labelled": 20}


def test_one_question_that_always_fails_costs_the_others_nothing(ledger: Ledger, make_response: Any) -> None:
    with LoopbackJudge(about={"number 3": "error"}) as server:
        labels = ask([make_response(n) for n in range(8)], ledger, judge_at(server), concurrency=2)
    assert [entry.status for entry in labels] == ["labelled"] * 3 + ["quarantined"] + ["labelled"] * 4
    assert ledger.spent("a").lost_queries == 0
    (row,) = ledger.rows(status="quarantined")
    assert "asked 6 times, and failed each time while " in row["raw"]
    assert row["micro_usd"] == 0


def test_calls_that_may_be_billed_stop_soon_whatever_the_patience(ledger: Ledger, make_response: Any) -> None:
    why = "1[2-9] calls in a row may have been billed, and brought nothing"
    with LoopbackJudge(faults={"gateway": 1.0}) as server, pytest.raises(LabellingStopped, match=why):
        ask([make_response(n) for n in range(50)], ledger, judge_at(server), concurrency=8)
    assert len(server.log) < 12 + 2 * 8


def test_a_server_that_drips_is_left_at_the_deadline(ledger: Ledger, make_response: Any) -> None:
    """A blank a second keeps every time-out of a single read from ending."""
    server = socket.create_server(("127.0.0.1", 0))

    def one(client: socket.socket) -> None:
        try:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            while True:
                client.sendall(b" ")
                time.sleep(0.2)
        except OSError:
            pass

    def serve() -> None:
        while True:
            client, _ = server.accept()
            threading.Thread(target=one, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(MaybeBilledError, match="no whole reply from .* in 1 s"):
        judge(f"http://127.0.0.1:{server.getsockname()[1]}/v1", timeout=1.0).judge("x", "y", judge_rubric())
    assert time.monotonic() - began < 5.0


def judge_rubric() -> Any:
    from models.core.rubric import Rubric

    return Rubric()


@pytest.mark.parametrize("status", [200, 400])
def test_no_more_of_a_reply_is_read_than_one_may_have(status: int) -> None:
    sent = Counter[str]()

    class Flood(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            try:
                for _ in range(300):
                    self.wfile.write(b"[" * (1 << 20))
                    sent["MiB"] += 1
            except OSError:
                pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flood)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(MaybeBilledError, match=r"the reply is longer than 1,310,720 bytes"):
        judge(f"http://127.0.0.1:{server.server_port}/v1").judge("x", "y", judge_rubric())
    server.shutdown()
    assert sent["MiB"] < 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": " 1e9 "}, 1e9),
        ({"retry-after": "inf"}, float("inf")),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_both_forms_of_retry_after_are_read(headers: dict[str, str], seconds: float | None) -> None:
    assert _retry_after(headers) == seconds


def test_a_date_is_a_wait_too() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = _retry_after({"retry-after": later})
    assert found is not None
    assert 27.0 < found <= 30.0


@pytest.mark.parametrize("asked", [1e9, float("inf"), 3600.0])
def test_nobody_waits_longer_than_a_minute_whatever_is_asked(asked: float) -> None:
    assert backoff_seconds(1, RateLimited("no", retry_after=asked), seed="x") == 60.0
    assert backoff_seconds(10**6, RetryableError("no"), seed="x") == 60.0
    assert 0.5 <= backoff_seconds(1, RetryableError("no"), seed="x") <= 0.75


def test_a_wait_is_shared_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def second() -> float:
        flight, began = Flight(4, asyncio.Event()), time.monotonic()
        async with flight as at:
            flight.refused(at, RateLimited("rate limit of http://x", retry_after=0.4))
            flight.refused(at, RateLimited("rate limit of http://x", retry_after=6.0))
        flight._not_before = time.monotonic() + 0.4
        async with flight:
            return time.monotonic() - began

    assert 0.35 < run(second()) < 3.0
    assert not caplog.text

    async def told() -> None:
        flight = Flight(4, asyncio.Event())
        async with flight as at:
            flight.refused(at, RateLimited("rate limit of http://x", retry_after=6.0))

    run(told())
    assert "rate limit of http://x: nothing is asked for " in caplog.text
    assert "then fewer at once" in caplog.text


def test_who_waits_for_a_slot_ends_when_labelling_stops() -> None:
    async def stopped() -> float:
        stop = asyncio.Event()
        flight = Flight(1, stop)
        flight._not_before = time.monotonic() + 60.0
        asyncio.get_running_loop().call_later(0.2, stop.set)
        began = time.monotonic()
        with pytest.raises(InterruptedError):
            await flight.__aenter__()
        return time.monotonic() - began

    assert run(stopped()) < 2.0


def test_silence_is_counted_from_the_last_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("models.labelling.retry.time.monotonic", lambda: now[0])
    breaker = CircuitBreaker(patience=90.0)
    for at in (150.0, 189.0):
        now[0] = at
        assert not breaker.record_failure(RetryableError("broken"))
    assert "nothing was answered for 50 s (broken); labelling stops after 90 s" in caplog.text
    breaker.record_success()
    now[0] = 270.0
    assert not breaker.record_failure(RetryableError("broken"))
    now[0] = 280.0
    assert "nothing was answered for 91 s (labelling.patience is 90)" in breaker.record_failure(
        RetryableError("broken")
    )


def test_many_workers_that_wait_for_a_rate_limit_use_few_sessions_of_the_database(
    new_database: Callable[[], str], make_response: Any
) -> None:
    ledger, most = Ledger(url := new_database()), 0
    counting = sa.create_engine(url, poolclass=sa.NullPool)
    over = threading.Event()

    def count() -> None:
        nonlocal most
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with counting.connect() as connection:
            while not over.wait(0.02):
                most = max(most, connection.scalar(query) or 0)
                connection.rollback()

    counter = threading.Thread(target=count)
    counter.start()
    with LoopbackJudge(latency=0.02, faults={"rate_limit": 0.5}) as server:
        labels = ask([make_response(n) for n in range(300)], ledger, judge(server.url), concurrency=64, max_queries=300)
    over.set()
    counter.join()
    assert len(labels) == 300
    assert 1 <= most <= 6, "five of the pool, and the heartbeat's"


def test_a_limit_that_was_found_twice_is_tried_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now, refused_at = [100.0], list[int]()
    monkeypatch.setattr("models.labelling.retry.time.monotonic", lambda: now[0])

    async def rounds() -> None:
        flight = Flight(64, asyncio.Event())
        for number in range(130):
            now[0] += 1.0
            begun = [await flight.__aenter__() for _ in range(int(flight.limit))]
            now[0] += 1.0
            for place, began in enumerate(begun):
                if place < len(begun) - 20:
                    flight.refused(began, RateLimited("no", retry_after=0.0))
                else:
                    flight.answered(began)
                await flight.__aexit__()
            if len(begun) > 20:
                refused_at.append(number)

    run(rounds())
    waits = [later - before for before, later in pairwise(refused_at)]
    assert waits[0] < waits[1] < waits[2], waits
    assert all(abs(wait - waits[2]) <= 2 for wait in waits[2:]), f"no more than four times as long: {waits}"
