"""What a server's failure means: free, perhaps billed, about this question, about every question."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.core.rubric import Rubric
from models.labelling.label import LabellingStopped
from models.ledger.ledger import Ledger
from models.oracles.base import MaybeBilledError, QuestionRejected, RateLimited, RequestRejected, refused
from models.oracles.failures import failure_of, meaning
from models.oracles.pairwise_from_scores import PairwiseFromScores
from tests.models.oracles.test_llm_judge import PRICE, ask, judge_at, key, pairs_at  # noqa: F401 - a fixture
from tests.support.fake_judge import LoopbackJudge


def error(message: str, code: Any = None, param: str | None = None, kind: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "param": param, "type": kind}}


FILTER = error(
    "The response was filtered due to the prompt triggering Azure OpenAI's policy", "content_filter", "prompt"
)
TOO_LONG = error(
    "This model's maximum context length is 256 tokens. However, you requested 812",
    "context_length_exceeded",
    "messages",
)
LIMIT = error("Rate limit exceeded: free-models-per-day", 429)


@pytest.mark.parametrize(
    ("status", "body", "means"),
    [
        (429, error("slow down"), "busy"),
        (429, error("You exceeded your current quota, please check your plan", "insufficient_quota"), "oracle"),
        (409, error("conflict"), "free"),
        (500, error("broken"), "free"),
        (503, "busy", "busy"),
        (529, error("Overloaded", "overloaded_error"), "busy"),
        (502, "<html>Bad Gateway</html>", "billed"),
        (504, error("gateway timeout"), "billed"),
        (408, error("request timeout"), "billed"),
        (524, "a timeout occurred", "billed"),
        (401, error("Incorrect API key provided", "invalid_api_key"), "oracle"),
        (402, error("Insufficient credits"), "oracle"),
        (403, error("You are not allowed to request logprobs from this model"), "oracle"),
        (403, error("Your input was flagged by moderation"), "question"),
        (404, error("The model `judge` does not exist", "model_not_found"), "oracle"),
        (400, FILTER, "question"),
        (400, error("Your request was rejected", "content_policy_violation"), "question"),
        (400, error("Invalid prompt: potentially violating our usage policy", "invalid_prompt"), "question"),
        (400, {"error": {"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "question"),
        (400, error("<400> Input data may contain...", "data_inspection_failed"), "question"),
        (400, TOO_LONG, "question"),
        (400, error("This model's maximum context length is 256 tokens, you have sent 300", 400), "question"),
        (400, error("string too long", "string_above_max_length", "messages[1].content"), "question"),
        (422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"), "question"),
        (413, "Request Entity Too Large", "question"),
        (400, error("'max_tokens' is too large: 512. The maximum context length is 600 tokens"), "doubtful"),
        (400, error("max_tokens is too large: 99999. This model supports at most 16384", None, "max_tokens"), "oracle"),
        (400, error("Unsupported parameter: 'max_tokens'", "unsupported_parameter", "max_tokens"), "oracle"),
        (
            400,
            error("Unsupported value: 'temperature' does not support 0", "unsupported_value", "temperature"),
            "oracle",
        ),
        (400, error("must be less than or equal to 5.", None, "top_logprobs"), "oracle"),
        (400, error("This response_format type is unavailable now"), "oracle"),
        (
            422,
            error('[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]'),
            "oracle",
        ),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": "flagged"}]}, "oracle"),
        (422, {"detail": [{"loc": ["body", "messages", 1], "msg": "bad", "input": "temperature"}]}, "doubtful"),
        (400, error("model_not_found", "model_not_found"), "oracle"),
        (400, error("API key not valid. Please pass a valid API key: invalid API key", "INVALID_ARGUMENT"), "oracle"),
        (400, error("Your credit balance is too low to access the API", None, None, "invalid_request_error"), "oracle"),
        (400, error("System role not supported", None, None, "BadRequestError"), "doubtful"),
        (400, error("this cannot be judged"), "doubtful"),
        (400, "plain words", "doubtful"),
        (400, {}, "doubtful"),
        (302, "", "oracle"),
        (None, LIMIT, "busy"),
        (None, error("slow down", "rate_limit_exceeded"), "busy"),
        (None, error("Provider returned error", 502), "billed"),
        (None, error("Provider returned error"), "billed"),
        (None, error("No auth credentials found", 401), "oracle"),
        (None, error("flagged", "content_filter"), "question"),
        (None, error("Insufficient credits", "402"), "oracle"),
        (None, error("busy", 503), "busy"),
        (None, {"error": "overloaded"}, "busy"),
    ],
)
def test_what_a_server_says_has_one_meaning(status: int | None, body: Any, means: str) -> None:
    assert meaning(failure_of(status, body)) == means


@given(
    st.none() | st.integers(300, 599),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9) | st.sampled_from(["error", "detail", "code", "loc", "msg"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["error", "detail", "code", "msg", "loc", "message", "param"]), inner)
        ),
        max_leaves=8,
    ),
)
def test_every_body_of_a_failure_has_a_meaning(status: int | None, body: Any) -> None:
    failure = failure_of(status, body)
    assert meaning(failure) in {"free", "busy", "billed", "question", "doubtful", "oracle"}
    assert isinstance(failure.words, str)


def test_what_differs_between_questions_is_no_part_of_the_reason() -> None:
    one, other = (failure_of(400, error(f"request '{text}' has {n} parts")) for text, n in (("a", 3), ("b c", 40)))
    assert one.signature == other.signature != failure_of(400, error("System role not supported")).signature


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.mark.parametrize(
    "says", [(400, FILTER), (400, TOO_LONG), (413, "too large"), (400, error("no")), (200, FILTER)]
)
def test_a_question_that_is_refused_is_quarantined_for_nothing_and_the_others_are_answered(
    make_response: Any, ledger: Ledger, says: tuple[int, Any]
) -> None:
    responses = [make_response(n) for n in range(20)]
    with LoopbackJudge(about={"number 7": "no"}, says={"no": says}) as server:
        for run in range(3):
            labels = ask(responses, ledger, judge_at(server), concurrency=2)
            assert [n for n, entry in enumerate(labels) if entry.status == "quarantined"] == [7]
            assert labels[7].micro_usd == labels[7].tokens == 0
            assert len(server.log) == 20, f"run {run} asks nothing that was asked before"
    (row,) = ledger.rows(status="quarantined")
    assert refused(row["raw"])
    assert server.url in json.loads(row["raw"])["refused"], "who has said it"
    assert ledger.spent("a")[:2] == (20, 19 * PRICE)


@pytest.mark.parametrize(
    "says",
    [
        (401, error("wrong key")),
        (402, error("pay")),
        (403, error("not yours")),
        (404, error("no such model")),
        (429, error("no", "insufficient_quota")),
        (400, error("Unsupported parameter: 'max_tokens'", "unsupported_parameter", "max_tokens")),
        (200, error("No auth credentials found", 401)),
    ],
)
def test_what_is_refused_for_every_question_stops_at_once_and_quarantines_nothing(
    make_response: Any, ledger: Ledger, says: tuple[int, Any]
) -> None:
    with (
        LoopbackJudge(faults={"no": 1.0}, says={"no": says}) as server,
        pytest.raises(LabellingStopped, match="refused the call with"),
    ):
        ask([make_response(n) for n in range(30)], ledger, judge_at(server), concurrency=2)
    assert len(server.log) <= 4
    assert list(ledger.rows()) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_many_questions_refused_alike_are_no_fault_of_theirs(make_response: Any, ledger: Ledger, workers: int) -> None:
    says = {"no": (400, error("System role not supported", None, None, "BadRequestError"))}
    responses = [make_response(n) for n in range(30)]
    with LoopbackJudge(faults={"no": 1.0}, says=says) as server:
        with pytest.raises(LabellingStopped, match="5 different questions in a row .* System role not supported"):
            ask(responses, ledger, judge_at(server), concurrency=workers)
        assert len(server.log) < 5 + 2 * workers
        assert list(ledger.rows()) == [], "none is quarantined for what is no fault of its own"
        server.faults = {}
        assert all(entry.status == "labelled" for entry in ask(responses, ledger, judge_at(server)))


def test_many_questions_refused_alike_with_answers_in_between_are_quarantined(
    make_response: Any, ledger: Ledger
) -> None:
    about = {f"number {n}": "no" for n in range(10, 20, 2)}
    with LoopbackJudge(about=about, says={"no": (400, error("no"))}) as server:
        labels = ask([make_response(n) for n in range(8, 24)], ledger, judge_at(server), concurrency=1)
    assert Counter(entry.status for entry in labels) == {"labelled": 11, "quarantined": 5}


def test_a_few_questions_that_are_all_refused_are_quarantined(make_response: Any, ledger: Ledger) -> None:
    with LoopbackJudge(faults={"no": 1.0}, says={"no": (400, error("no"))}) as server:
        labels = ask([make_response(n) for n in range(3)], ledger, judge_at(server))
    assert [entry.status for entry in labels] == ["quarantined"] * 3
    assert ledger.spent("a")[:2] == (3, 0)


def test_a_question_refused_after_its_first_sample_keeps_what_was_paid_for() -> None:
    class Second(LoopbackJudge):
        def _fault(self, body: bytes) -> str | None:
            return "no" if self.log else None

    with Second(says={"no": (400, FILTER)}) as server:
        verdict = judge_at(server, samples=3).judge("the film", "story 3", Rubric())
    with Second(says={"no": (400, FILTER)}) as server:
        pair = pairs_at(server).compare("the film", "story 3", "story 4", Rubric())
    with Second(says={"no": (400, FILTER)}) as server:
        derived = PairwiseFromScores(inner=judge_at(server)).compare("the film", "story 3", "story 4", Rubric())
    assert (verdict.score, verdict.micro_usd) == (3, PRICE)
    assert "refused the call" in json.loads(verdict.raw)["failure"]
    for found in (pair, derived):
        assert found.score != found.score, "half a comparison is none"
        assert found.micro_usd == PRICE


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ((200, LIMIT), RateLimited),
        ((200, error("Provider returned error", 502)), MaybeBilledError),
        ((504, "gateway timeout"), MaybeBilledError),
        ((200, FILTER), QuestionRejected),
        ((200, error("gone", 404)), RequestRejected),
        ((200, {"object": "nothing"}), MaybeBilledError),
    ],
)
def test_an_error_in_a_reply_means_what_it_says(says: tuple[int, Any], kind: type[Exception]) -> None:
    with LoopbackJudge(faults={"no": 1.0}, says={"no": says}) as server, pytest.raises(kind) as caught:
        judge_at(server).judge("the film", "story 3", Rubric())
    assert type(caught.value) is kind


def test_a_rate_limit_within_a_reply_is_asked_again_and_costs_nothing(make_response: Any, ledger: Ledger) -> None:
    with LoopbackJudge(faults={"limit": 0.5}, says={"limit": (200, LIMIT)}, seed=1) as server:
        labels = ask([make_response(n) for n in range(5)], ledger, judge_at(server))
    assert [entry.score for entry in labels] == [0, 1, 2, 3, 4]
    assert server.served["limit"] > 0
    assert ledger.spent("a")[:2] == (5, 5 * PRICE)


def test_a_gateway_that_gives_up_may_have_billed_the_call(make_response: Any, ledger: Ledger) -> None:
    with LoopbackJudge(faults={"gateway": 1.0}) as server:
        judge = judge_at(server, attempts=1)
        most = judge.max_cost("the film", make_response(0).text)
        ask([make_response(0)], ledger, judge, max_micro_usd=most)
    spent = ledger.spent("a")
    assert spent.lost_queries == len(server.log) == 1, "there was money for one call"
    assert 0 < spent.micro_usd <= most


def content(value: object, **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": value}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}
    return {"choices": [choice], "model": "m", "usage": usage, **more}


VERDICT = json.dumps({"justification": "so", "score": 3})
PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": VERDICT}]


@pytest.mark.parametrize("answer", [content(PARTS), content(VERDICT) | {"model": None}, content([{"text": VERDICT}])])
def test_a_verdict_is_read_in_every_shape_that_servers_give_it(
    make_response: Any, ledger: Ledger, answer: dict[str, Any]
) -> None:
    with LoopbackJudge(faults={"odd": 1.0}, says={"odd": (200, answer)}) as server:
        (entry,) = ask([make_response(0)], ledger, judge_at(server))
    assert (entry.score, entry.micro_usd) == (3, PRICE)


@pytest.mark.parametrize(
    "answer",
    [
        content("[" * 2000),
        content('{"a":' * 2000),
        content('{"score":' + "9" * 5000 + "}"),
        content('{"justification": "x", "score": NaN}'),
        content(7),
        content({"justification": "x", "score": 3}),
        content(["3"]),
        content([PARTS]),
        content(None),
        content(VERDICT, choices=[]),
        content(VERDICT, choices=None),
        content(VERDICT, choices=["3"]),
        content(VERDICT, choices=[{"message": None}]),
    ],
    ids=lambda answer: str(answer["choices"])[:60],
)
def test_a_reply_that_cannot_be_read_is_quarantined_at_its_real_price_and_the_run_goes_on(
    make_response: Any, ledger: Ledger, answer: dict[str, Any]
) -> None:
    with LoopbackJudge(about={"number 1": "odd"}, says={"odd": (200, answer)}) as server:
        labels = ask([make_response(n) for n in range(3)], ledger, judge_at(server), concurrency=1)
    assert [entry.status for entry in labels] == ["labelled", "quarantined", "labelled"]
    assert [entry.micro_usd for entry in labels] == [PRICE, 2 * PRICE, PRICE]


@pytest.mark.parametrize("logprobs", [{"content": None}, {"content": [{"token": "3"}]}, {"content": 5}, [], "none"])
def test_log_probabilities_that_cannot_be_read_are_none(make_response: Any, ledger: Ledger, logprobs: object) -> None:
    answer = content(VERDICT)
    answer["choices"][0]["logprobs"] = logprobs
    with LoopbackJudge(faults={"odd": 1.0}, says={"odd": (200, answer)}) as server:
        (entry,) = ask([make_response(0)], ledger, judge_at(server, scoring="expected", attempts=1))
    assert (entry.status, entry.micro_usd) == ("quarantined", PRICE)
