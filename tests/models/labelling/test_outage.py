"""A ledger that is away, full, or offered what it cannot hold: what was paid for is booked, now or at the next start."""

import asyncio
import contextlib
import fcntl
import json
import logging
import multiprocessing
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sqlalchemy as sa

from models.core.errors import ConfigError
from models.core.event_loop import event_loop
from models.core.rubric import Rubric
from models.labelling import batcher
from models.labelling import label as labelling
from models.labelling.label import LabellingSession, LabellingStopped, label_responses
from models.ledger.database import is_away
from models.ledger.entries import QueryResult, Reservation
from models.ledger.journal import Journal, journals
from models.ledger.ledger import Ledger
from models.ledger.tables import Question, storable
from models.oracles.base import Oracle, Verdict
from tests.support.postgres import Postgres, running

CENT = 10_000
asked: Counter[str] = Counter()


class Slow(Oracle):
    """Answers with the number in the response, after a while, and counts what it was asked."""

    description = "test oracle"
    kind: Literal["test/slow"] = "test/slow"
    seconds: float = 0.5
    raw: str = "Score: 1"

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        raise AssertionError("asked in the other way")

    async def judge_async(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        asked[response] += 1
        await asyncio.sleep(self.seconds)
        return Verdict(float(response.rsplit(maxsplit=1)[-1]), self.raw, CENT, 7)

    def max_cost(self, prompt: str, response: str) -> int:
        return 2 * CENT


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    asked.clear()


@pytest.fixture
def responses(make_response: Any) -> list[Any]:
    return [make_response(n, text=f"story {n}") for n in range(24)]


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that this test may end."""
    with running() as server:
        yield server


def ask(responses: list[Any], ledger: Ledger, oracle: Oracle | None = None, **session: Any) -> list[Any]:
    at = LabellingSession(ledger, oracle or Slow(), Rubric(), "a", **session)
    return label_responses(responses, at, max_queries=100, max_micro_usd=100 * CENT, concurrency=8)


def in_background(responses: list[Any], ledger: Ledger, **session: Any) -> "Future[list[Any]]":
    return ThreadPoolExecutor(1).submit(ask, responses, ledger, **session)


def wait(true: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_that_nothing_was_bought_twice(ledger: Ledger, count: int) -> None:
    assert set(asked.values()) == {1}
    assert [row["status"] for row in ledger.rows()] == ["labelled"] * count
    spent = ledger.spent("a")
    assert (spent.queries, spent.micro_usd, spent.lost_queries) == (count, count * CENT, 0)
    with ledger.engine.connect() as connection:
        row = connection.execute(sa.text("SELECT queries, micro_usd FROM accounts WHERE name = 'a'")).one()
    assert tuple(row) == (count, count * CENT), "the account is what its charges are"


def test_replies_wait_for_a_server_that_is_away(
    responses: list[Any], own_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(own_postgres.url(own_postgres.new_database()), journal=tmp_path / "journal")
    buying = in_background(responses, ledger)
    wait(lambda: len(asked) >= 8)
    own_postgres.stop()
    time.sleep(4.0)
    before = len(asked)
    assert before < len(responses), "nothing new is asked meanwhile"
    own_postgres.start()
    assert [x.score for x in buying.result(60)] == [float(n) for n in range(24)]
    assert_that_nothing_was_bought_twice(ledger, 24)
    assert "the ledger cannot be reached" in caplog.text
    assert list((tmp_path / "journal").iterdir()) == [], "a journal with nothing in it does not stay"


def test_what_could_not_be_booked_is_booked_by_the_next_start(
    responses: list[Any], own_postgres: Postgres, tmp_path: Path
) -> None:
    url = own_postgres.url(own_postgres.new_database())
    buying = in_background(responses, Ledger(url, journal=tmp_path / "journal"), patience=1.0)
    wait(lambda: len(asked) >= 8)
    own_postgres.stop()
    with pytest.raises(LabellingStopped, match=r"could not be reached for \d+ s: .*kept in .*the next start books it"):
        buying.result(60)
    first = set(asked)
    own_postgres.start()
    again = Ledger(url, journal=tmp_path / "journal")
    assert [x.score for x in ask(responses, again)] == [float(n) for n in range(24)]
    assert first < set(asked)
    assert_that_nothing_was_bought_twice(again, 24)
    assert list((tmp_path / "journal").glob("*.jsonl")) == []


def test_a_full_disk_loses_nothing(responses: list[Any], tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    most = {"pages": 2**30}

    @sa.event.listens_for(ledger.engine, "begin")
    def _limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {most['pages']}")

    raw = "x" * 3000
    buying = in_background(responses, ledger, oracle=Slow(raw=raw), patience=2.0)
    wait(lambda: len(asked) >= 8)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        most["pages"] = connection.execute("PRAGMA page_count").fetchone()[0]
    with pytest.raises(LabellingStopped, match="database or disk is full"):
        buying.result(60)
    kept = [closing for one in journals(tmp_path / "journal", ledger._name) for closing in one.closings]
    assert sum(isinstance(closing, QueryResult) for closing in kept) > 0
    most["pages"] = 2**30
    assert len(ask(responses, ledger, Slow(raw=raw))) == 24, "in the same process, which knows its own orphans"
    assert_that_nothing_was_bought_twice(ledger, 24)


def test_a_disk_without_room_for_a_journal_is_told_before_anything_is_asked(
    responses: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.ledger.journal._take", full)
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with pytest.raises(ConfigError, match=r"journal has no room for 0.5 MiB.*No space left.*Nothing was asked"):
        ask(responses, ledger)
    assert not asked
    assert list((tmp_path / "journal").glob("*.jsonl")) == []


def test_ctrl_c_while_the_ledger_is_away_keeps_the_replies_and_ends_soon(
    responses: list[Any], own_postgres: Postgres, tmp_path: Path
) -> None:
    ledger = Ledger(own_postgres.url(own_postgres.new_database()), journal=tmp_path / "journal")
    at = LabellingSession(ledger, Slow(), Rubric(), "a")
    found: list[labelling._Asking] = []
    made = labelling._Asking

    def noted(*given: Any) -> labelling._Asking:
        found.append(made(*given))
        return found[0]

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(labelling, "_Asking", noted)
        buying = pool.submit(label_responses, responses, at, max_queries=100, max_micro_usd=100 * CENT, concurrency=8)
        wait(lambda: len(asked) >= 8)
        own_postgres.stop()
        time.sleep(1.0)
        interrupted = time.monotonic()
        event_loop().call_soon_threadsafe(found[0].breaker.stop.set)  # what Ctrl-C does
        with pytest.raises(LabellingStopped):
            buying.result(60)
        assert time.monotonic() - interrupted < 15.0
    (kept,) = journals(tmp_path / "journal", ledger._name)
    assert len(kept.closings) >= 8
    own_postgres.start()


def _journal_and_die(url: str, folder: Path) -> None:
    ledger = Ledger(url, journal=folder)
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    with labelling.labelling() as holder:
        order = labelling.QueryRequest(Question("o", "c", "p", "r"), labelling.Amount(CENT, 9), True, holder)
        _, (held,) = ledger.settle_and_reserve("a", [], [order])
    assert isinstance(held, Reservation)
    journal = ledger.journal(holder, in_flight=1)
    assert journal is not None
    journal.append(QueryResult(held, "labelled", 2.5, "Score: 2.5", 7, 4321, 0.5))
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_journal_outlives_its_process(ledger_url: str, tmp_path: Path) -> None:
    dies = multiprocessing.get_context("spawn").Process(target=_journal_and_die, args=(ledger_url, tmp_path / "j"))
    dies.start()
    dies.join(60)
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    assert [row["status"] for row in ledger.rows()] == ["reserved"]
    assert ledger.release_stale() == 0, "its reply is booked, and nothing is given up"
    (row,) = ledger.rows()
    assert (row["status"], row["score"], row["micro_usd"]) == ("labelled", 2.5, 4321)
    assert ledger.book_journals() == 0, "once"


def test_a_line_cut_off_is_left_and_one_that_is_none_keeps_the_file(ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    journal = ledger.journal("h", in_flight=1)
    assert journal is not None
    assert journal.file.stat().st_size == 1 << 18, "its room is taken before anything is asked"
    journal.append(QueryResult(Reservation(77, "nobody", 1), "labelled", 1.0, "raw", 1, 1, 0.1))
    journal.close()
    whole = journal.file.read_bytes().rstrip(b"\0")
    journal.file.write_bytes(whole + whole[:20])
    assert [len(kept.closings) for kept in journals(tmp_path / "j", ledger._name)] == [1]
    journal.file.write_bytes(b"not json\n" + whole)
    assert ledger.book_journals() == 1
    assert {file.suffix for file in (tmp_path / "j").iterdir()} == {".unreadable", ".lock"}


def test_the_journal_of_a_living_labelling_is_its_own(ledger_url: str, tmp_path: Path) -> None:
    ledger, other = (Ledger(ledger_url, journal=tmp_path / "j") for _ in range(2))
    journal = ledger.journal("h", in_flight=1)
    assert journal is not None
    journal.append(QueryResult(Reservation(77, "nobody", 1), "labelled", 1.0, "raw", 1, 1, 0.1))
    assert other.book_journals() == 0
    journal.close()
    assert other.book_journals() == 1


@pytest.mark.parametrize("text", ["half \ud83d of a pair", "a NUL\0 in it", "plain", "ä\0\udfff"])
def test_no_text_is_too_odd_for_the_database(ledger_url: str, text: str, make_response: Any, tmp_path: Path) -> None:
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    odd = [make_response(1, text=f"{text} 1"), make_response(2, text="story 2")]
    assert [x.score for x in ask(odd, ledger, Slow(seconds=0.0, raw=text))] == [1.0, 2.0]
    assert {row["raw"] for row in ledger.rows()} == {storable(text)}
    assert [x.bought for x in ask(odd, ledger, Slow(seconds=0.0, raw=text))] == [True, True], "found again"
    assert set(asked.values()) == {1}
    json.loads(json.dumps(storable(text))).encode()


def test_one_order_that_a_database_refuses_costs_no_other(
    own_postgres: Postgres, responses: list[Any], tmp_path: Path
) -> None:
    database = own_postgres.new_database()
    ledger = Ledger(own_postgres.url(database), journal=tmp_path / "j")
    own_postgres.execute("ALTER TABLE queries ADD CHECK (response <> 'story 3')", database=database)
    with pytest.raises(LabellingStopped, match="violates check constraint"):
        ask(responses[:8], ledger, Slow(seconds=0.1))
    assert "story 3" not in asked
    assert {row["response"] for row in ledger.rows(status="labelled")} == set(asked), "what was paid for is kept"


def test_a_process_knows_what_its_own_labellings_have_left(ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    with labelling.labelling() as holder:
        order = labelling.QueryRequest(Question("o", "c", "p", "r"), labelling.Amount(CENT, 9), True, holder)
        _, (held,) = ledger.settle_and_reserve("a", [], [order])
        assert ledger.release_stale() == 0, "it goes on"
        _, (again,) = ledger.settle_and_reserve("a", [], [order])
        assert again == held, "asked again by the same, who has not heard"
        assert ledger.spent("a").queries == 1
    assert ledger.release_stale() == 1
    assert [row["status"] for row in ledger.rows()] == ["lost"]


def test_a_reply_that_is_booked_again_changes_nothing(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    held = ledger.reserve("a", Question("o", "c", "p", "r"), ceiling=CENT, billed_on_failure=True)
    assert isinstance(held, Reservation)
    reply = QueryResult(held, "labelled", 2.0, "raw\0", 1, 7, 0.25)
    first, _ = ledger.settle_and_reserve("a", [reply], [])
    again, _ = ledger.settle_and_reserve("a", [reply], [])
    assert first == again
    other, _ = ledger.settle_and_reserve("a", [reply._replace(raw="another")], [])
    assert isinstance(other[0], ConfigError)
    assert ledger.spent("a")[:2] == (1, 7)


def test_who_waits_for_another_says_for_whom(
    ledger_url: str,
    make_response: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(labelling, "_TELL_SECONDS", 0.3)
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    one = [make_response(5, text="story 5")]
    first = in_background(one, ledger, oracle=Slow(seconds=2.0))
    wait(lambda: asked)
    with caplog.at_level(logging.WARNING):
        assert [x.score for x in ask(one, ledger, Slow(seconds=2.0))] == [5.0]
    assert first.result(10)
    assert "s for process " in caplog.text
    assert "the same question" in caplog.text
    assert asked["story 5"] == 1


def test_what_only_time_mends_is_told_from_what_is_wrong(own_postgres: Postgres, tmp_path: Path) -> None:
    lite = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}").engine
    served = Ledger(own_postgres.url(own_postgres.new_database())).engine
    for engine in (lite, served):
        with pytest.raises(sa.exc.DBAPIError) as wrong, engine.begin() as connection:
            connection.execute(sa.text("SELECT * FROM no_such_table"))
        assert not is_away(wrong.value)
    own_postgres.stop()
    with pytest.raises(sa.exc.DBAPIError) as gone, served.begin() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert is_away(gone.value)
    own_postgres.start()
    assert not is_away(ValueError("anything else"))
    assert batcher.PATIENCE >= 600.0


def reserved(ledger: Ledger, holder: str, response: str = "r") -> Reservation:
    order = labelling.QueryRequest(Question("o", "c", "p", response), labelling.Amount(CENT, 9), True, holder)
    _, (held,) = ledger.settle_and_reserve("a", [], [order])
    assert isinstance(held, Reservation)
    return held


def test_nothing_is_given_up_whose_reply_is_in_a_journal_that_another_has_open(ledger_url: str, tmp_path: Path) -> None:
    ledger, other = (Ledger(ledger_url, journal=tmp_path / "j") for _ in range(2))
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    with labelling.labelling() as holder:
        held = reserved(ledger, holder)
        journal = ledger.journal(holder, in_flight=1)
        assert journal is not None
        journal.append(QueryResult(held, "labelled", 2.5, "raw", 7, 43, 0.5))
    with journal.file.open("rb") as copy:  # as a child that a killed process has left
        journal.close()
        fcntl.flock(copy, fcntl.LOCK_EX)
        assert other.release_stale() == 0
        assert [row["status"] for row in other.rows()] == ["reserved"]
    assert other.release_stale() == 0
    assert [(row["status"], row["micro_usd"]) for row in other.rows()] == [("labelled", 43)]


def test_a_reply_that_is_refused_for_another_reason_is_kept_too(
    responses: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")

    def corrupt(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "settle_within", corrupt)
        with pytest.raises(LabellingStopped, match="malformed. It is kept in"):
            ask(responses[:3], ledger, Slow(seconds=0.1))
    assert len(ask(responses[:3], ledger, Slow(seconds=0.1))) == 3
    assert_that_nothing_was_bought_twice(ledger, 3)


@pytest.mark.parametrize("line", [b"5", b"null", b'{"what": "settle"}', b"[]"])
def test_one_odd_entry_keeps_no_other_from_being_booked(ledger_url: str, tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(ledger_url, journal=tmp_path / "j")
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    held = reserved(ledger, "h")
    journal = ledger.journal("h", in_flight=1)
    assert journal is not None
    journal.append(QueryResult(held, "labelled", 2.5, "raw", 7, 43, 0.5))
    journal.close()
    journal.file.write_bytes(line + b"\n" + journal.file.read_bytes().rstrip(b"\0"))
    assert ledger.book_journals() == 1
    assert [row["status"] for row in ledger.rows()] == ["labelled"]


def test_an_odd_price_is_written_down_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "l", holder="h", in_flight=1)
    held = Reservation(1, "a", CENT)
    for price in (Decimal("1.5"), np.int64(7), None, "3"):
        journal.append(QueryResult(held, "labelled", 1.0, "raw", 1, price, 0.1))  # type: ignore[arg-type]
    journal.close()
    (kept,) = journals(tmp_path, "l")
    assert [one.micro_usd for one in kept.closings if isinstance(one, QueryResult)] == ["1.5", 7, None, "3"]
    other = tmp_path / "other"
    with other.open("w+b"), pytest.raises(OSError, match="Bad file descriptor"):
        journal.append(QueryResult(held, "labelled", 1.0, "raw", 1, 7, 0.1))
    assert other.read_bytes() == b"", "a journal that is closed writes into no other file"


def test_a_ledger_of_before_gives_no_number_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.sqlite'}"
    ledger = Ledger(url)
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    first = ledger.reserve("a", Question("o", "c", "p", "one"), ceiling=CENT, billed_on_failure=True)
    assert isinstance(first, Reservation)
    ledger.settle(first, status="labelled", score=1.0, raw="raw", tokens=1, micro_usd=7, seconds=0.1)
    with sqlite3.connect(tmp_path / "l.sqlite") as old:  # as an earlier version made the table
        (sql,) = old.execute("SELECT sql FROM sqlite_master WHERE name = 'queries'").fetchone()
        old.executescript(
            "ALTER TABLE queries RENAME TO q; DROP INDEX one_live_query_per_key; DROP INDEX reserved_queries;"
            + sql.replace("AUTOINCREMENT", "")
            + "; INSERT INTO queries SELECT * FROM q; DROP TABLE q;"
        )
    again = Ledger(url)
    assert [(row["id"], row["raw"]) for row in again.rows()] == [(1, "raw")]
    second = again.reserve("a", Question("o", "c", "p", "two"), ceiling=CENT, billed_on_failure=True)
    assert isinstance(second, Reservation)
    again.release(second)
    third = again.reserve("a", Question("o", "c", "p", "three"), ceiling=CENT, billed_on_failure=True)
    assert isinstance(third, Reservation)
    assert third.query_id == second.query_id + 1
    again.release(second)
    assert [row["response"] for row in again.rows(status="reserved")] == ["three"]


def test_a_writer_that_holds_the_file_stops_no_call_that_is_under_way(responses: list[Any], tmp_path: Path) -> None:
    """Who waits for a file must not keep the event loop from reading the replies that arrive meanwhile."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    buying = in_background(responses[:16], ledger, oracle=Slow(seconds=0.3))
    wait(lambda: len(asked) >= 8)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        began, ticks = time.monotonic(), 0
        while time.monotonic() - began < 2.0:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.0), event_loop()).result(5)
            ticks += 1
            time.sleep(0.02)
        other.execute("ROLLBACK")
    assert ticks > 15, "the loop goes round"
    assert len(buying.result(30)) == 16
    assert_that_nothing_was_bought_twice(ledger, 16)


def test_a_row_that_another_holds_on_the_server_is_no_wait_for_ever(own_postgres: Postgres, tmp_path: Path) -> None:
    ledger = Ledger(own_postgres.url(own_postgres.new_database()), journal=tmp_path / "j")
    with ledger.engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW lock_timeout")) == "15s"
    timed_out = sa.exc.OperationalError("", {}, type("E", (Exception,), {"sqlstate": "55P03"})())
    assert is_away(timed_out)


def test_reading_waits_for_no_writer(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert ledger.spent("a").queries == 0
        assert list(ledger.rows()) == []
        assert time.monotonic() - began < 0.15
