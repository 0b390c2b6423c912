"""`ninefold doctor --oracles`: one question for each oracle of an experiment, priced, confirmed and in the ledger."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli.main import app
from models.oracles.chat_client import close_clients
from tasks.engine.ledgers import open_ledger
from tests.support.fake_judge import LoopbackJudge

PRICES = {"input": 1_000_000, "output": 2_000_000}


@pytest.fixture
def doctor(tmp_path: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    monkeypatch.setattr("flows.runtime.doctor.examine", list)

    def run(judge: LoopbackJudge, *options: str, given: str | None = None, **own: Any) -> Result:
        endpoint = {"model": "judge", "base_url": judge.url, "api_key_env": "JUDGE_KEY", "prices": PRICES}
        tiny_settings["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint, **own}}
        pairwise = {"kind": "llm_pairwise_judge", "endpoint": endpoint}
        tiny_settings["evaluation"] |= {"oracle": {"kind": "gold"}, "pairwise_judge": pairwise}
        file = tmp_path / "judged.yaml"
        file.write_text(yaml.safe_dump(tiny_settings))
        found = CliRunner().invoke(app, ["doctor", "--oracles", str(file), *options], input=given)
        close_clients()
        return found

    return run


def test_each_oracle_answers_one_question_that_is_bought(doctor: Callable[..., Result]) -> None:
    with LoopbackJudge() as judge:
        told = doctor(judge, "--yes")
        assert told.exit_code == 0, told.output
        assert judge.served["reply"] == 1 + 2, "a comparison is asked in both orders"
        doctor(judge, "--yes")
        assert judge.served["reply"] == 2 * 3, "each time anew: it is the server that is tried"
    assert "3 questions will be asked, expected $0.0" in told.output
    assert "ok  labelling.oracle: a language model judging by the rubric says " in told.output
    assert "ok  evaluation.oracle: simulated oracle" in told.output
    assert "ok  evaluation.pairwise_judge: a language model comparing" in told.output
    rows = list(open_ledger().rows())
    assert {row["status"] for row in rows} == {"labelled"}
    assert all(row["account"].startswith("trial ") for row in rows)


def test_nothing_is_asked_without_a_word(doctor: Callable[..., Result]) -> None:
    with LoopbackJudge() as judge:
        assert doctor(judge, given="n\n").exit_code != 0
        assert not judge.log
    assert list(open_ledger().rows()) == []


def test_what_a_server_cannot_do_is_said_with_the_remedy(doctor: Callable[..., Result]) -> None:
    no = {"error": {"message": "This response_format type is unavailable now", "param": "response_format"}}
    with LoopbackJudge(faults={"no": 1.0}, says={"no": (400, no)}) as judge:
        told = doctor(judge, "--yes")
    assert told.exit_code == 1
    assert "BAD labelling.oracle: " in told.output
    assert "set structured_output to false" in told.output
    with LoopbackJudge(faults={"refusal": 1.0}) as judge:
        told = doctor(judge, "--yes", attempts=1)
    assert "BAD labelling.oracle: the reply could not be read, for $0.0" in told.output
