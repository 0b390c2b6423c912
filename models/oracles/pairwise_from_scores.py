"""Oracle: makes any pointwise oracle pairwise by comparing two scores."""

import json
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from typing_extensions import override

from models.core.errors import ConfigError
from models.core.money import Amount, MicroUsd
from models.core.registry import OneOf
from models.core.rubric import Rubric
from models.oracles.base import (
    CostEstimate,
    MaybeBilledError,
    Oracle,
    PairOracle,
    QuestionRejected,
    RetryableError,
    TokenCounter,
    Verdict,
)


class PairwiseFromScores(PairOracle):
    """Score both responses and compare: sign(Δ), or tanh(Δ / 2T) = 2 σ(Δ / T) − 1 with a `temperature` T (Bradley–Terry).

    One query here is two of the inner oracle's, and costs what both cost. Simulated: no oracle has seen the pair.
    """

    description: ClassVar[str] = "comparisons derived from another oracle's scores"
    simulated: ClassVar[bool] = True

    kind: Literal["pairwise_from_scores"] = "pairwise_from_scores"
    inner: Annotated[Oracle, OneOf(late=True)]
    temperature: NonNegativeFloat = Field(
        0.0, description="T of the preference 2σ(Δ / T) − 1 of a difference of scores Δ; at 0 the better one wins."
    )

    @property
    @override
    def costs_money(self) -> bool:
        return self.inner.costs_money

    @property
    @override
    def uses_device(self) -> bool:
        return self.inner.uses_device

    @override
    def compare(self, prompt: str, first: str, second: str, rubric: Rubric) -> Verdict:
        one = self.inner.judge(prompt, first, rubric)
        try:
            other = self.inner.judge(prompt, second, rubric)
        except QuestionRejected as refusal:
            return one._replace(score=math.nan, raw=f"{one.raw} | {refusal.raw}")
        except RetryableError as failure:
            raise RuntimeError(
                f"one response of the pair was scored and paid for, the other failed: {failure}"
            ) from failure
        except MaybeBilledError as lost:
            both = None if lost.most is None else lost.most.plus(Amount(one.micro_usd, one.tokens))
            raise MaybeBilledError(f"one response of the pair was scored, the other not: {lost}", most=both) from lost
        gap = one.score - other.score
        if math.isfinite(gap):
            gap = math.tanh(gap / (2 * self.temperature)) if self.temperature else float((gap > 0) - (gap < 0))
        return Verdict(gap, f"{one.raw} | {other.raw}", one.micro_usd + other.micro_usd, one.tokens + other.tokens)

    @override
    def pair_ceiling(self, prompt: str, first: str, second: str) -> MicroUsd:
        return self.inner.max_cost(prompt, first) + self.inner.max_cost(prompt, second)

    @override
    def max_query_tokens(self, prompt: str, response: str) -> int:
        return sum(self.inner.max_query_tokens(prompt, text) for text in json.loads(response))

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        one, other = (self.inner.estimate(prompt, text, count) for text in json.loads(response))
        return one.plus(other)

    @override
    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        return self.inner.rate_limit_seconds(2 * queries, tokens)

    @override
    def identity(self) -> list[Any]:
        return [self.inner.fingerprint(), self.temperature]

    @override
    def check(self) -> None:
        self.inner.check()
        if self.inner.annotation_task(Rubric()):
            raise ConfigError(
                f"pairwise_from_scores calls its inner oracle, and {self.inner.kind_name()!r} answers through a queue"
            )
        if self.inner.query_type == "pairwise":
            raise ConfigError(
                f"pairwise_from_scores needs a pointwise oracle, and {self.inner.kind_name()!r} compares already"
            )
