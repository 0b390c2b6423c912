"""Labelling stops early where the oracle's replies hold no verdict, and says which field helps."""

from pathlib import Path
from typing import Any

import pytest

from models.core.rubric import Rubric
from models.labelling.label import LabellingSession, LabellingStopped, label_responses
from models.labelling.unanswered import account_of_retries, retry_price, retry_rows
from models.labelling.watch import ReplyWatch
from models.ledger.ledger import Ledger
from models.ledger.reopening import times_reopened, unanswered
from models.oracles.chat_client import Endpoint, Prices, close_clients
from models.oracles.llm_judge import LLMJudge
from tests.support.fake_judge import LoopbackJudge

USD = 1_000_000
PROSE = {"choices": [{"message": {"content": "I would say four"}, "finish_reason": "stop"}], "usage": None}
CUT_OFF = {"choices": [{"message": {"content": "Let me think, "}, "finish_reason": "length"}], "usage": None}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.fixture
def responses(make_response: Any) -> list[Any]:
    return [make_response(n) for n in range(100)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    yield
    close_clients()


def oracle_of(judge: LoopbackJudge, **own: Any) -> LLMJudge:
    prices = Prices(input=1_000_000, output=2_000_000)
    endpoint = Endpoint(model="judge", base_url=judge.url, api_key_env="JUDGE_KEY", prices=prices)
    return LLMJudge(endpoint=endpoint, **{"attempts": 1, **own})


def session_of(judge: LoopbackJudge, ledger: Ledger, *, least: float = 0.5, **own: Any) -> LabellingSession:
    return LabellingSession(ledger, oracle_of(judge, **own), Rubric(), "arm", least_usable=least)


def ask(session: LabellingSession, responses: list[Any], *, concurrency: int = 4) -> list[Any]:
    return label_responses(
        responses, session, max_queries=len(responses), max_micro_usd=100 * USD, concurrency=concurrency
    )


def counts(readable: str, least: float) -> int | None:
    """Return after how many replies, "r" where it can be read, labelling stops; None if it does not."""
    with LoopbackJudge() as judge:
        watch = ReplyWatch(oracle_of(judge), least)
    return next((n for n, each in enumerate(readable, 1) if watch.note("{}", usable=each == "r")), None)


def test_labelling_stops_by_share_from_twenty_on_or_after_twenty_in_a_row() -> None:
    assert counts("." * 40, 0.5) == 20
    assert counts("r." * 40, 0.5) is None, "half is enough"
    assert counts("r.." * 40, 0.5) == 20
    assert counts("r" * 100 + "." * 40, 0.5) == 120, "a judge that breaks late"
    assert counts("r" + "." * 18 + "r" + "." * 40, 0.1) == 21
    assert counts("." * 40, 0.0) is None


@pytest.mark.parametrize(
    ("reply", "own", "remedy"),
    [
        (PROSE, {}, "set structured_output to false"),
        (PROSE, {"structured_output": False}, "endpoint.model"),
        (CUT_OFF, {}, "raise endpoint.max_tokens"),
        (
            {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]},
            {},
            "one that reasons needs a larger endpoint.max_tokens",
        ),
    ],
)
def test_a_judge_that_gives_no_verdict_is_asked_little_and_its_reply_is_shown(
    ledger: Ledger, responses: list[Any], reply: dict[str, Any], own: dict[str, Any], remedy: str
) -> None:
    with (
        LoopbackJudge(faults={"odd": 1.0}, says={"odd": (200, reply)}) as judge,
        pytest.raises(LabellingStopped) as stopped,
    ):
        ask(session_of(judge, ledger, **own), responses)
    told = str(stopped.value)
    assert "20 replies in a row hold no verdict, and labelling.least_usable asks for 50%" in told
    assert str(reply["choices"][0]["message"]["content"]) in told
    assert remedy in told
    assert "ninefold labels retry RUN" in told
    assert 20 <= len(judge.log) <= 24, "those in flight are paid, no others"
    rows = list(ledger.rows())
    assert len(rows) == len(judge.log)
    assert {row["status"] for row in rows} == {"quarantined"}


def test_a_judge_that_fails_now_and_then_is_not_stopped(ledger: Ledger, responses: list[Any]) -> None:
    with LoopbackJudge(faults={"out_of_range": 0.2}) as judge:
        labels = ask(session_of(judge, ledger), responses)
    assert len(labels) == 100
    assert 5 < sum(label.status == "quarantined" for label in labels) < 40


def test_a_mended_judge_is_asked_again_on_top_of_the_caps_and_the_arm_has_room_for_the_answers(
    ledger: Ledger, responses: list[Any]
) -> None:
    few = responses[:10]
    with LoopbackJudge(faults={"out_of_range": 1.0}) as judge:
        session = session_of(judge, ledger)
        assert {label.status for label in ask(session, few)} == {"quarantined"}
        broken = ledger.spent("arm")
        assert {label.status for label in ask(session, few)} == {"quarantined"}, "they are owned"
        assert len(judge.log) == 10
        judge.faults = {}
        rows = unanswered(ledger, "arm")
        price = retry_price(session, rows)
        assert 0 < price.expected <= price.most
        made = retry_rows(session, rows, most=price.most, concurrency=4)
        assert (made.asked, made.answered) == (10, 10)
        assert unanswered(ledger, "arm") == []
        again = ask(session, few)
        assert len(judge.log) == 20, "the answers are owned now"
    assert {label.status for label in again} == {"labelled"}
    assert times_reopened(ledger, "arm") == 10
    spent, on_top = ledger.spent("arm"), ledger.spent(account_of_retries("arm"))
    assert (spent.queries, spent.bought_queries) == (10, 0)
    assert (on_top.queries, on_top.bought_queries) == (20, 20)
    assert on_top.micro_usd == broken.micro_usd + made.micro_usd, "nothing that was paid is forgotten"
    assert sum(row["micro_usd"] for row in ledger.rows()) == on_top.micro_usd


def test_a_retry_that_fails_goes_on_from_there(ledger: Ledger, responses: list[Any]) -> None:
    few = responses[:30]
    with LoopbackJudge(faults={"out_of_range": 1.0}) as judge:
        session = session_of(judge, ledger, least=0.0)
        ask(session, few)
        judge.faults, judge.refuse_after = {}, 40
        with pytest.raises(LabellingStopped, match="does not exist"):
            retry_rows(session, unanswered(ledger, "arm"), most=100 * USD, concurrency=1)
        judge.refuse_after = None
        left = [row for name in ("arm", account_of_retries("arm")) for row in unanswered(ledger, name)]
        assert len(left) == 20
        made = retry_rows(session, left, most=100 * USD, concurrency=1)
        assert (made.asked, made.answered) == (20, 20)
        assert {label.status for label in ask(session, few)} == {"labelled"}
        assert sum(what == "reply" for _, what in judge.log) == 30
