"""Oracle: an LLM judge that scores a response by a rubric, on any OpenAI-compatible server."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.event_loop import run
from models.core.money import MicroUsd
from models.core.rubric import LEVELS, SCORE_LINE, Rubric, parse_score
from models.oracles.base import (
    CostEstimate,
    Oracle,
    TokenCounter,
    UnusableReply,
    Verdict,
)
from models.oracles.chat_client import Endpoint, Message, most_tokens
from models.oracles.llm_calls import (
    TOLD,
    USUAL_REPLY,
    Calls,
    Frame,
    calls_made,
    frame_of,
    messages_of,
    records_of,
    stated_field,
    unusable_reply,
)
from models.oracles.replies import Reply, unwrapped

_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "justification": {"type": "string"},
        "score": {"type": "integer", "enum": list(range(LEVELS))},
    },
    "required": ["justification", "score"],
    "additionalProperties": False,
}
_JSON_SCORE = re.compile(r'"score"\s*:\s*"?\s*([0-5])')


class Stated(NamedTuple):
    """The score in a reply and where its digit stands in the text; −1 where that is not sure."""

    score: int
    place: int


class LLMJudge(Oracle):
    """Score a response by the rubric, 0 to 5; the mean of `samples` judgements.

    `expected` weighs the scores by their tokens' probabilities, where the server tells them. A reply without exactly one
    score, or a refusal, is asked about again up to `attempts` times in all, then quarantined with its text; never guessed.
    """

    description: ClassVar[str] = "a language model judging by the rubric"

    kind: Literal["llm_judge"] = "llm_judge"
    endpoint: Endpoint
    structured_output: bool = Field(
        True, description="Whether JSON is asked for; set it to false for servers without json_schema."
    )
    scoring: Literal["stated", "expected"] = Field(
        "stated", description="How a score is read: as stated, or expected over the probabilities of its token."
    )
    samples: PositiveInt = Field(1, description="Judgements whose mean is the score.")
    attempts: PositiveInt = Field(
        2, description="Calls for each judgement until one can be read; then the query is quarantined."
    )
    alternatives: int = Field(
        20, ge=2, le=20, description="Alternatives of the score's token that are asked for, with `scoring: expected`."
    )
    discourage_length_bias: bool = Field(True, description="Whether the judge is told that length is no merit.")

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        return run(self.judge_async(prompt, response, rubric))

    @override
    async def judge_async(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        messages = self._messages(prompt, response, rubric)
        calls = Calls(self.endpoint)
        found = [
            await calls.read(
                messages,
                self._read,
                seeds=range(sample * self.attempts, (sample + 1) * self.attempts),
                schema=_SCHEMA if self.structured_output else None,
                top_logprobs=self.alternatives if self.scoring == "expected" else 0,
            )
            for sample in range(self.samples)
        ]
        scores = [score for score in found if score is not None]
        score = sum(scores) / len(scores) if scores else float("nan")
        return calls.verdict(score, self._frame(rubric).digest, found)

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self.endpoint.most(self._most_sent(prompt, response)).micro_usd * self.samples * self.attempts

    @override
    def max_query_tokens(self, prompt: str, response: str) -> int:
        return self.endpoint.most(self._most_sent(prompt, response)).tokens * self.samples * self.attempts

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        messages = self._messages(prompt, response, Rubric())
        return self.endpoint.estimate(messages, count, output_tokens=USUAL_REPLY).times(self.samples)

    @override
    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        return self.endpoint.rate_limit_seconds(queries * self.samples, tokens // self.attempts)

    @override
    def diagnostics(self, replies: Sequence[str]) -> dict[str, float]:
        return calls_made(replies)

    @override
    def unusable_reply(self, raw: str) -> UnusableReply:
        return unusable_reply(raw, structured_output=self.structured_output)

    @override
    def rationale(self, raw: str) -> str:
        for record in records_of([raw]):
            for value, text in zip(record["said"], record["texts"], strict=False):
                if value is not None:
                    inner = unwrapped(text).text
                    told = stated_field(inner, "justification") if self.structured_output else SCORE_LINE.sub("", inner)
                    return " ".join(told.split()) if isinstance(told, str) else ""
        return ""

    @override
    def identity(self) -> list[Any]:
        return [self.endpoint.identity(), self.model_dump(mode="json", exclude={"endpoint", "attempts"}), *TOLD]

    @override
    def check(self) -> None:
        self.endpoint.check()

    def _messages(self, prompt: str, response: str, rubric: Rubric) -> list[Message]:
        return messages_of(
            rubric.render(prompt, response),
            structured_output=self.structured_output,
            discourage_length_bias=self.discourage_length_bias,
        )

    def _frame(self, rubric: Rubric) -> "Frame":
        return frame_of(
            rubric.render("", ""),
            structured_output=self.structured_output,
            discourage_length_bias=self.discourage_length_bias,
        )

    def _most_sent(self, prompt: str, response: str) -> int:
        return max(self._frame(rubric).tokens for rubric in Rubric.every()) + most_tokens(prompt + response)

    def _read(self, reply: Reply) -> float | None:
        if reply.cut_off and not self.structured_output:  # it might have gone on to another score
            return None
        stated = stated_score(reply.text, structured_output=self.structured_output)
        if stated is None or self.scoring == "stated":
            return None if stated is None else float(stated.score)
        return None if stated.place < 0 else expected_score(reply, stated.place)


def stated_score(text: str, *, structured_output: bool) -> Stated | None:
    """Return the one score that a judgement states; None if there is none, several, or one out of range."""
    inner = unwrapped(text)
    if not structured_output:
        score = parse_score(inner.text)
        found = [match for match in SCORE_LINE.finditer(inner.text) if int(match[1]) == score]
        return Stated(score, inner.begin + found[-1].start(1)) if score is not None else None
    score, places = _level(stated_field(inner.text, "score")), list(_JSON_SCORE.finditer(inner.text))
    if score is None or not places:
        return None
    sure = len(places) == 1 and int(places[0][1]) == score  # else it is not known which of them is the verdict's
    return Stated(score, inner.begin + places[0].start(1) if sure else -1)


def _level(told: object) -> int | None:
    """Return a score that is a whole number from 0 to 5, as a number or its digits; None for anything else."""
    if isinstance(told, str) and re.fullmatch(r"[0-5](\.0+)?", told.strip()):
        told = float(told)
    whole = type(told) in {int, float} and told in range(LEVELS)
    return int(told) if whole else None  # type: ignore[call-overload]


def expected_score(reply: Reply, place: int) -> float | None:
    """Return Σ s p(s) / Σ p(s) over the scores among the alternatives of the token at `place`; None if there is none.

    Where the tokens do not make up the text, as some tokenizers write them, it is the one token that is the digit itself.
    """
    score, begin = _score_of(reply.text[place]), 0
    if score is None:
        return None
    if "".join(token for token, _ in reply.alternatives) != reply.text:
        found = [alternatives for token, alternatives in reply.alternatives if _score_of(token) == score]
        return _mean(found[0]) if len(found) == 1 else None
    for token, alternatives in reply.alternatives:
        if begin <= place < begin + len(token):
            return _mean(alternatives) if _score_of(token) == score else None
        begin += len(token)
    return None


def _mean(alternatives: Mapping[str, float]) -> float | None:
    chances = [(score, p) for token, p in alternatives.items() if (score := _score_of(token)) is not None]
    total = sum(p for _, p in chances)
    return sum(score * p for score, p in chances) / total if total else None


def _score_of(token: str) -> int | None:
    """Return the score that a token is, whatever a tokenizer and JSON put around it: " 4", "▁4", "Ġ4", '"4', "4}"."""
    bare = token.replace("Ġ", "").replace("▁", "").strip(" \t\r\n\"'`*<>[](){}:,.")
    return int(bare) if len(bare) == 1 and bare in "012345" else None
