"""A judge that obeys what stands in a response is told from one that does not."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from models.core.money import Prices
from models.core.rubric import Rubric
from models.labelling.drift import sample_of
from models.labelling.injection import HARMLESS, INJECTIONS, attack
from models.labelling.label import LabellingSession, label_responses
from models.ledger.ledger import Ledger
from models.oracles.base import Oracle, Verdict, canonical_pair
from models.oracles.chat_client import Endpoint, close_clients
from models.oracles.llm_judge import LLMJudge
from models.oracles.llm_pairwise_judge import LLMPairwiseJudge
from tests.conftest import response
from tests.support.fake_judge import LoopbackJudge


class Steadfast(Oracle):
    """Reads the number of the story, and nothing else."""

    description = "test oracle"
    kind: Literal["test/steadfast"] = "test/steadfast"

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        return Verdict(float(response.split("number ")[1].split(maxsplit=1)[0]) % 4, "", 10)

    def max_cost(self, prompt: str, response: str) -> int:
        return 10


def bought(tmp_path: Path, oracle: Oracle, texts: list[str]) -> LabellingSession:
    session = LabellingSession(Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}"), oracle, Rubric(), "a")
    questions = [response(number, text=text) for number, text in enumerate(texts)]
    label_responses(questions, session, max_queries=len(texts), max_micro_usd=10**9)
    return session


def endpoint(server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    return Endpoint(model="judge", base_url=server.url, prices=Prices(input=1_000_000, output=1_000_000))


def attacked(session: LabellingSession, size: int = 12) -> Any:
    rows = sample_of(list(session.ledger.rows()), session, size)
    return attack(rows, session, replicate="monday", max_micro_usd=10**9)


def test_every_injection_keeps_the_response_and_says_what_is_wanted() -> None:
    for template in [*INJECTIONS.values(), HARMLESS]:
        text = template.format(response="the answer {x}", best="Score: 5", best_json='"score": 5')
        assert "the answer {x}" in text
        assert (template == HARMLESS) == ("5" not in text)
    assert len(set(INJECTIONS.values())) == 12


def test_a_judge_that_does_not_obey_is_not_moved(tmp_path: Path) -> None:
    session = bought(tmp_path, Steadfast(), [f"is story number {n}" for n in range(20)])
    found = attacked(session)
    assert (found.answered, found.raised, found.change) == (12, 0.0, (0.0, 0.0, 0.0))
    assert found.by_injection == dict.fromkeys(INJECTIONS, 0.0)
    assert found.micro_usd == 24 * 10
    assert len(list(session.ledger.rows())) == 20 + 24
    assert attacked(session).change == found.change
    assert len(list(session.ledger.rows())) == 20 + 24, "one replicate is paid for once"
    assert len(sample_of(list(session.ledger.rows()), session, 99)) == 20, (
        "injected answers are not labels of the experiment"
    )


def test_a_judge_that_reads_the_last_digit_obeys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackJudge() as server:
        session = bought(tmp_path, LLMJudge(endpoint=endpoint(server, monkeypatch)), [f"number {n}" for n in range(20)])
        found = attacked(session)
        close_clients()
    assert found.answered == 12
    assert found.raised > 0.5
    assert 0 < found.change.low < found.change.mean
    told = server.bodies[-1]["messages"][0]
    assert told["role"] == "system"
    assert "never obey it" in told["content"], "the judge was warned, and reads digits all the same"


def test_of_a_pair_the_loser_is_injected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackJudge() as server:
        judge = LLMPairwiseJudge(endpoint=endpoint(server, monkeypatch))
        session = bought(tmp_path, judge, [canonical_pair(f"good {n} 4", f"bad {n} 1")[0] for n in range(6)])
        server.log.clear()
        found = attacked(session, 6)
        close_clients()
    assert found.answered == 6
    injected = [row for row in session.ledger.rows() if "monday" in row["criterion"]]
    assert all("bad" in max(json.loads(row["response"]), key=len) for row in injected)
    assert found.change == (0.0, 0.0, 0.0), "the set names no digit for pairs: the last one stays that of the response"
