"""Purses above the accounts: charged for what is bought and no more, never above their cap, whoever is killed."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from models.core.money import Amount
from models.core.rubric import Rubric
from models.labelling.label import LabellingSession, LabellingStopped, label_responses
from models.ledger.accounts import BudgetExhausted, PurseExhausted
from models.ledger.entries import Answer, QueryRequest, Reservation
from models.ledger.ledger import Ledger
from models.ledger.liveness import PEOPLE
from models.ledger.purses import Budget, Purse, ordered, parse_budget
from models.ledger.tables import ACCOUNTS, QUERIES
from models.oracles.gold import Gold
from tests.models.ledger.test_ledger import CENT, holding, question

RUN, SWEEP = "run 0123", "sweep small 4567"


def opened(url: str, *, sweep: int = 5 * CENT, run: int = 100 * CENT, budget: Budget | None = None) -> Ledger:
    ledger = Ledger(url, budget=budget)
    for account in ("a", "b"):
        ledger.open_account(account, max_queries=20, max_micro_usd=20 * CENT)
    ledger.open_account(SWEEP, max_micro_usd=sweep)
    ledger.open_account(RUN, max_micro_usd=run)
    return ledger


def reserve(ledger: Ledger, number: int, account: str = "a", ceiling: int = CENT) -> Reservation:
    held = ledger.reserve(account, question(number), ceiling=ceiling, billed_on_failure=True, paid_by=(SWEEP, RUN))
    assert isinstance(held, Reservation)
    return held


def settle(ledger: Ledger, held: Reservation, price: int = CENT) -> None:
    ledger.settle(held, status="labelled", score=1.0, raw="1", tokens=3, micro_usd=price, seconds=0.1)


def kept(ledger: Ledger, *names: str) -> list[tuple[int, int]]:
    """Return the queries and micro-dollars that accounts and purses have spent by their own sums."""
    with ledger.engine.connect() as connection:
        rows = {row.name: (row.queries, row.micro_usd) for row in connection.execute(sa.select(ACCOUNTS))}
    return [rows[name] for name in names]


def test_what_is_bought_is_charged_to_every_purse_and_what_is_found_to_none(ledger_url: str) -> None:
    ledger = opened(ledger_url)
    settle(ledger, reserve(ledger, 0), price=CENT // 2)
    assert kept(ledger, "a", RUN, SWEEP) == [(1, CENT // 2)] * 3
    found = ledger.reserve("b", question(0), ceiling=CENT, billed_on_failure=True, paid_by=(SWEEP, RUN))
    assert isinstance(found, Answer)
    assert kept(ledger, "b", RUN, SWEEP) == [(1, CENT // 2)] * 3, "the arm is charged, so that arms compare"


def test_purses_follow_what_becomes_of_a_call(ledger_url: str) -> None:
    ledger = opened(ledger_url)
    ledger.release(reserve(ledger, 0))
    assert kept(ledger, "a", RUN, SWEEP) == [(0, 0)] * 3
    ledger.mark_lost(lost := reserve(ledger, 1), most=Amount(CENT // 4, 0))
    assert kept(ledger, "a", RUN, SWEEP) == [(1, CENT // 4)] * 3
    settle(ledger, lost, price=CENT // 5)
    assert kept(ledger, "a", RUN, SWEEP) == [(1, CENT // 5)] * 3, "its reply was late"
    ledger.mark_lost(reserve(ledger, 2))
    with pytest.raises(ValueError, match="its ceiling is too low"):
        settle(ledger, reserve(ledger, 3), price=2 * CENT)
    assert kept(ledger, "a", RUN, SWEEP) == [(3, CENT // 5 + 3 * CENT)] * 3


def test_a_purse_that_refuses_is_named_with_what_raises_it_and_nobody_is_charged(ledger_url: str) -> None:
    ledger = opened(ledger_url, sweep=CENT + CENT // 2)
    flying = reserve(ledger, 0)
    with pytest.raises(
        PurseExhausted, match=r"'sweep small 4567' has paid \$0.01 of \$0.015; one .* at \$0.01 "
    ) as refused:
        reserve(ledger, 1, "b")
    assert refused.value.held
    assert "may give some back: raise max_micro_usd of the sweep" in str(refused.value)
    assert ledger.holders_of(SWEEP) == ledger.holders_of("a") != []
    assert kept(ledger, "a", "b", RUN, SWEEP) == [(1, CENT), (0, 0), (1, CENT), (1, CENT)]
    settle(ledger, flying)
    with pytest.raises(PurseExhausted, match=r"does not fit: raise max_micro_usd of the sweep$") as refused:
        reserve(ledger, 1, "b")
    assert not refused.value.held
    ledger.open_account("b", max_queries=0, max_micro_usd=CENT)
    with pytest.raises(BudgetExhausted, match="account 'b' has spent 0 of 0 queries"):
        reserve(ledger, 1, "b")
    ledger.open_account("c", max_queries=9, max_micro_usd=9 * CENT)
    with pytest.raises(KeyError, match="account 'sweep other' is not open"):
        ledger.reserve("c", question(7), ceiling=CENT, billed_on_failure=True, paid_by=("sweep other",))


def test_of_many_at_once_as_many_are_bought_as_the_purse_allows(ledger_url: str) -> None:
    ledger = opened(ledger_url, sweep=3 * CENT)
    orders = [QueryRequest(question(n), Amount(CENT, 7), billed_on_failure=True) for n in range(5)]
    _, outcomes = ledger.settle_and_reserve("a", [], orders, paid_by=(RUN, SWEEP))
    assert [type(outcome) for outcome in outcomes] == [Reservation] * 3 + [PurseExhausted] * 2
    assert kept(ledger, "a", RUN, SWEEP) == [(3, 3 * CENT)] * 3


def test_money_that_waits_for_people_is_not_waited_for(ledger_url: str) -> None:
    ledger = opened(ledger_url, sweep=CENT)
    asked = QueryRequest(question(0), Amount(CENT, 0), billed_on_failure=False, holder=PEOPLE)
    ledger.settle_and_reserve("a", [], [asked], paid_by=(SWEEP,))
    with pytest.raises(PurseExhausted) as refused:
        reserve(ledger, 1, "b")
    assert not refused.value.held


@pytest.mark.parametrize("billed_on_failure", [True, False])
def test_the_purses_of_a_killed_process_keep_what_may_have_been_paid(ledger_url: str, billed_on_failure: bool) -> None:
    ledger = opened(ledger_url)
    script = (
        "from models.ledger.ledger import Ledger\nfrom tests.models.ledger.test_purses import *\n"
        f"Ledger({ledger_url!r}).reserve('a', question(), ceiling=CENT, billed_on_failure={billed_on_failure}, "
        "paid_by=(RUN, SWEEP))"
    )
    child = holding(script)
    assert kept(ledger, "a", RUN, SWEEP) == [(1, CENT)] * 3
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert ledger.release_stale() == 1
    assert kept(ledger, "a", RUN, SWEEP) == [(1, CENT) if billed_on_failure else (0, 0)] * 3


def _buy(ledger_url: str, account: str, numbers: list[int]) -> int:
    ledger, bought = Ledger(ledger_url, budget=Budget(100 * CENT)), 0
    for number in numbers:
        try:
            held = ledger.reserve(account, question(number), ceiling=CENT, billed_on_failure=True, paid_by=(SWEEP, RUN))
        except PurseExhausted:
            continue
        if isinstance(held, Reservation):
            settle(ledger, held, price=CENT - 1)
            bought += 1
    return bought


def test_processes_with_accounts_of_their_own_never_pass_a_purse(ledger_url: str) -> None:
    ledger = opened(ledger_url, sweep=12 * CENT)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        asked = [("a", list(range(20))), ("b", list(range(19, -1, -1))), ("b", list(range(20, 40)))]
        bought = pool.starmap(_buy, [(ledger_url, *each) for each in asked])
    assert sum(bought) == 12, "each a micro-dollar below its ceiling, and a thirteenth does not fit"
    assert len(list(ledger.rows())) == 12
    assert kept(ledger, RUN, SWEEP, "lab") == [(12, 12 * (CENT - 1))] * 3


def test_threads_that_settle_and_reserve_under_one_purse_never_pass_it(ledger_url: str) -> None:
    ledger = opened(ledger_url, sweep=7 * CENT)

    def attempt(number: int) -> int:
        try:
            held = reserve(ledger, number, "ab"[number % 2])
        except PurseExhausted:
            return 0
        (paid,) = kept(ledger, SWEEP)
        assert paid[1] <= 7 * CENT
        settle(ledger, held, price=CENT // 2)
        return 1

    with ThreadPoolExecutor(8) as pool:
        bought = sum(pool.map(attempt, range(20)))
    assert 7 <= bought <= 13
    assert kept(ledger, RUN, SWEEP) == [(bought, bought * CENT // 2)] * 2


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        ("50 USD / month", Budget(50_000_000, "month")),
        ("20/day", Budget(20_000_000, "day")),
        (" $0.5 usd/Hour ", Budget(500_000, "hour")),
        ("1.000001/week", Budget(1_000_001, "week")),
        ("100", Budget(100_000_000)),
        ("0", Budget(0)),
    ],
)
def test_a_budget_is_read_as_people_write_it(written: str, budget: Budget) -> None:
    assert parse_budget(written) == budget


@pytest.mark.parametrize(
    "written", ["", "much", "-5", "5 EUR", "1e3", "5/year", "5 / month / day", "1.0000001", "inf", "٣", "9" * 20]
)
def test_a_budget_that_cannot_be_read_says_how_one_is_written(written: str) -> None:
    with pytest.raises(ValueError, match=r"NINEFOLD_BUDGET=.*: (write dollars .*as in 50 USD / month|leave it out)"):
        parse_budget(written)


@pytest.mark.parametrize(
    ("period", "purse", "began"),
    [
        ("hour", "lab 2026-11-30T23", datetime(2026, 11, 30, 23, tzinfo=UTC)),
        ("day", "lab 2026-11-30", datetime(2026, 11, 30, tzinfo=UTC)),
        ("week", "lab 2026-W49", datetime(2026, 11, 30, tzinfo=UTC)),
        ("month", "lab 2026-11", datetime(2026, 11, 1, tzinfo=UTC)),
        ("", "lab", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_lab_has_a_purse_for_each_period(period: str, purse: str, began: datetime) -> None:
    now = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
    assert Budget(1, period).at(now) == (purse, began.timestamp())
    assert (Budget(1, period).at(now + 1).purse == purse) == (period in ("", "week"))


def test_a_week_across_the_new_year_is_one() -> None:
    days = [datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 3, 23, tzinfo=UTC)]
    assert {Budget(1, "week").at(day.timestamp()).purse for day in days} == {"lab 2026-W53"}


def test_a_budget_that_is_set_later_begins_with_what_its_period_has_paid(ledger_url: str) -> None:
    before = opened(ledger_url, sweep=100 * CENT)
    for number in range(4):
        settle(before, reserve(before, number), price=CENT // 2)
    reserve(before, 4)
    with before.engine.begin() as connection:  # one long ago, one simulated, one whose version did not say
        changes = (1, {"reserved_at": 5.0}), (2, {"costs_money": False}), (3, {"costs_money": None})
        for number, change in changes:
            connection.execute(sa.update(QUERIES).where(QUERIES.c.id == number).values(change))
    imported = {"status": "labelled", "score": 1.0, "raw": "", "tokens": 0, "micro_usd": 7 * CENT}
    before.import_labels([(question(50), imported)])
    ledger = Ledger(ledger_url, budget=Budget(3 * CENT, "month"))
    settle(ledger, reserve(ledger, 5))
    now = Budget(0, "month").at(time.time()).purse
    assert kept(ledger, now) == [(4, 3 * CENT)], "half a cent, twice, one on its way, and the new one"
    with pytest.raises(PurseExhausted, match=f"the purse '{now}' has paid .*: raise NINEFOLD_BUDGET"):
        reserve(ledger, 6)
    ledger = Ledger(ledger_url, budget=Budget(4 * CENT, "month"))
    settle(ledger, reserve(ledger, 6))
    assert kept(ledger, now) == [(5, 4 * CENT)]
    ever = Ledger(ledger_url, budget=Budget(100 * CENT))
    reserve(ever, 7)
    assert kept(ever, "lab", now) == [(7, 4 * CENT + CENT // 2 + CENT), (5, 4 * CENT)]


def test_a_new_period_has_a_purse_of_its_own_and_a_call_is_settled_with_the_one_that_paid(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(ledger_url, budget=Budget(2 * CENT, "day"))
    purse, began = Budget(0, "day").at(time.time())
    flying = [reserve(ledger, number) for number in range(2)]
    with pytest.raises(PurseExhausted):
        reserve(ledger, 2)
    monkeypatch.setattr(time, "time", lambda: began + 86_400)
    settle(ledger, flying[0], price=1)
    tomorrow = Budget(0, "day").at(began + 86_400).purse
    reserve(ledger, 2)
    assert kept(ledger, purse) == [(2, CENT + 1)]
    with ledger.engine.connect() as connection:  # it is tomorrow for everybody, and nothing was asked before it
        assert (
            connection.scalar(sa.select(QUERIES.c.purses).where(QUERIES.c.id == 3))
            == f'["{RUN}", "{SWEEP}", "{tomorrow}"]'
        )


def test_what_is_simulated_costs_the_lab_nothing(ledger_url: str) -> None:
    ledger = opened(ledger_url, budget=Budget(0))
    order = QueryRequest(question(), Amount(CENT, 0), billed_on_failure=False, costs_money=False)
    _, (held,) = ledger.settle_and_reserve("a", [], [order], paid_by=(SWEEP,))
    assert isinstance(held, Reservation)
    assert kept(ledger, "a", SWEEP) == [(1, CENT)] * 2
    with pytest.raises(PurseExhausted):
        reserve(ledger, 1)


def test_purses_are_charged_in_one_order() -> None:
    assert ordered(["lab 2026-11", "sweep b 1", "run 2", "lab 2026-10", "run 2"]) == (
        *("run 2", "sweep b 1"),
        *("lab 2026-10", "lab 2026-11"),
    )


def test_labelling_stops_at_an_empty_purse_and_goes_on_when_it_is_raised(ledger_url: str, make_response: Any) -> None:
    responses, ledger = [make_response(n) for n in range(6)], Ledger(ledger_url)

    def ask(cap: int) -> int:
        purse = Purse(name=RUN, micro_usd=cap)
        session = LabellingSession(ledger, Gold(), Rubric(), "a", purses=(purse,))
        return len(label_responses(responses, session, max_queries=6, max_micro_usd=100 * CENT, concurrency=3))

    with pytest.raises(
        LabellingStopped, match=r"after 4 of 6 queries: the purse 'run 0123' .*raise labelling.max_micro_usd"
    ):
        ask(4 * CENT)
    assert kept(ledger, "a", RUN) == [(4, 4 * CENT)] * 2
    assert ask(6 * CENT) == 6
    assert kept(ledger, "a", RUN) == [(6, 6 * CENT)] * 2


def test_responses_generated_anew_open_no_fresh_budget(ledger_url: str, make_response: Any) -> None:
    """An account is named by what it is asked about: other responses have another, and the run's purse stays."""
    ledger = Ledger(ledger_url)

    def ask(account: str, numbers: range) -> int:
        session = LabellingSession(ledger, Gold(), Rubric(), account, purses=(Purse(name=RUN, micro_usd=8 * CENT),))
        asked = [make_response(n) for n in numbers]
        return len(label_responses(asked, session, max_queries=6, max_micro_usd=6 * CENT, concurrency=3))

    assert ask("first", range(6)) == 6
    assert ask("first", range(6)) == 6, "what is found costs the purse nothing"
    with pytest.raises(LabellingStopped, match="after 2 of 6 queries"):
        ask("anew", range(10, 16))
    assert kept(ledger, "first", "anew", RUN) == [(6, 6 * CENT), (2, 2 * CENT), (8, 8 * CENT)]


def test_a_ledger_of_an_earlier_version_has_rows_that_no_purse_has_paid(ledger_url: str) -> None:
    old = Ledger(ledger_url)
    old.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    held = old.reserve("a", question(), ceiling=CENT, billed_on_failure=True)
    assert isinstance(held, Reservation)
    with old.engine.begin() as connection:
        for column in ("purses", "costs_money"):
            connection.execute(sa.text(f"ALTER TABLE queries DROP COLUMN {column}"))
    old.engine.dispose()
    again = opened(ledger_url)
    settle(again, held, price=1)
    settle(again, reserve(again, 1))
    assert kept(again, "a", SWEEP) == [(2, CENT + 1), (1, CENT)]
