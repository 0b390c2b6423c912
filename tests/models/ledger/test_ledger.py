"""Money: nothing is bought twice, no cap is passed, nothing paid for is lost; also under concurrency and kill -9."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.core.money import Amount
from models.ledger import liveness as ledger_holders
from models.ledger import sessions
from models.ledger.accounts import BudgetExhausted
from models.ledger.entries import Answer, Reservation
from models.ledger.ledger import Ledger
from models.ledger.reopening import reopen, times_reopened, unanswered
from models.ledger.tables import Question
from tests.support.processes import ROOT

CENT = 10_000


def question(number: int = 0, *, oracle: str = "judge") -> Question:
    return Question(oracle, "additive", f"prompt {number}", f"response {number}")


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=10, max_micro_usd=10 * CENT)
    return ledger


def buy(ledger: Ledger, account: str, asked: Question, *, price: int = CENT, score: float = 1.5) -> Answer:
    reserved = ledger.reserve(account, asked, ceiling=CENT, billed_on_failure=True)
    assert reserved is not None
    if isinstance(reserved, Answer):
        return reserved
    return ledger.settle(
        reserved, status="labelled", score=score, raw="Score: 1.5", tokens=7, micro_usd=price, seconds=0.1
    )


def holding(script: str) -> "subprocess.Popen[str]":
    """Start a process that reserves something by a script, and holds it until it is killed."""
    whole = f"import time\n{script}\nprint('reserved', flush=True)\ntime.sleep(60)\n"
    child = subprocess.Popen([sys.executable, "-c", whole], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "reserved"
    return child


def test_a_label_is_bought_once_and_then_owned(ledger: Ledger) -> None:
    assert buy(ledger, "a", question()) == Answer(1.5, CENT, 7, True, "labelled")
    assert buy(ledger, "a", question()) == Answer(1.5, CENT, 7, True, "labelled")
    assert ledger.spent("a")[:4] == (1, CENT, 1, CENT)


def test_another_account_is_charged_virtually_and_pays_nothing(ledger: Ledger) -> None:
    ledger.open_account("b", max_queries=5, max_micro_usd=5 * CENT)
    buy(ledger, "a", question())
    assert buy(ledger, "b", question()).bought is False
    assert ledger.spent("b")[:4] == (1, CENT, 0, 0)


def test_the_real_price_replaces_the_reserved_ceiling(ledger: Ledger) -> None:
    buy(ledger, "a", question(), price=1234)
    assert ledger.spent("a").micro_usd == 1234


def test_a_price_above_its_ceiling_is_an_error_that_keeps_the_reply(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"asked \$0.02 for a query reserved at \$0.01"):
        buy(ledger, "a", question(), price=2 * CENT)
    assert buy(ledger, "a", question()).score == 1.5


@pytest.mark.parametrize(("queries", "money"), [(3, 100 * CENT), (100, 3 * CENT)])
def test_neither_cap_is_ever_passed(ledger_url: str, queries: int, money: int) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=queries, max_micro_usd=money)
    for number in range(3):
        buy(ledger, "a", question(number))
    with pytest.raises(BudgetExhausted, match="has spent 3 of"):
        buy(ledger, "a", question(3))
    assert ledger.spent("a").queries == 3
    assert len(list(ledger.rows())) == 3


def test_the_cap_counts_labels_owned_already_so_that_arms_compare(ledger: Ledger) -> None:
    buy(ledger, "a", question(0))
    ledger.open_account("b", max_queries=0, max_micro_usd=CENT)
    with pytest.raises(BudgetExhausted):
        buy(ledger, "b", question(0))


def test_the_cap_holds_under_concurrent_threads(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=7, max_micro_usd=100 * CENT)

    def attempt(number: int) -> bool:
        try:
            buy(ledger, "a", question(number))
        except BudgetExhausted:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        bought = list(pool.map(attempt, range(40)))
    assert sum(bought) == 7
    assert ledger.spent("a")[:4] == (7, 7 * CENT, 7, 7 * CENT)


def test_the_cap_on_tokens_holds_under_concurrent_threads_and_what_is_saved_pays_for_more(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=100, max_micro_usd=100 * CENT, max_tokens=750)

    refusals: list[str] = []

    def reserve(number: int) -> Reservation | None:
        try:
            reserved = ledger.reserve("a", question(number), ceiling=10, tokens=100, billed_on_failure=True)
        except BudgetExhausted as error:
            refusals.append(str(error))
            return None
        assert isinstance(reserved, Reservation)
        return reserved

    with ThreadPoolExecutor(8) as pool:
        held = [reserved for reserved in pool.map(reserve, range(20)) if reserved is not None]
    assert len(held) == 7
    assert all("of 750 tokens; one more at $0.00001 and 100 tokens does not fit" in refusal for refusal in refusals)
    assert ledger.spent("a").tokens == 700
    for reserved in held:
        ledger.settle(reserved, status="labelled", score=1.0, raw="", tokens=40, micro_usd=4, seconds=0.1)
    assert ledger.spent("a").tokens == 280
    assert [reserve(number) is not None for number in range(20, 26)] == [True] * 4 + [False] * 2
    ledger.open_account("b", max_queries=1, max_micro_usd=10)
    one_more = ledger.reserve("b", question(99), ceiling=10, tokens=100, billed_on_failure=True)
    assert isinstance(one_more, Reservation)
    with pytest.raises(ValueError, match=r"101 tokens, reserved 100\)"):
        ledger.settle(one_more, status="labelled", score=1.0, raw="", tokens=101, micro_usd=4, seconds=0.1)


def _worker(ledger_url: str, numbers: list[int]) -> int:
    ledger = Ledger(ledger_url)
    bought = 0
    for number in numbers:
        try:
            reserved = ledger.reserve("a", question(number), ceiling=CENT, billed_on_failure=True)
        except BudgetExhausted:
            continue
        if isinstance(reserved, Reservation):
            ledger.settle(reserved, status="labelled", score=1.0, raw="", tokens=0, micro_usd=CENT, seconds=0.0)
            bought += 1
    return bought


def test_processes_share_the_budget_and_the_labels(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=12, max_micro_usd=100 * CENT)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        bought = pool.starmap(
            _worker,
            [(ledger_url, list(range(20))), (ledger_url, list(range(19, -1, -1))), (ledger_url, list(range(20)))],
        )
    assert sum(bought) == 12
    rows = list(ledger.rows())
    assert len(rows) == len({row["prompt_hash"] for row in rows}) == 12


def test_one_question_asked_by_two_at_once_is_asked_once(ledger: Ledger) -> None:
    first = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(first, Reservation)
    assert ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True) is None


def test_a_released_reservation_costs_nothing(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    ledger.release(reserved)
    assert ledger.spent("a").queries == 0
    assert buy(ledger, "a", question()).bought


def test_a_lost_call_stays_charged_and_may_be_asked_again(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    ledger.mark_lost(reserved)
    buy(ledger, "a", question())
    assert ledger.spent("a").queries == 2
    assert [row["status"] for row in ledger.rows()] == ["lost", "labelled"]


def test_a_quarantined_reply_is_kept_with_its_text_and_not_asked_again(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    ledger.settle(
        reserved,
        status="quarantined",
        score=float("nan"),
        raw="I cannot",
        tokens=3,
        micro_usd=CENT,
        seconds=0,
    )
    again = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(again, Answer)
    assert again.status == "quarantined"
    (row,) = ledger.rows(status="quarantined")
    assert (row["raw"], row["score"]) == ("I cannot", None)


def quarantine(ledger: Ledger, account: str, asked: Question) -> Reservation:
    reserved = ledger.reserve(account, asked, ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    ledger.settle(reserved, status="quarantined", score=float("nan"), raw="?", tokens=3, micro_usd=CENT, seconds=0)
    return reserved


def test_what_has_no_answer_can_be_asked_again_and_its_cost_stays_counted(ledger: Ledger) -> None:
    ledger.open_account("b", max_queries=10, max_micro_usd=10 * CENT)
    ledger.open_account("more", max_queries=0, max_micro_usd=0)
    quarantine(ledger, "a", question(1))
    assert isinstance(ledger.reserve("b", question(1), ceiling=CENT, billed_on_failure=True), Answer)
    lost = ledger.reserve("a", question(2), ceiling=CENT, billed_on_failure=True)
    assert isinstance(lost, Reservation)
    ledger.mark_lost(lost)
    buy(ledger, "a", question(3))
    ids = [row["id"] for row in unanswered(ledger, "a")]
    assert ids == [1, 2]
    assert reopen(ledger, ids, to="more") == 2
    assert ledger.spent("a")[:4] == (1, CENT, 1, CENT)
    assert ledger.spent("b")[:4] == (0, 0, 0, 0), "what it found here is no answer"
    assert ledger.spent("more")[:4] == (2, 2 * CENT, 2, 2 * CENT)
    assert [times_reopened(ledger, name) for name in ("a", "b", "more", "c")] == [2, 1, 0, 0]
    assert buy(ledger, "a", question(1)).bought, "it is asked again"
    assert [row["id"] for row in unanswered(ledger, "more")] == [2], "the other has an answer now"
    assert reopen(ledger, [3], to="more") == 0, "a label stays"


def test_a_reply_that_comes_after_its_question_was_given_up_is_booked_where_its_cost_went(ledger: Ledger) -> None:
    ledger.open_account("more", max_queries=0, max_micro_usd=0)
    late = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(late, Reservation)
    ledger.mark_lost(late)
    reopen(ledger, [late.query_id], to="more")
    ledger.settle(late, status="labelled", score=2.0, raw="Score: 2", tokens=7, micro_usd=CENT // 2, seconds=0.1)
    assert ledger.spent("a").micro_usd == 0
    assert ledger.spent("more").micro_usd == CENT // 2
    with ledger.engine.connect() as connection:
        held = dict(connection.execute(sa.text("SELECT name, micro_usd FROM accounts")).all())
    assert held == {"a": 0, "more": CENT // 2}


@pytest.mark.parametrize(("billed_on_failure", "status", "queries"), [(True, ["lost"], 1), (False, [], 0)])
def test_the_reservation_of_a_killed_process_is_given_up_at_once(
    ledger_url: str, billed_on_failure: bool, status: list[str], queries: int
) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=5, max_micro_usd=5 * CENT)
    script = (
        "from models.ledger.ledger import Ledger\nfrom models.ledger.tables import Question\n"
        f"Ledger({ledger_url!r}).reserve('a', Question('judge', 'additive', 'p', 'r'), ceiling={CENT}, "
        f"billed_on_failure={billed_on_failure})"
    )
    child = holding(script)
    assert ledger.release_stale() == 0, "the holder is alive"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert ledger.release_stale() == 1
    assert [row["status"] for row in ledger.rows()] == status
    assert ledger.spent("a").queries == queries


def test_a_lease_elsewhere_is_judged_by_its_renewals_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite a container that shares the file is another machine: its processes are not seen, its clock may be off."""
    ledger = Ledger(url := f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    script = (
        "from models.ledger import liveness\nfrom models.ledger.ledger import Ledger\n"
        "from tests.models.ledger.test_ledger import CENT, question\n"
        "liveness._place, liveness.RENEW_SECONDS = lambda: 'elsewhere/boot/pid:[1]', 0.1\n"
        "now, time.time = time.time, lambda: now() - 86400\n"
        f"ledger = Ledger({url!r})\nledger.reserve('a', question(), ceiling=CENT, billed_on_failure=True)\n"
    )
    child = holding(script)
    monkeypatch.setattr(ledger_holders, "LEASE_SECONDS", 1.0)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert ledger.release_stale() == 0, "it is renewed"
        time.sleep(0.1)
    child.kill()
    child.wait()
    killed = time.monotonic()
    while not ledger.release_stale():
        assert time.monotonic() < killed + 10
        time.sleep(0.05)
    assert time.monotonic() - killed > 0.8, "it is looked at for as long as a lease lasts"
    assert [row["status"] for row in ledger.rows()] == ["lost"]


def test_who_looks_for_the_first_time_gives_nobody_up_that_he_cannot_see(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE queries SET holder = 'elsewhere/boot/pid:[1]|1|2', reserved_at = 0"))
    assert ledger.release_stale() == 0


def test_a_holder_of_an_earlier_boot_is_gone(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    host = ledger_holders.this_process().partition("/")[0]
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE queries SET holder = :holder"), {"holder": f"{host}/earlier/pid:[1]|1|2"})
    assert ledger.release_stale() == 1


def test_leases_of_processes_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    script = (
        "import sys\nfrom models.ledger.ledger import Ledger\nfrom tests.models.ledger.test_ledger import CENT, question\n"
        "ledger = Ledger(sys.argv[1])\nledger.open_account('a', max_queries=9, max_micro_usd=9 * CENT)\n"
        "ledger.release(ledger.reserve('a', question(), ceiling=CENT, billed_on_failure=True))"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, url], check=True, cwd=ROOT)
    ledger = Ledger(url)
    ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    with ledger.engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT holder FROM leases")).all() == [ledger_holders.this_process()]


def test_a_reservation_of_another_machine_is_held_while_its_process_lives_and_no_longer(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine is one that names itself so; whether its process lives, only the database's server can say."""
    ledger = Ledger(url := new_database())
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    script = (
        "from models.ledger import liveness\nfrom models.ledger.ledger import Ledger\n"
        "from tests.models.ledger.test_ledger import CENT, question\n"
        "liveness._place = lambda: 'elsewhere/boot/pid:[1]'\n"
        f"ledger = Ledger({url!r})\nledger.reserve('a', question(), ceiling=CENT, billed_on_failure=True)\n"
    )
    child = holding(script)
    with ledger.engine.begin() as connection:  # a day ago: a call may take long
        connection.execute(sa.text("UPDATE queries SET reserved_at = reserved_at - 86400"))
    assert ledger.release_stale() == 0, "its process lives"
    monkeypatch.setattr(ledger_holders, "GRACE_SECONDS", 4.0)
    monkeypatch.setattr(sessions, "BEAT_SECONDS", 0.1)
    with ledger.engine.begin() as connection:  # as when the server is started anew
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        )
        connection.execute(sa.text(others))
    assert ledger.release_stale() == 0, "its session is gone, and may come back"
    child.kill()
    child.wait()
    deadline = time.monotonic() + 10
    while not ledger.release_stale():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [row["status"] for row in ledger.rows()] == ["lost"]


def test_a_session_that_is_lost_comes_back_while_its_ledger_is_there(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(ledger_holders, "GRACE_SECONDS", 0.0)
    ledger, other = Ledger(url := new_database()), Ledger(url)
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    here = ledger_holders.this_process()
    monkeypatch.setattr(ledger_holders, "_place", lambda: "another/boot/pid:[1]")

    def present() -> bool:
        with other.engine.connect() as connection:
            return not ledger_holders.Watch().dead(connection, [here])

    def soon(true: bool) -> None:
        deadline = time.monotonic() + 10
        while present() != true:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    assert present()
    with other.engine.begin() as connection:
        mine = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        connection.execute(sa.text(mine))
    monkeypatch.setattr(ledger_holders, "this_process", lambda: here)
    soon(True)
    del ledger
    soon(False)


def test_a_reply_that_arrives_after_its_reservation_was_given_up_is_kept(ledger: Ledger) -> None:
    reserved = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    ledger.mark_lost(reserved)
    ledger.settle(reserved, status="labelled", score=2.0, raw="", tokens=0, micro_usd=CENT, seconds=0)
    assert buy(ledger, "a", question()).score == 2.0
    assert ledger.spent("a").queries == 1


def test_a_reply_later_than_the_second_asking_is_kept_beside_the_label_that_is_owned(ledger: Ledger) -> None:
    late = ledger.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(late, Reservation)
    ledger.mark_lost(late)
    buy(ledger, "a", question(), score=2.0)
    reply = ledger.settle(late, status="labelled", score=1.0, raw="late", tokens=3, micro_usd=CENT // 2, seconds=9.0)
    assert reply.score == 1.0
    assert buy(ledger, "a", question()).score == 2.0, "the ledger owns one label per question"
    assert [(r["status"], r["raw"], r["score"]) for r in ledger.rows()] == [
        ("lost", "late", 1.0),
        ("labelled", "Score: 1.5", 2.0),
    ]
    assert ledger.spent("a")[:4] == (2, CENT + CENT // 2, 2, CENT + CENT // 2), "both were paid for"


def test_an_imported_label_is_owned_and_never_overwrites(ledger: Ledger) -> None:
    label = {"status": "labelled", "raw": "", "tokens": 0, "micro_usd": CENT}
    assert ledger.import_labels([(question(), {**label, "score": 3.0})]) == 1
    assert ledger.import_labels([(question(), {**label, "score": -3.0})]) == 0
    assert buy(ledger, "a", question()) == Answer(3.0, CENT, 0, False, "labelled")


def test_an_account_that_was_never_opened_is_named(ledger: Ledger) -> None:
    with pytest.raises(KeyError, match="account 'nobody' is not open"):
        buy(ledger, "nobody", question())


def test_money_held_by_a_call_in_flight_is_told_from_money_spent(ledger: Ledger) -> None:
    ledger.open_account("b", max_queries=10, max_micro_usd=CENT + 100)
    flying = ledger.reserve("b", question(1), ceiling=CENT, billed_on_failure=True)
    assert isinstance(flying, Reservation)
    with pytest.raises(BudgetExhausted) as caught:
        ledger.reserve("b", question(2), ceiling=CENT, billed_on_failure=True)
    assert caught.value.held
    ledger.settle(flying, status="labelled", score=1.0, raw="1", tokens=1, micro_usd=100, seconds=0.1)
    assert buy(ledger, "b", question(2), price=CENT).bought
    with pytest.raises(BudgetExhausted) as caught:
        ledger.reserve("b", question(3), ceiling=CENT, billed_on_failure=True)
    assert not caught.value.held


def test_a_lost_call_is_charged_what_it_may_have_cost(ledger: Ledger) -> None:
    flying = ledger.reserve("a", question(1), ceiling=3 * CENT, billed_on_failure=True)
    assert isinstance(flying, Reservation)
    ledger.mark_lost(flying, most=Amount(CENT, 0))
    assert ledger.spent("a")[:4] == (1, CENT, 1, CENT)
    (row,) = ledger.rows(status="lost")
    assert row["micro_usd"] == CENT
    ledger.settle(flying, status="labelled", score=1.0, raw="late", tokens=1, micro_usd=7, seconds=9.0)
    assert ledger.spent("a")[:4] == (1, 7, 1, 7)
