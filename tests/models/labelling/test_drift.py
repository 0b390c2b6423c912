"""A judge that has changed is told from one that has not, and asking again disturbs nothing that is owned."""

from pathlib import Path
from typing import Any, Literal

import pytest

from models.core.rubric import Rubric
from models.labelling.drift import ask_again, sample_of
from models.labelling.label import LabellingSession, label_responses
from models.ledger.ledger import Ledger
from models.oracles.base import Oracle, Verdict


class Judge(Oracle):
    description = "test oracle"
    kind: Literal["test/changing"] = "test/changing"
    shift: float = 0.0

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        return Verdict(float(response.rsplit(maxsplit=1)[-1]) + self.shift, "", 10)

    def max_cost(self, prompt: str, response: str) -> int:
        return 10

    def identity(self) -> list[Any]:
        return []  # a served model that changes behind its name


@pytest.fixture
def session(tmp_path: Path, make_response: Any) -> LabellingSession:
    session = LabellingSession(Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}"), Judge(), Rubric(), "a")
    label_responses([make_response(n) for n in range(30)], session, max_queries=30, max_micro_usd=10_000)
    return session


def test_a_judge_that_says_the_same_has_not_drifted(session: LabellingSession) -> None:
    rows = sample_of(list(session.ledger.rows()), session, 12)
    assert len({row["response"] for row in rows}) == 12
    assert sample_of(list(session.ledger.rows())[::-1], session, 12) == rows
    found = ask_again(rows, session, replicate="monday", max_micro_usd=1_000)
    assert (found.asked, found.answered, found.same, found.micro_usd) == (12, 12, 1.0, 120)
    assert found.spearman == pytest.approx(1.0)
    assert found.change == pytest.approx((0, 0, 0), abs=1e-9)
    assert session.ledger.spent("a").queries == 30
    assert len(list(session.ledger.rows())) == 42
    assert len(sample_of(list(session.ledger.rows()), session, 99)) == 30, "what was asked again is not asked again"


def test_a_judge_that_has_grown_milder_is_found_out(session: LabellingSession) -> None:
    rows = sample_of(list(session.ledger.rows()), session, 12)
    changed = LabellingSession(session.ledger, Judge(shift=0.5), Rubric(), "a")
    found = ask_again(rows, changed, replicate="tuesday", max_micro_usd=1_000)
    assert found.same == 0
    assert found.change.mean == found.change.low == 0.5
    again = ask_again(rows, changed, replicate="tuesday", max_micro_usd=1_000)
    assert again.change == found.change
    assert len(list(session.ledger.rows())) == 42, "one replicate is paid for once"
