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


Command = Callable[..., Result]


@pytest.fixture
def asked(tmp_path: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    monkeypatch.setattr("flows.runtime.doctor.examine", list)

    def run(
        judge: LoopbackJudge,
        *command: str,
        given: str | None = None,
        endpoint: dict[str, Any] | None = None,
        pairs: bool = False,
        **own: Any,
    ) -> Result:
        told = {
            "model": "judge",
            "base_url": judge.url,
            "api_key_env": "JUDGE_KEY",
            "prices": PRICES,
            **(endpoint or {}),
        }
        tiny_settings["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": told, **own}}
        tiny_settings["evaluation"] |= {"oracle": {"kind": "gold"}}
        if pairs:
            tiny_settings["evaluation"] |= {"pairwise_judge": {"kind": "llm_pairwise_judge", "endpoint": told}}
        file = tmp_path / "judged.yaml"
        file.write_text(yaml.safe_dump(tiny_settings))
        found = CliRunner().invoke(app, [str(file) if word == "FILE" else word for word in command], input=given)
        close_clients()
        return found

    return run


@pytest.fixture
def doctor(asked: Command) -> Command:
    return lambda judge, *options, **own: asked(judge, "doctor", "--oracles", "FILE", *options, pairs=True, **own)


@pytest.fixture
def plan(asked: Command) -> Command:
    return lambda judge, *options, **own: asked(judge, "plan", "FILE", *options, **own)


def test_each_oracle_answers_one_question_that_is_bought(doctor: Command) -> None:
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


def test_nothing_is_asked_without_a_word(doctor: Command) -> None:
    with LoopbackJudge() as judge:
        assert doctor(judge, given="n\n").exit_code != 0
        assert not judge.log
    assert list(open_ledger().rows()) == []


def test_what_a_server_cannot_do_is_said_with_the_remedy(doctor: Command) -> None:
    no = {"error": {"message": "This response_format type is unavailable now", "param": "response_format"}}
    with LoopbackJudge(faults={"no": 1.0}, says={"no": (400, no)}) as judge:
        told = doctor(judge, "--yes")
    assert told.exit_code == 1
    assert "BAD labelling.oracle: " in told.output
    assert "set structured_output to false" in told.output
    with LoopbackJudge(faults={"refusal": 1.0}) as judge:
        told = doctor(judge, "--yes", attempts=1)
    assert "BAD labelling.oracle: the reply could not be read, for $0.0" in told.output


def test_a_plan_asks_nothing_but_says_how(plan: Command) -> None:
    hint = "trial      labelling.oracle never answered yet: `ninefold plan FILE --ask` asks one question, at its price"
    with LoopbackJudge() as judge:
        told = plan(judge)
        assert told.exit_code == 0, told.output
        assert hint in told.output.splitlines()
        assert not judge.log
        assert plan(judge, "--ask", given="n\n").exit_code != 0
        assert not judge.log
        told = plan(judge, "--ask", "--yes")
        assert told.exit_code == 0, told.output
        assert judge.served["reply"] == 1
        assert hint not in plan(judge).output, "it has answered"
    assert "2 questions will be asked, expected $0.0" in told.output
    assert "ok  labelling.oracle: a language model judging by the rubric says " in told.output


AZURE = {"key_header": "api-key", "query": {"api-version": "2024-10-21"}}


@pytest.mark.parametrize(
    ("server", "endpoint", "own", "said"),
    [
        ({}, {}, {}, ["JSON comes as asked", "it states its usage", "it says that it is judge-0001 fp"]),
        ({}, {}, {"scoring": "expected"}, ["token probabilities come"]),
        ({"form": "fence"}, {}, {}, ["JSON comes in a fence or after thoughts, which are taken off"]),
        ({"form": "think"}, {}, {}, ["JSON comes in a fence or after thoughts, which are taken off"]),
        ({"form": "parts"}, {}, {}, ["JSON comes as asked"]),
        ({"form": "bold"}, {}, {"structured_output": False}, ["it states its usage"]),
        ({"usage": "absent"}, {}, {}, ["it states no usage: its calls are booked at the most"]),
        ({"names_model": False}, {}, {}, ["it does not say which model it is"]),
        (
            {"refused_fields": {"max_tokens": ..., "temperature": ...}},
            {"temperature": None},
            {},
            ["JSON comes as asked"],
        ),
        ({"refused_fields": {"seed": ...}}, {"request": {"seed": False}}, {}, ["JSON comes as asked"]),
        ({"refused_fields": {"response_format": ...}}, {}, {"structured_output": False}, ["it states its usage"]),
        ({"no_system": True}, {"request": {"system": "user"}}, {}, ["JSON comes as asked"]),
        (
            {"refused_fields": {"top_logprobs": 5}},
            {},
            {"scoring": "expected", "alternatives": 5},
            ["token probabilities come"],
        ),
        ({"key_header": "api-key", "key": "planted", "api_version": "2024-10-21"}, {"request": AZURE}, {}, []),
    ],
)
def test_what_a_server_can_do_is_said(
    plan: Command, server: dict[str, Any], endpoint: dict[str, Any], own: dict[str, Any], said: list[str]
) -> None:
    with LoopbackJudge(**server) as judge:
        told = plan(judge, "--ask", "--yes", endpoint=endpoint, **own)
    assert told.exit_code == 0, told.output
    assert "ok  labelling.oracle: " in told.output
    assert set(said) <= {line.strip() for line in told.output.splitlines()}


@pytest.mark.parametrize(
    ("server", "own", "said"),
    [
        ({"refused_fields": {"temperature": ...}}, {}, "set endpoint.temperature to null"),
        ({"refused_fields": {"seed": ...}}, {}, "set endpoint.request.seed to false"),
        ({"refused_fields": {"response_format": ...}}, {}, "set structured_output to false"),
        (
            {"refused_fields": {"top_logprobs": 5}},
            {"scoring": "expected"},
            "set alternatives to what the server allows",
        ),
        (
            {"refused_fields": {"reasoning_effort": ...}},
            {"endpoint": {"request": {"reasoning_effort": "low"}}},
            "set endpoint.request.reasoning_effort to null",
        ),
        ({"no_system": True}, {}, "set endpoint.request.system to user"),
        ({"key_header": "api-key", "key": "planted"}, {}, "refused the call with 401"),
        (
            {"no_logprobs": True},
            {"scoring": "expected"},
            "token probabilities of the score do not come: set scoring to stated",
        ),
    ],
)
def test_an_oracle_that_cannot_be_used_ends_the_plan_with_1(
    plan: Command, server: dict[str, Any], own: dict[str, Any], said: str
) -> None:
    with LoopbackJudge(**server) as judge:
        told = plan(judge, "--ask", "--yes", **own)
    assert told.exit_code == 1, told.output
    assert "BAD labelling.oracle: " in told.output
    assert said in told.output
