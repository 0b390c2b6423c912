"""People as the oracle: a queue in the ledger, judgements taken whole or not at all, one verdict by majority."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.core.data import Label
from models.core.rubric import Rubric
from models.labelling.human_queue import Judgement, Queue, adjudicate
from models.labelling.label import AnswersPending, LabellingSession, label_responses
from models.labelling.label_files import read_lines, write_rows
from models.labelling.queue_files import judgements, queue_rows
from models.ledger.entries import Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from models.metrics.agreement import krippendorff_alpha
from models.oracles.human import Human
from models.oracles.noisy import Noisy
from tests.conftest import response

PEOPLE = Human(annotators=2, micro_usd=100)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "sqlite":
        return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    make: Callable[[], str] = request.getfixturevalue("new_database")
    return Ledger(make())


def ask(
    ledger: Ledger, number: int = 3, people: Human = PEOPLE, account: str = "a", money: int = 10_000
) -> list[Label]:
    session = LabellingSession(ledger, people, Rubric(), account)
    return label_responses([response(n) for n in range(number)], session, max_queries=number, max_micro_usd=money)


def open_items(ledger: Ledger, **asked: Any) -> list[int]:
    with pytest.raises(AnswersPending):
        ask(ledger, **asked)
    return [item.id for item in sorted(Queue(ledger).items(), key=lambda item: item.response)]


def judge(ledger: Ledger, *said: tuple[int, str, int | None]) -> Any:
    return Queue(ledger).record([Judgement(*one) for one in said])


@pytest.mark.parametrize(
    ("scores", "wanted", "verdict"),
    [
        ([], 1, None),
        ([3], 1, 3),
        ([None], 1, math.nan),
        ([3], 2, None),
        ([3, 3], 2, 3),
        ([3, 4], 2, None),
        ([3, 4, 4], 2, 4),
        ([3, 4, 5], 2, math.nan),
        ([3, None], 2, 3),
        ([None, None], 2, math.nan),
        ([1, 2, 2], 3, 2),
        ([0, 0, 5, 5], 3, math.nan),
    ],
)
def test_the_most_frequent_score_counts_and_a_tie_asks_one_more(
    scores: list[int | None], wanted: int, verdict: float | None
) -> None:
    found = adjudicate(scores, wanted)
    assert found == verdict or (found is not None and verdict is not None and math.isnan(found) and math.isnan(verdict))


@given(st.lists(st.integers(0, 5) | st.none(), max_size=8), st.integers(1, 4))
def test_a_verdict_is_one_of_the_scores_and_never_one_that_fewer_gave(scores: list[int | None], wanted: int) -> None:
    found = adjudicate(scores, wanted)
    if found is not None and not math.isnan(found):
        assert scores.count(int(found)) > max((scores.count(s) for s in set(scores) - {int(found), None}), default=0)


def test_agreement_is_krippendorffs() -> None:
    # the worked example of K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C: ordinal 0.815
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    items = [[(str(who), row[n]) for who, row in enumerate(table)] for n in range(12)]
    assert krippendorff_alpha(items) == pytest.approx(0.815, abs=0.0005)
    assert math.isnan(krippendorff_alpha([[("a", 3.0)], [("b", 4.0)]])), "no two have judged the same"
    assert math.isnan(krippendorff_alpha([]))


def test_questions_are_posted_once_and_charged_at_their_ceiling(ledger: Ledger) -> None:
    numbers = open_items(ledger)
    assert open_items(ledger) == numbers, "a run that comes again asks nothing anew"
    assert ledger.spent("a").micro_usd == 3 * 300
    assert ledger.release_stale() == 0, "nobody gives up what people hold"
    assert open_items(ledger, account="b") == numbers, "another run waits for the same answers"
    assert ledger.spent("b").queries == 0


def test_answers_become_labels_at_the_price_of_their_judgements(ledger: Ledger) -> None:
    one, two, three = open_items(ledger)
    found = judge(ledger, (one, "ada", 4), (one, "bob", 4), (two, "ada", 1), (two, "bob", 3), (three, "ada", None))
    assert (found.new, found.settled) == (5, 1)
    assert open_items(ledger) == [two, three], "a tie waits for one more, and so does who could not judge"
    found = judge(ledger, (two, "cy", 3), (three, "bob", None), (one, "cy", 0))
    assert (found.new, found.surplus, found.settled) == (2, 1, 2)
    labels = ask(ledger)
    assert [(entry.score, entry.micro_usd, entry.status) for entry in labels[:2]] == [
        (4.0, 200, "labelled"),
        (3.0, 300, "labelled"),
    ]
    assert labels[2].status == "quarantined"
    assert labels[2].micro_usd == 200, "two people have tried"
    assert ledger.spent("a")[:4] == (3, 700, 3, 700)
    raws = [row["raw"] for row in sorted(ledger.rows(), key=lambda row: str(row["response"]))]
    assert json.loads(raws[1])["judgements"] == [["ada", 1, ""], ["bob", 3, ""], ["cy", 3, ""]]
    assert PEOPLE.diagnostics(raws)["judgements"] == 7
    assert ask(ledger, account="b")[0].bought is False, "owned: another run does not ask again"


def test_the_same_judgements_again_change_nothing(ledger: Ledger) -> None:
    one, two, _ = open_items(ledger)
    said = [(one, "ada", 4), (two, "ada", 2), (two, "bob", 2)]
    judge(ledger, *said)
    again = judge(ledger, *said)
    assert (again.new, again.known, again.surplus) == (0, 1, 2)
    changed = judge(ledger, (one, "ada", 5), (two, "ada", 0))
    assert (changed.changed, changed.surplus) == (1, 1), (
        "of an open question a judgement may change, of a settled one not"
    )
    judge(ledger, (one, "bob", 5))
    ledger.open_account("a", max_queries=3, max_micro_usd=10_000)
    assert {row["id"]: row["score"] for row in ledger.rows(status="labelled")} == {one: 5.0, two: 2.0}


def test_what_the_caps_do_not_cover_is_not_posted(ledger: Ledger) -> None:
    assert len(open_items(ledger, money=700)) == 2, "two ceilings of 300 fit"
    one, two = (item.id for item in Queue(ledger).items())
    judge(ledger, (one, "ada", 4), (one, "bob", 4), (two, "ada", 1), (two, "bob", 1))
    assert len(open_items(ledger, money=700)) == 1, "400 were spent: a third fits"
    (three,) = (item.id for item in Queue(ledger).items())
    judge(ledger, (three, "ada", 4), (three, "bob", 4))
    assert len(ask(ledger, money=700)) == 3


def test_a_withdrawn_queue_keeps_what_was_judged(ledger: Ledger) -> None:
    one, *_ = open_items(ledger)
    judge(ledger, (one, "ada", 4))
    assert Queue(ledger).withdraw() == (2, 1)
    assert Queue(ledger).items() == []
    assert ledger.spent("a")[:2] == (1, 100)
    assert [row["score"] for row in ledger.rows()] == [4.0], "of one judgement, since no second came"


def test_after_a_withdrawal_nothing_of_the_old_questions_is_left(ledger: Ledger) -> None:
    open_items(ledger)
    assert Queue(ledger).withdraw() == (3, 0)
    assert ledger.spent("a")[:2] == (0, 0)
    many = Human(annotators=3, micro_usd=500, annotator_pool="others")
    open_items(ledger, people=many, account="b")
    assert {(item.wanted, item.micro_usd_each) for item in Queue(ledger).items()} == {(3, 500)}
    Queue(ledger).withdraw()
    ledger.open_account("c", max_queries=1, max_micro_usd=100)
    flying = ledger.reserve("c", Question("judge", "rubric", "x", "y"), ceiling=100, billed_on_failure=True)
    assert isinstance(flying, Reservation)
    assert Queue(ledger).items() == [], "what a process asks is no question for people"


def test_an_imported_label_takes_its_question_off_the_queue(ledger: Ledger) -> None:
    _, *rest = open_items(ledger)
    session = LabellingSession(ledger, PEOPLE, Rubric(), "a")
    owned = {"status": "labelled", "score": 5.0, "raw": "", "tokens": 0, "micro_usd": 7}
    assert ledger.import_labels([(session.question(response(0)), owned)]) == 1
    assert {item.id for item in Queue(ledger).items()} == set(rest)
    assert ledger.spent("a").queries == 2


def test_people_compare_pairs(tmp_path: Path) -> None:
    ledger, people = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}"), Human(task="pairwise", micro_usd=5)
    session = LabellingSession(ledger, people, Rubric(), "a")
    pair = response(1, text=json.dumps(["a better one", "one"]))
    with pytest.raises(AnswersPending):
        label_responses([pair], session, max_queries=1, max_micro_usd=100)
    rows, columns = queue_rows(Queue(ledger).items(), "ada")
    assert (rows[0]["response"], rows[0]["response_b"]) == ("a better one", "one")
    assert "Which response is better?" in rows[0]["guide"]
    write_rows(tmp_path / "q.jsonl", [{**row, "score": "B"} for row in rows], columns)
    lines = read_lines(tmp_path / "q.jsonl")
    Queue(ledger).record(judgements(tmp_path / "q.jsonl", lines, {i.id: i for i in Queue(ledger).items()}))
    assert label_responses([pair], session, max_queries=1, max_micro_usd=100)[0].score == -1


def test_an_oracle_that_is_called_cannot_wrap_people() -> None:
    with pytest.raises(ValueError, match="answers through a queue"):
        Noisy(inner=PEOPLE).check()
    with pytest.raises(RuntimeError, match="through the queue"):
        PEOPLE.judge("x", "y", Rubric())


def test_another_panel_gives_other_labels_and_another_price_does_not() -> None:
    assert Human(micro_usd=1).fingerprint() == Human(micro_usd=2).fingerprint()
    assert (
        len({Human(micro_usd=1, annotator_pool=p, annotators=n).fingerprint() for p in ("", "x") for n in (1, 2)}) == 4
    )
    assert np.isnan(Human(micro_usd=1).diagnostics(["by a model"])["krippendorff_alpha"])
