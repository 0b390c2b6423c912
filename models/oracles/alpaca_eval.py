"""Oracle: AlpacaEval 2's judge, against a reference answer to the same instruction."""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from models.benchmarks import alpaca_eval
from models.core.allowlist import FolderOrName
from models.core.cache import remembered_sha256
from models.core.errors import ConfigError
from models.core.event_loop import run
from models.core.money import MicroUsd, Prices
from models.core.registry import digest_of
from models.core.rubric import Rubric
from models.oracles.base import CostEstimate, MaybeBilledError, Oracle, RetryableError, TokenCounter, Verdict
from models.oracles.chat_client import Endpoint, most_tokens, most_tokens_sent
from models.oracles.llm_calls import Calls
from models.oracles.replies import Reply

_PUBLISHED = Endpoint(model="gpt-4-1106-preview", prices=Prices(input=10_000_000, output=30_000_000))


class AlpacaEval(Oracle):
    """P(the response is better than the reference's), in [0, 1], by the prompt, the order and the reader of `annotator`.

    The package decides how many tokens are asked for and at which temperature, the endpoint who answers. The rubric plays no
    part. A reply that the package cannot read is quarantined with its text. Source: 2404.04475.
    """

    description: ClassVar[str] = "AlpacaEval 2's judge: a response against a reference's answer"

    kind: Literal["alpaca_eval"] = "alpaca_eval"
    endpoint: Endpoint = Field(_PUBLISHED, description="The server that judges; AlpacaEval 2's own judge by default.")
    annotator: Annotated[str, FolderOrName] = Field(
        alpaca_eval.ANNOTATOR, description="The annotator: a configuration of the package, or a folder with one."
    )
    reference: Path | None = Field(
        None,
        description="Reference answers, a JSON file of instruction and output; by default AlpacaEval 2's own.",
    )

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        del rubric
        reference, calls = self._answer(prompt), Calls(self._judge)
        if response == reference:
            return calls.verdict(0.5, self._frame, [0.5])

        def complete(messages: list[dict[str, str]]) -> alpaca_eval.Completion:
            options = {"top_logprobs": self._called.get("top_logprobs", 5)} if self._called.get("logprobs") else {}
            reply = run(calls.ask(list(messages), **options))
            assert reply is not None  # noqa: S101 - a query of one call raises what befell it
            return _completion(reply)

        try:
            preferred = alpaca_eval.preference(self.annotator, prompt, reference, response, complete)
        except (RetryableError, MaybeBilledError, InterruptedError):
            raise
        except Exception:
            if not calls.replies:
                raise
            preferred = math.nan  # paid for, and the package does not take it: kept, to be looked at
        return calls.verdict(preferred, self._frame, [None if math.isnan(preferred) else preferred])

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self._judge.most(self._most_sent(prompt, response)).micro_usd

    @override
    def max_query_tokens(self, prompt: str, response: str) -> int:
        return self._judge.most(self._most_sent(prompt, response)).tokens

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        sent = "".join([alpaca_eval.frame(self.annotator), prompt, self._answer(prompt), response])
        return self._judge.estimate([{"content": sent}], count, output_tokens=self._judge.max_tokens)

    @override
    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        return self.endpoint.rate_limit_seconds(queries, tokens)

    @override
    def identity(self) -> list[Any]:
        reference = alpaca_eval.reference_file(self.reference)
        return [self._judge.identity(), self._frame, alpaca_eval.installed(), remembered_sha256(reference)]

    @override
    def check(self) -> None:
        self.endpoint.check()
        alpaca_eval.answers(alpaca_eval.reference_file(self.reference))
        made_for = alpaca_eval.reads(self.annotator).get("model_name")
        if self.endpoint == _PUBLISHED and made_for != _PUBLISHED.model:
            raise ConfigError(f"annotator {self.annotator!r} is made for {made_for}: name the judge's endpoint")

    @cached_property
    def _called(self) -> dict[str, Any]:
        return alpaca_eval.reads(self.annotator)

    @cached_property
    def _judge(self) -> Endpoint:
        told: dict[str, Any] = {
            name: self._called[name] for name in ("max_tokens", "temperature") if name in self._called
        }
        return self.endpoint.model_copy(update=told)

    @cached_property
    def _frame(self) -> str:
        """The digest of what the judge is sent around the texts, and how it is called and read."""
        return digest_of([alpaca_eval.frame(self.annotator), self._called, alpaca_eval.reader(self.annotator)])

    @cached_property
    def _answers(self) -> dict[str, str]:
        found = alpaca_eval.answers(alpaca_eval.reference_file(self.reference))
        return {answer.instruction: answer.output for answer in reversed(found)}  # the first of two counts

    def _answer(self, prompt: str) -> str:
        try:
            return self._answers[prompt]
        except KeyError as error:
            raise ConfigError(f"the reference has no answer to {prompt[:60]!r}: ask about its instructions") from error

    def _most_sent(self, prompt: str, response: str) -> int:
        around = most_tokens_sent([{"content": alpaca_eval.frame(self.annotator)}] * 2)  # more than its messages' marks
        return around + most_tokens(prompt + self._answer(prompt) + response)


def _completion(reply: Reply) -> alpaca_eval.Completion:
    """Return a reply in the form that the package's readers know."""
    said = [
        {
            "token": token,
            "logprob": _log(alternatives.get(token, 0.0)),
            "top_logprobs": [{"token": other, "logprob": _log(p), "bytes": None} for other, p in alternatives.items()],
        }
        for token, alternatives in reply.alternatives
    ]
    return {"text": reply.text, "logprobs": {"content": said}}


def _log(p: float) -> float:
    return math.log(p) if p else -math.inf
