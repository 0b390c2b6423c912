"""Labels under an identity that has changed are taken over: as they are, for nothing, and never over a label there is."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.labels import app
from flows.config.experiment import Experiment
from flows.config.loading import load
from models.ledger.entries import Answer, Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from tasks.engine.settings import settings
from tests.models.ledger.test_ledger import CENT

OLD = "gold-00000000000000ff"


@pytest.fixture
def asked(tiny_file: Path, home: Path) -> Question:
    labelling = load(Experiment, tiny_file).labelling
    return Question(labelling.oracle.fingerprint(), labelling.rubric.digest(), "the film is", "warm 0")


def sell(oracle: str, criterion: str, number: int, status: Any = "labelled") -> None:
    ledger = Ledger(settings().ledger_url)
    ledger.open_account("old", max_micro_usd=100 * CENT)
    question = Question(oracle, criterion, "the film is", f"warm {number}")
    held = ledger.reserve("old", question, ceiling=CENT, billed_on_failure=True)
    assert isinstance(held, Reservation)
    ledger.settle(held, status=status, score=float(number), raw="said", tokens=3, micro_usd=CENT, seconds=1.0)


def adopt(*arguments: str, answer: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["adopt", *arguments], input=answer)
    return done.exit_code, done.output + str(done.exception or "")


def test_labels_are_listed_and_taken_over_once_agreed_to(tiny_file: Path, asked: Question) -> None:
    sell(OLD, asked.criterion, 0)
    sell(OLD, asked.criterion, 1, "quarantined")
    sell(OLD, asked.criterion, 2)
    sell(OLD, "another rubric", 3)
    sell(asked.oracle, asked.criterion, 2)
    _, listed = adopt(str(tiny_file))
    assert f"{OLD}  criterion {asked.criterion}  3 labels  $0.03\n" in listed
    assert f"{asked.oracle}  criterion {asked.criterion}  1 labels  $0.01  this experiment's\n" in listed

    code, refused = adopt(str(tiny_file), "--from", OLD, answer="n\n")
    assert code != 0
    assert f"3 labels of {OLD} ($0.03 when they were bought) will count as {asked.oracle}'s:" in refused
    assert "  the film is → warm 0\n" in refused
    assert len(list(Ledger(settings().ledger_url).rows())) == 5

    assert "2 labels taken over at no price, 1 were known already" in adopt(str(tiny_file), "--from", OLD, "--yes")[1]
    ledger = Ledger(settings().ledger_url)
    assert ledger.spent("old").queries == 5, "nobody has paid again"
    ledger.open_account("new", max_micro_usd=CENT)
    found = ledger.reserve("new", asked, ceiling=CENT, billed_on_failure=True)
    assert found == Answer(0.0, CENT, 3, False, "labelled")
    assert "0 labels taken over at no price, 3 were known" in adopt(str(tiny_file), "--from", OLD, "--yes")[1]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("human-00000000000000ff", "are not those of a gold: name a fingerprint of this kind"),
        ("gold-0000000000000000", "holds no label of 'gold-0000000000000000' by criterion .*: leave out --from"),
    ],
)
def test_labels_of_nobody_or_of_another_kind_are_refused(
    tiny_file: Path, asked: Question, source: str, rule: str
) -> None:
    sell("human-00000000000000ff", asked.criterion, 0)
    code, said = adopt(str(tiny_file), "--from", source, "--yes")
    assert code != 0
    assert len(list(Ledger(settings().ledger_url).rows())) == 1
    assert re.search(rule, said)


def test_the_oracle_s_own_labels_are_not_taken_over(tiny_file: Path, asked: Question) -> None:
    assert "is the experiment's oracle already" in adopt(str(tiny_file), "--from", asked.oracle)[1]
