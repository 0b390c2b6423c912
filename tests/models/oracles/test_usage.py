"""What a server's usage means: a price that the call can have, or the most that it may cost, said aloud."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from models.core.money import Amount, Prices
from models.labelling.label import LabellingStopped
from models.ledger.entries import Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import ACCOUNTS, CHARGES, QUERIES, Question
from models.oracles.usage import bill
from tests.models.oracles.test_llm_judge import ask, judge_at, key  # noqa: F401 - a fixture
from tests.support.fake_judge import LoopbackJudge

PRICES = Prices(input=1_000_000, output=2_000_000, cached=500_000, cache_write=1_250_000)
CEILING = Amount(625 + 2 * 64, 500 + 64)
FULL = {"prompt_tokens": 100, "completion_tokens": 10}


def billed(usage: object, text: str = "a verdict") -> Any:
    return bill(usage, PRICES, sent=500, written=64, text=text)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (FULL, (120, 110)),
        (FULL | {"prompt_tokens_details": {"cached_tokens": 40}}, (100, 110)),
        (FULL | {"prompt_tokens_details": {"cached_tokens": 100}}, (70, 110)),
        (FULL | {"prompt_tokens_details": None, "total_tokens": None}, (120, 110)),
        (FULL | {"prompt_tokens_details": {"cached_tokens": None}}, (120, 110)),
        (FULL | {"cache_creation_input_tokens": 40}, (130, 110)),
        (FULL | {"prompt_tokens_details": {"cache_write_tokens": 40}}, (130, 110)),
        (FULL | {"prompt_tokens_details": {"cache_creation_tokens": 40, "cached_tokens": 60}}, (100, 110)),
        # one count by two names
        (
            FULL | {"cache_creation_input_tokens": 40, "prompt_tokens_details": {"cache_creation_tokens": 40}},
            (130, 110),
        ),
        (
            FULL | {"cache_creation_input_tokens": None, "prompt_tokens_details": {"cache_write_tokens": None}},
            (120, 110),
        ),
        (FULL | {"total_tokens": 110}, (120, 110)),
        (FULL | {"total_tokens": 150}, (200, 150)),  # reasoning, counted in the total alone
        (FULL | {"total_tokens": 0}, (120, 110)),
        (FULL | {"completion_tokens": 3000}, (6100, 3100)),  # a server that does not keep to max_tokens has billed it
    ],
)
def test_a_usage_that_can_be_is_what_the_call_has_cost(usage: object, cost: tuple[int, int]) -> None:
    assert billed(usage) == (Amount(*cost), "")


IMPOSSIBLE = [
    None,
    [],
    {},
    "free",
    {"prompt_tokens": 100},
    FULL | {"prompt_tokens": -100_000},
    FULL | {"completion_tokens": -1},
    FULL | {"completion_tokens": 10.5},
    FULL | {"completion_tokens": float("nan")},
    FULL | {"completion_tokens": "10"},
    FULL | {"completion_tokens": True},
    FULL | {"completion_tokens": None},
    FULL | {"completion_tokens": 10**30},
    FULL | {"prompt_tokens": 10**9},
    FULL | {"prompt_tokens": 0},
    FULL | {"completion_tokens": 0},
    FULL | {"total_tokens": -5},
    FULL | {"total_tokens": 10**20},
    FULL | {"cache_creation_input_tokens": 101},
    FULL | {"cache_creation_input_tokens": -1},
    FULL | {"prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 41}},
    FULL | {"prompt_tokens_details": {"cache_creation_tokens": 4.0}},
    FULL | {"prompt_tokens_details": {"cached_tokens": 2000}},
    FULL | {"prompt_tokens_details": {"cached_tokens": -40}},
    FULL | {"prompt_tokens_details": {"cached_tokens": "40"}},
    FULL | {"prompt_tokens_details": [40]},
]


@pytest.mark.parametrize("usage", IMPOSSIBLE, ids=str)
def test_a_usage_that_cannot_be_books_the_most_that_the_call_may_cost_and_says_why(usage: object) -> None:
    found = billed(usage)
    assert found.cost == CEILING
    assert "cannot be this call's" in found.doubt


def test_an_empty_reply_may_have_written_nothing() -> None:
    assert billed(FULL | {"completion_tokens": 0}, text="") == (Amount(100, 100), "")


@pytest.mark.parametrize(("dearer", "said"), [("cached", "cached_tokens"), ("cache_write", "cache_write_tokens")])
def test_input_that_is_dearer_by_the_cache_is_in_the_ceiling(dearer: str, said: str) -> None:
    dear = Prices(input=1_000_000, output=1_000_000, **{dearer: 3_000_000})
    usage = {"prompt_tokens": 500, "completion_tokens": 64, "prompt_tokens_details": {said: 500}}
    price = bill(usage, dear, sent=500, written=64, text="x").cost
    assert price == bill(None, dear, sent=500, written=64, text="x").cost == Amount(1564, 564)


def test_cache_writes_without_a_price_of_their_own_cost_as_other_input() -> None:
    plain = Prices(input=1_000_000, output=2_000_000, cached=500_000)
    usage = FULL | {"cache_creation_input_tokens": 40}
    assert bill(usage, plain, sent=500, written=64, text="x") == (Amount(120, 110), "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMED = st.dictionaries(
    st.sampled_from(
        ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "cache_creation_input_tokens"]
    ),
    JSON
    | st.integers(0, 600)
    | st.fixed_dictionaries({name: JSON | st.integers(0, 600) for name in ("cached_tokens", "cache_write_tokens")}),
)


@given(JSON | NAMED, st.text(max_size=3))
def test_whatever_a_server_says_a_call_never_earns_money(usage: object, text: str) -> None:
    cost, doubt = billed(usage, text)
    assert min(cost) >= 0
    assert cost == CEILING or not doubt
    if not doubt:
        assert cost.micro_usd >= 1, "something was sent"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 100, "completion_tokens": -(9**9)}, IMPOSSIBLE[-4]], ids=str)
def test_a_verdict_without_a_usable_usage_is_read_at_the_ceiling_and_the_cap_holds(
    make_response: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture, usage: object
) -> None:
    responses = [make_response(n) for n in range(6)]
    with LoopbackJudge(usage=usage) as server, caplog.at_level(logging.WARNING, "models.oracles.chat_client"):
        judge = judge_at(server, attempts=1)
        most = judge.max_cost(responses[0].prompt, responses[0].text)
        labels = ask(responses, ledger, judge, max_micro_usd=3 * most)
    assert [entry.score for entry in labels] == [0, 1, 2][: len(labels)]
    assert len(labels) == len(server.log) >= 3
    spent = ledger.spent("a").micro_usd
    assert len(labels) * 64 * 2 < spent <= 3 * most
    (row, *_) = ledger.rows()
    assert "cannot be this call's" in json.loads(row["raw"])["price"][0]
    assert sum("booked at the most" in said for said in caplog.messages) == 1, "said once, not for each call"


def test_a_real_price_above_the_ceiling_is_kept_and_buys_nothing_more(make_response: Any, ledger: Ledger) -> None:
    with LoopbackJudge(completion_tokens=9_000) as server:
        judge = judge_at(server, attempts=1)
        with pytest.raises(LabellingStopped, match="its ceiling is too low; the reply is kept"):
            ask([make_response(n) for n in range(50)], ledger, judge, concurrency=1, max_micro_usd=10**5)
        first = len(server.log)
        assert ledger.spent("a").micro_usd == first * (60 + 20 + 18_000), "as the server bills it"
        labels = ask([make_response(n) for n in range(50, 60)], ledger, judge, concurrency=1, max_micro_usd=18_080)
    assert labels == []


@pytest.mark.parametrize("price", [-5, 1.5, float("nan"), True, None, "3", 2**63])
def test_an_oracle_of_ones_own_that_asks_no_price_is_booked_at_its_ceiling(ledger_url: str, price: Any) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=1, max_micro_usd=100)
    reserved = ledger.reserve("a", Question("o", "c", "p", "r"), ceiling=70, billed_on_failure=True, tokens=7)
    assert isinstance(reserved, Reservation)
    with pytest.raises(ValueError, match=r"no whole numbers from 0 to 2\^63: booked at the \$0.00007 reserved"):
        ledger.settle(reserved, status="labelled", score=1.0, raw="said", tokens=3, micro_usd=price, seconds=0.1)
    assert ledger.spent("a")[:2] == (1, 70)
    assert [(row["status"], row["raw"], row["micro_usd"]) for row in ledger.rows()] == [("labelled", "said", 70)]


def test_nothing_makes_less_than_nothing_of_what_is_spent(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.open_account("a", max_queries=9, max_micro_usd=900)
    ledger.reserve("a", Question("o", "c", "p", "r"), ceiling=70, billed_on_failure=True, tokens=7)
    for table in (ACCOUNTS, QUERIES, CHARGES):
        for column in ("micro_usd", "tokens"):
            with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
                connection.execute(sa.update(table).values({column: -1}))
    assert ledger.spent("a")[:2] == (1, 70)
