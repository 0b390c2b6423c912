"""Oracle: an LLM judge that compares two responses, in both orders."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.event_loop import run
from models.core.money import MicroUsd
from models.core.rubric import MARKS, Rubric
from models.oracles.base import CostEstimate, PairOracle, TokenCounter, UnusableReply, Verdict
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
    "properties": {"justification": {"type": "string"}, "better": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["justification", "better"],
    "additionalProperties": False,
}
_LINE = re.compile(
    rf"^[#*_`\t ]*+better{MARKS}[:=]{MARKS}[<\[({{]*+(?:response[\t ]++)?+(A|B|tie)[>\])}}]*+{MARKS}\.?+{MARKS}\r?$",
    re.IGNORECASE | re.MULTILINE,
)
_VALUES = {"a": 1, "b": -1, "tie": 0}


class LLMPairwiseJudge(PairOracle):
    """Ask which is better twice, the other way round the second time, for judges prefer a place: the mean of both answers.

    1 and −1 are verdicts that both orders agree on, 0 is a tie or a contradiction. A reply that cannot be read is asked for
    again up to `attempts` times; if one of the orders stays without a verdict the comparison is quarantined.
    """

    description: ClassVar[str] = "a language model comparing two responses in both orders"

    kind: Literal["llm_pairwise_judge"] = "llm_pairwise_judge"
    endpoint: Endpoint
    structured_output: bool = Field(
        True, description="Whether JSON is asked for; set it to false for servers without json_schema."
    )
    attempts: PositiveInt = Field(
        2, description="Calls for each order until one can be read; then the query is quarantined."
    )
    discourage_length_bias: bool = Field(True, description="Whether the judge is told that length is no merit.")

    @override
    def compare(self, prompt: str, first: str, second: str, rubric: Rubric) -> Verdict:
        return run(self._compare(prompt, first, second, rubric))

    @override
    async def judge_async(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        first, second = json.loads(response)
        return await self._compare(prompt, first, second, rubric)

    async def _compare(self, prompt: str, first: str, second: str, rubric: Rubric) -> Verdict:
        calls = Calls(self.endpoint)
        found = [
            await calls.read(
                self._messages(prompt, one, other, rubric),
                self._read,
                seeds=range(self.attempts),
                schema=_SCHEMA if self.structured_output else None,
            )
            for one, other in ((first, second), (second, first))
        ]
        score = float("nan") if found[0] is None or found[1] is None else (found[0] - found[1]) / 2
        return calls.verdict(score, self._frame(rubric).digest, found)

    def _read(self, reply: Reply) -> int | None:
        cut_off = reply.cut_off and not self.structured_output  # it might have gone on to another verdict
        return None if cut_off else stated_better(reply.text, structured_output=self.structured_output)

    @override
    def pair_ceiling(self, prompt: str, first: str, second: str) -> MicroUsd:
        return 2 * self.attempts * self.endpoint.most(self._most_sent(prompt, first + second)).micro_usd

    @override
    def max_query_tokens(self, prompt: str, response: str) -> int:
        first, second = json.loads(response)
        return 2 * self.attempts * self.endpoint.most(self._most_sent(prompt, first + second)).tokens

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        first, second = json.loads(response)
        messages = self._messages(prompt, first, second, Rubric())
        return self.endpoint.estimate(messages, count, output_tokens=USUAL_REPLY).times(2)

    @override
    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        return self.endpoint.rate_limit_seconds(2 * queries, tokens // self.attempts)

    @override
    def diagnostics(self, replies: Sequence[str]) -> dict[str, float]:
        both = [record["said"] for record in records_of(replies) if None not in record["said"]]
        agree = sum(one == -other for one, other in both)
        first = sum(value == 1 for pair in both for value in pair)
        untied = sum(value != 0 for pair in both for value in pair)
        return calls_made(replies) | {
            "order_consistency": agree / len(both) if both else math.nan,
            "first_place_share": first / untied if untied else math.nan,
        }

    @override
    def unusable_reply(self, raw: str) -> UnusableReply:
        return unusable_reply(raw, structured_output=self.structured_output)

    @override
    def identity(self) -> list[Any]:
        return [self.endpoint.identity(), self.model_dump(mode="json", exclude={"endpoint", "attempts"}), *TOLD]

    @override
    def check(self) -> None:
        self.endpoint.check()

    def _frame(self, rubric: Rubric) -> Frame:
        return frame_of(
            rubric.render_pair("", "", ""),
            structured_output=self.structured_output,
            discourage_length_bias=self.discourage_length_bias,
        )

    def _most_sent(self, prompt: str, responses: str) -> int:
        return max(self._frame(rubric).tokens for rubric in Rubric.every()) + most_tokens(prompt + responses)

    def _messages(self, prompt: str, first: str, second: str, rubric: Rubric) -> list[Message]:
        question = rubric.render_pair(prompt, first, second)
        return messages_of(
            question, structured_output=self.structured_output, discourage_length_bias=self.discourage_length_bias
        )


def stated_better(text: str, *, structured_output: bool) -> int | None:
    """Return 1 for A, −1 for B, 0 for a tie; None if the judgement states none of them, or several."""
    text = unwrapped(text).text
    if not structured_output:
        found = {match.lower() for match in _LINE.findall(text)}
        return _VALUES[found.pop()] if len(found) == 1 else None
    better = stated_field(text, "better")
    return _VALUES.get(better.strip().lower().removeprefix("response ")) if isinstance(better, str) else None
