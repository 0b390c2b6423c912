"""The desk where labels are bought, with oracles that misbehave."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from models.core.event_loop import run
from models.core.money import Amount
from models.core.rubric import Rubric
from models.labelling.batcher import LedgerBatcher
from models.labelling.label import LabellingSession, LabellingStopped, label_responses
from models.ledger.entries import QueryRequest, QueryResult, Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from models.oracles.base import MaybeBilledError, Oracle, RetryableError, Verdict
from models.oracles.noisy import Noisy
from models.oracles.pairwise_from_scores import PairwiseFromScores
from models.oracles.replay import Replay

CENT = 10_000


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.fixture
def responses(make_response: Any) -> list[Any]:
    return [make_response(n) for n in range(12)]


@pytest.fixture
def table(tmp_path: Path, responses: list[Any]) -> Path:
    path = tmp_path / "labels.csv"
    rows = [f"{r.prompt},{r.text},{n / 2},{0.01}" for n, r in enumerate(responses)]
    path.write_text("prompt,response,label,price\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def oracle(table: Path) -> Replay:
    return Replay(path=table, price_column="price")


def ask(responses: list[Any], ledger: Ledger, oracle: Oracle, **caps: Any) -> list[Any]:
    session = LabellingSession(ledger, oracle, Rubric(), caps.pop("account", "a"), patience=caps.pop("patience", 60.0))
    return label_responses(
        responses, session, **{"max_queries": 100, "max_micro_usd": 100 * CENT, "concurrency": 3, **caps}
    )


def test_labels_come_back_in_order_with_their_prices(responses: list[Any], ledger: Ledger, oracle: Replay) -> None:
    labels = ask(responses, ledger, oracle)
    assert [x.response_id for x in labels] == [r.id for r in responses]
    assert [x.score for x in labels] == [n / 2 for n in range(12)]
    assert {x.micro_usd for x in labels} == {CENT}


@pytest.mark.parametrize("caps", [{"max_queries": 5}, {"max_micro_usd": 5 * CENT + 9}])
def test_a_cap_cuts_the_last_ones_whatever_the_number_of_workers(
    responses: list[Any], ledger: Ledger, oracle: Replay, caps: dict[str, int]
) -> None:
    for workers in (1, 8):
        labels = ask(responses, ledger, oracle, concurrency=workers, account=f"w{workers}", **caps)
        assert [x.response_id for x in labels] == [r.id for r in responses[:5]]
        assert ledger.spent(f"w{workers}").queries == 5


def test_noise_does_not_depend_on_order_or_workers(responses: list[Any], tmp_path: Path, oracle: Replay) -> None:
    noisy = Noisy(inner=oracle, label_noise=1.0, flip=0.3, seed=4)
    first = ask(responses, Ledger(f"sqlite:///{tmp_path / '1.sqlite'}"), noisy, concurrency=1)
    second = ask(responses[::-1], Ledger(f"sqlite:///{tmp_path / '2.sqlite'}"), noisy, concurrency=8)
    assert {x.response_id: x.score for x in first} == {x.response_id: x.score for x in second}
    assert [x.score for x in first] != [n / 2 for n in range(12)]


def test_garbage_is_quarantined_and_counted_never_guessed(responses: list[Any], ledger: Ledger, oracle: Replay) -> None:
    labels = ask(responses, ledger, Noisy(inner=oracle, garbage=0.5))
    bad = [x for x in labels if x.status == "quarantined"]
    assert 0 < len(bad) < 12
    assert all(math.isnan(x.score) for x in bad)
    assert {row["raw"] for row in ledger.rows(status="quarantined")} == {"simulated reply without a score"}
    assert ledger.spent("a").queries == 12


def test_an_oracle_that_raises_stops_cleanly_and_the_next_run_buys_only_the_rest(
    responses: list[Any], ledger: Ledger, oracle: Replay
) -> None:
    broken = Noisy(inner=oracle, crash=0.2, seed=7)
    with pytest.raises(LabellingStopped, match=r"labelling stopped after \d+ of 12 queries: simulated crash"):
        ask(responses, ledger, broken, concurrency=1)
    kept = {row["response"]: row["id"] for row in ledger.rows(status="labelled")}
    lost = len(list(ledger.rows(status="lost")))
    assert len(kept) > 0
    assert lost == 1
    ledger.open_account("a", max_queries=100, max_micro_usd=100 * CENT)
    # the cause is fixed: same fingerprint, no crash
    working = _Fixed(inner=oracle, alias=broken.fingerprint())
    labels = ask(responses, ledger, working)
    assert len(labels) == 12
    rows = list(ledger.rows(status="labelled"))
    assert {row["response"]: row["id"] for row in rows if row["response"] in kept} == kept
    assert len(rows) == 12
    assert ledger.spent("a").queries == 12 + lost


class _Fixed(Oracle):
    description = "test oracle under another's identity"
    kind: Literal["test/fixed"] = "test/fixed"
    inner: Replay
    alias: str

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        return self.inner.judge(prompt, response, rubric)

    def max_cost(self, prompt: str, response: str) -> int:
        return self.inner.max_cost(prompt, response)

    def fingerprint(self) -> str:
        return self.alias


class _Flaky(_Fixed):
    kind: Literal["test/flaky"] = "test/flaky"  # type: ignore[assignment]
    calls: list[int] = []

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        self.calls.append(1)
        if len(self.calls) % 2:
            raise RetryableError("rate limit")
        return super().judge(prompt, response, rubric)


def test_an_unpaid_failure_is_asked_again_and_not_charged(responses: list[Any], ledger: Ledger, oracle: Replay) -> None:
    labels = ask(responses, ledger, _Flaky(inner=oracle, alias="flaky"), concurrency=1)
    assert len(labels) == 12
    assert ledger.spent("a").queries == 12


def test_an_oracle_that_always_fails_unpaid_costs_nothing(responses: list[Any], ledger: Ledger, oracle: Replay) -> None:
    with pytest.raises(LabellingStopped, match="nothing was billed"):
        ask(responses, ledger, Noisy(inner=oracle, fail=1.0), patience=1.0)
    assert ledger.spent("a").queries == 0


def test_a_response_outside_the_table_is_named(
    responses: list[Any], ledger: Ledger, oracle: Replay, make_response: Any
) -> None:
    with pytest.raises(LabellingStopped, match="holds no label for prompt 'the film' with response 'unheard of'"):
        ask([*responses, make_response(99, text="unheard of")], ledger, oracle)


def test_what_is_asked_twice_is_bought_and_counted_once(make_response: Any, ledger: Ledger, oracle: Replay) -> None:
    twice = [make_response(0), make_response(1), replace(make_response(0), id="again")]
    for account in ("a", "b"):
        labels = ask(twice, ledger, oracle, account=account, concurrency=4)
        assert [entry.score for entry in labels] == [0.0, 0.5, 0.0]
        assert [entry.micro_usd for entry in labels] == [CENT, CENT, 0]
        assert ledger.spent(account)[:2] == (2, 2 * CENT)


def test_an_order_that_fails_costs_no_reply_that_was_paid_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    reserved = ledger.reserve("a", Question("o", "c", "p", "r"), ceiling=CENT, billed_on_failure=True)
    assert isinstance(reserved, Reservation)
    reply = QueryResult(reserved, "labelled", 1.0, "raw", 1, CENT, 0.1)

    def broken(*_: object) -> None:
        raise OSError("the disk is full")

    async def both() -> list[Any]:
        batcher = LedgerBatcher(ledger, "a")
        order = QueryRequest(Question("o", "c", "p", "other"), Amount(CENT, 0), True)
        found = await asyncio.gather(batcher.settle(reply), batcher.reserve(order), return_exceptions=True)
        monkeypatch.undo()
        return [*found, await batcher.reserve(order)]

    monkeypatch.setattr(ledger, "_reserve", broken)
    settled, refused, later = run(both())
    assert settled.score == 1.0
    assert isinstance(refused, OSError)
    assert isinstance(later, Reservation), "the batcher works on"
    assert [row["status"] for row in ledger.rows()] == ["labelled", "reserved"]


class _LosesTheSecond(Oracle):
    description = "test oracle"
    kind: Literal["test/loses_the_second"] = "test/loses_the_second"

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        if response == "second":
            raise MaybeBilledError("hung up", most=Amount(50, 5))
        return Verdict(1.0, "", 600, 60)

    def max_cost(self, prompt: str, response: str) -> int:
        return 1000


def test_of_a_comparison_whose_second_half_is_lost_both_halves_are_counted() -> None:
    with pytest.raises(MaybeBilledError) as lost:
        PairwiseFromScores(inner=_LosesTheSecond()).compare("x", "first", "second", Rubric())
    assert lost.value.most == Amount(650, 65)
