"""A language model as the oracle, against a real server on loopback that fails on purpose."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.core.data import Label
from models.core.money import Prices
from models.core.rubric import Rubric
from models.labelling.label import LabellingSession, LabellingStopped, label_responses
from models.ledger.ledger import Ledger
from models.oracles.base import MaybeBilledError, RequestRejected, RetryableError
from models.oracles.chat_client import Endpoint, close_clients
from models.oracles.llm_judge import LLMJudge
from models.oracles.llm_pairwise_judge import LLMPairwiseJudge
from tests.support.fake_judge import LoopbackJudge, right_score

KEY = "sk-very-secret"
PRICES = Prices(input=1_000_000, output=2_000_000, cached=500_000)
PRICE = 60 + 20 + 20  # 60 fresh and 40 cached input tokens, 10 of output


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield
    close_clients()


def judge_at(server: LoopbackJudge, **fields: Any) -> LLMJudge:
    endpoint = {"model": "judge", "base_url": server.url, "prices": PRICES, "max_tokens": 64, "timeout": 2.0}
    return LLMJudge(endpoint=Endpoint(**{**endpoint, **fields.pop("endpoint", {})}), **fields)


def ask(responses: list[Any], ledger: Ledger, judge: LLMJudge, **caps: Any) -> list[Label]:
    session = LabellingSession(ledger, judge, Rubric(), "a", patience=caps.pop("patience", 60.0))
    return label_responses(responses, session, **{"max_queries": 100, "max_micro_usd": 10**9, "concurrency": 4, **caps})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.mark.parametrize("structured_output", [True, False])
def test_a_judgement_is_read_priced_and_stamped(structured_output: bool) -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server, structured_output=structured_output)
        verdict = judge.judge("the film", "story 4", Rubric())
    assert verdict.score == 4
    assert verdict.micro_usd == PRICE
    assert verdict.micro_usd <= judge.max_cost("the film", "story 4")
    assert verdict.tokens == 110
    raw = json.loads(verdict.raw)
    assert judge.rationale(verdict.raw).lower().strip(".") == "by the rule", "without the score"
    assert not judge.rationale("no record")
    assert raw["model"] == "judge-0001 fp"
    assert len(raw["prompt"]) == 16
    assert len(raw["texts"]) == 1
    (body,) = server.bodies
    assert ("response_format" in body) == structured_output
    assert "Length is no merit" in body["messages"][0]["content"]
    assert Rubric().render("the film", "story 4") == body["messages"][1]["content"]


def test_the_key_reaches_the_server_and_nothing_else(ledger: Ledger, make_response: Any) -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server)
        ask([make_response(1)], ledger, judge)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    kept = f"{judge!r}{judge.model_dump_json()}{judge.fingerprint()}{list(ledger.rows())}"
    assert KEY not in kept
    with pytest.raises(ValidationError, match="must hold no user, password or query"):
        judge_at(server, endpoint={"base_url": f"http://me:{KEY}@127.0.0.1/v1"})


def test_a_missing_key_is_named_before_anything_is_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    judge = LLMJudge(endpoint=Endpoint(model="m", prices=PRICES))
    with pytest.raises(ValueError, match="environment variable OPENAI_API_KEY is not set"):
        judge.check()


def test_who_the_judge_is_does_not_depend_on_limits_or_time_outs() -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server)
        assert (
            judge_at(server, endpoint={"timeout": 9.0, "requests_per_minute": 5}).fingerprint() == judge.fingerprint()
        )
        assert judge_at(server, endpoint={"model": "other"}).fingerprint() != judge.fingerprint()
        assert judge_at(server, scoring="expected").fingerprint() != judge.fingerprint()


def test_the_cap_on_tokens_cuts_the_last_ones(make_response: Any, ledger: Ledger) -> None:
    responses = [make_response(n) for n in range(6)]
    with LoopbackJudge() as server:
        judge = judge_at(server, attempts=1)
        most = max(judge.max_query_tokens(r.prompt, r.text) for r in responses)
        labels = ask(responses, ledger, judge, max_tokens=most + 2 * 110)
    assert most > 2 * 110, "what a reply takes, and what it may take"
    assert len(labels) == 3, "after two replies a third still fits at its ceiling, and no fourth"
    assert ledger.spent("a").tokens == 3 * 110


def test_what_waits_for_a_rate_limit_is_not_sent_after_a_stop(make_response: Any, ledger: Ledger) -> None:
    responses = [make_response(n) for n in range(8)]
    with LoopbackJudge(latency=0.2) as server:
        server.refuse_after = 1
        judge = judge_at(server, endpoint={"requests_per_minute": 2})
        started = time.monotonic()
        with pytest.raises(LabellingStopped, match="refused the call"):
            ask(responses, ledger, judge, concurrency=8)
        assert time.monotonic() - started < 10, "nobody waits for the next minute"
    assert len(server.log) <= 2
    assert [row["status"] for row in ledger.rows()] in (["labelled"], []), "what was not sent is not charged"


def test_the_expected_score_weighs_the_tokens_of_the_score() -> None:
    with LoopbackJudge() as server:
        verdict = judge_at(server, scoring="expected").judge("the film", "story 4", Rubric())
        text = judge_at(server, scoring="expected", structured_output=False).judge("the film", "story 4", Rubric())
    assert verdict.score == text.score == pytest.approx(0.75 * 4 + 0.25 * 3)


def test_samples_are_averaged_and_each_has_its_own_seed() -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server, samples=3)
        verdict = judge.judge("the film", "story 2", Rubric())
    assert verdict.score == 2
    assert verdict.micro_usd == 3 * PRICE <= judge.max_cost("the film", "story 2")
    assert len({body["seed"] for body in server.bodies}) == 3


def test_a_rate_limit_leaves_no_query_with_fewer_samples_than_were_asked_for() -> None:
    with LoopbackJudge(faults={"rate_limit": 0.3}, seed=3) as server:
        judge, scored = judge_at(server, samples=6), 0
        for text in ("story 2", "story 3", "story 4"):
            try:
                verdict = judge.judge("the film", text, Rubric())
            except RetryableError:
                continue  # the very first call: the desk would ask again
            scored += 1
            assert len(json.loads(verdict.raw)["texts"]) == 6
            assert verdict.micro_usd == 6 * PRICE
    assert scored > 0
    assert server.served["rate_limit"] > 0


def test_a_reply_lost_after_others_were_paid_for_is_counted_and_the_others_are_kept() -> None:
    with LoopbackJudge(faults={"drop": 0.3}, seed=1) as server:
        judge = judge_at(server, samples=5)
        kept = []
        for number in range(20):
            try:
                kept.append(judge.judge("the film", f"chapter {number}, story 3", Rubric()))
            except MaybeBilledError:
                continue
    broken = [v for v in kept if "failure" in json.loads(v.raw)]
    assert broken
    for verdict in broken:
        assert verdict.score == 3
        assert verdict.micro_usd > len(json.loads(verdict.raw)["texts"]) * PRICE, "what was lost may have been billed"


@pytest.mark.parametrize("fault", ["out_of_range", "empty", "refusal"])
def test_a_verdict_that_cannot_be_read_is_asked_again_then_quarantined_and_paid(
    ledger: Ledger, make_response: Any, fault: str
) -> None:
    with LoopbackJudge(faults={fault: 1.0}) as server:
        (entry,) = ask([make_response(3)], ledger, judge_at(server, attempts=3))
    assert server.served[fault] == 3
    assert entry.status == "quarantined"
    (row,) = ledger.rows()
    assert row["score"] is None
    assert row["micro_usd"] == 3 * PRICE
    assert len(json.loads(row["raw"])["texts"]) == 3


def test_what_each_failure_may_have_cost() -> None:
    for fault, error in (
        ("rate_limit", RetryableError),
        ("error", RetryableError),
        ("timeout", MaybeBilledError),
        ("drop", MaybeBilledError),
        ("truncated", MaybeBilledError),
    ):
        with LoopbackJudge(faults={fault: 1.0}, hang=3.0) as server, pytest.raises(error):
            judge_at(server, endpoint={"timeout": 0.5}).judge("the film", "story 3", Rubric())
    with pytest.raises(RetryableError, match="no connection"):
        judge_at(server).judge("the film", "story 3", Rubric())


def test_a_rate_limit_says_how_long_to_wait() -> None:
    with LoopbackJudge(faults={"rate_limit": 1.0}) as server, pytest.raises(RetryableError) as caught:
        judge_at(server).judge("the film", "story 3", Rubric())
    assert caught.value.retry_after == 0.02


def test_a_call_that_is_refused_stops_at_once_with_the_reason(ledger: Ledger, make_response: Any) -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server, endpoint={"base_url": f"{server.url}/nowhere"})
        with pytest.raises(RequestRejected, match="refused the call with 404"):
            judge.judge("the film", "story 3", Rubric())
        with pytest.raises(LabellingStopped, match="refused the call with 404"):
            ask([make_response(n) for n in range(9)], ledger, judge)
    assert ledger.spent("a").queries == 0


@pytest.mark.slow
def test_every_right_label_arrives_through_every_fault_and_each_lost_reply_is_counted(
    ledger: Ledger, make_response: Any
) -> None:
    responses = [make_response(n) for n in range(60)]
    faults = {"rate_limit": 0.1, "error": 0.1, "drop": 0.05, "truncated": 0.05, "slow": 0.1}
    with LoopbackJudge(faults=faults) as server:
        labels = ask(responses, ledger, judge_at(server), concurrency=8)
    assert [x.score for x in labels] == [right_score(r.text) for r in responses]
    lost = list(ledger.rows(status="lost"))
    assert len(lost) == server.served["drop"] + server.served["truncated"] > 0
    spent = ledger.spent("a")
    assert spent.queries == 60 + len(lost)
    assert spent.micro_usd == 60 * PRICE + sum(row["micro_usd"] for row in lost)
    judge = judge_at(server)
    assert 2 * max(row["micro_usd"] for row in lost) <= judge.max_cost(responses[0].prompt, responses[0].text) + 4, (
        "one of at most two calls was lost"
    )


@pytest.mark.parametrize("workers", [1, 8])
def test_what_replies_cost_less_than_their_ceiling_pays_for_more(
    ledger: Ledger, make_response: Any, workers: int
) -> None:
    responses = [make_response(n) for n in range(60)]
    with LoopbackJudge() as server:
        judge = judge_at(server)
        ceiling = judge.max_cost(responses[0].prompt, responses[0].text)
        cap = 3 * ceiling
        labels = ask(responses, ledger, judge, concurrency=workers, max_micro_usd=cap)
    assert ceiling > 10 * PRICE
    spent = ledger.spent("a")
    assert spent.micro_usd == len(labels) * PRICE <= cap
    assert cap - spent.micro_usd < ceiling, "it went on until one more might not have been paid for"
    assert [x.response_id for x in labels] == [r.id for r in responses[: len(labels)]]


def test_an_oracle_that_is_down_is_left_alone_when_patience_ends(ledger: Ledger, make_response: Any) -> None:
    why = r"nothing was answered for \d s \(labelling.patience is 2\); last: server error 500 of .*: broken"
    with LoopbackJudge(faults={"error": 1.0}) as server, pytest.raises(LabellingStopped, match=why):
        ask([make_response(n) for n in range(400)], ledger, judge_at(server), concurrency=8, patience=2.0)
    assert server.served["error"] < 1000, "it is asked as often as it asks for"
    assert ledger.spent("a").queries == 0


def test_calls_keep_to_the_rate(make_response: Any, ledger: Ledger) -> None:
    with LoopbackJudge() as server:
        judge = judge_at(server, endpoint={"requests_per_minute": 240})
        started = time.monotonic()
        ask([make_response(n) for n in range(250)], ledger, judge, concurrency=16, max_queries=300)
    assert server.served["reply"] == 250
    assert time.monotonic() - started > 2.0, "240 at once, then four a second"


def pairs_at(server: LoopbackJudge, **fields: Any) -> LLMPairwiseJudge:
    return LLMPairwiseJudge(endpoint=judge_at(server).endpoint, **fields)


@pytest.mark.parametrize("structured_output", [True, False])
def test_a_comparison_is_asked_in_both_orders(structured_output: bool) -> None:
    with LoopbackJudge() as server:
        judge = pairs_at(server, structured_output=structured_output)
        found = [judge.compare("x", *pair, Rubric()).score for pair in (("a 4", "b 2"), ("a 2", "b 4"), ("a 3", "b 3"))]
        verdict = judge.compare("x", "a 4", "b 2", Rubric())
    assert found == [1, -1, 0]
    assert verdict.micro_usd == 2 * PRICE <= judge.pair_ceiling("x", "a 4", "b 2")
    asked = [body["messages"][-1]["content"] for body in server.bodies[-2:]]
    assert "Response A: a 4\n\nResponse B: b 2" in asked[0]
    assert "Response A: b 2\n\nResponse B: a 4" in asked[1]


def test_a_judge_who_always_prefers_the_first_place_is_no_judge() -> None:
    with LoopbackJudge(prefers_first=True) as server:
        judge = pairs_at(server)
        verdict = judge.compare("x", "a 4", "b 2", Rubric())
    assert verdict.score == 0
    found = judge.diagnostics([verdict.raw, "of another version"])
    assert found == {
        **{"calls": 2.0, "unreadable_replies": 0.0, "empty_replies": 0.0, "cut_off_replies": 0.0},
        **{"order_consistency": 0.0, "first_place_share": 1.0},
    }


def test_the_consistency_of_both_orders_is_told() -> None:
    with LoopbackJudge() as server:
        judge = pairs_at(server)
        raws = [judge.compare("x", *pair, Rubric()).raw for pair in (("a 4", "b 2"), ("a 3", "b 3"))]
    found = judge.diagnostics(raws)
    assert (found["order_consistency"], found["first_place_share"]) == (1.0, 0.5), "a tie in both orders agrees"


def test_a_comparison_without_a_verdict_in_one_order_is_quarantined() -> None:
    with LoopbackJudge(faults={"out_of_range": 1.0}) as server:
        verdict = pairs_at(server, attempts=2).compare("x", "a 4", "b 2", Rubric())
    assert verdict.score != verdict.score
    assert verdict.micro_usd == 4 * PRICE
