"""Oracle: another oracle with label noise, flips, failures and latency, for tests and dry runs."""

import time
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from typing_extensions import override

from models.core.data import text_hash
from models.core.errors import ConfigError
from models.core.money import MicroUsd
from models.core.randomness import stream
from models.core.registry import OneOf
from models.core.rubric import Rubric
from models.oracles.base import CostEstimate, Oracle, RetryableError, TokenCounter, Verdict

Probability = Annotated[float, Field(ge=0, le=1)]


class Noisy(Oracle):
    """Wrap an oracle. What goes wrong is decided by (seed, tuple), so that the same query is answered alike again."""

    description: ClassVar[str] = "oracle with simulated noise"
    simulated: ClassVar[bool] = True

    execution_fields: ClassVar[frozenset[str]] = frozenset({"latency"})

    kind: Literal["noisy"] = "noisy"
    inner: Annotated[Oracle, OneOf(late=True)]
    seed: int = Field(0, description="Seed of the noise.")
    label_noise: NonNegativeFloat = Field(
        0.0, description="Standard deviation of the noise that is added to the score."
    )
    flip: Probability = Field(0.0, description="Probability that the score's sign is reversed.")
    garbage: Probability = Field(0.0, description="Probability of a reply without a score.")
    fail: Probability = Field(0.0, description="Probability that the call fails without being billed.")
    crash: Probability = Field(0.0, description="Probability that the call raises after being billed.")
    latency: NonNegativeFloat = Field(0.0, description="Seconds that a query takes.")

    @property
    @override
    def costs_money(self) -> bool:
        return self.inner.costs_money

    @property
    @override
    def uses_device(self) -> bool:
        return self.inner.uses_device

    @property
    @override
    def query_type(self) -> Literal["pointwise", "pairwise"]:
        return self.inner.query_type

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        rng = stream(self.seed, 0, text_hash(prompt) + text_hash(response))
        garbage, fail, crash, flip = rng.random(4)
        noise = rng.normal() * self.label_noise
        time.sleep(self.latency)
        if fail < self.fail:
            raise RetryableError("simulated failure of the oracle: nothing was billed", retry_after=0.0)
        if crash < self.crash:
            raise RuntimeError("simulated crash of the oracle after the call was billed")
        verdict = self.inner.judge(prompt, response, rubric)
        if garbage < self.garbage:
            return verdict._replace(score=float("nan"), raw="simulated reply without a score")
        return verdict._replace(score=(-1 if flip < self.flip else 1) * verdict.score + noise)

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self.inner.max_cost(prompt, response)

    @override
    def max_query_tokens(self, prompt: str, response: str) -> int:
        return self.inner.max_query_tokens(prompt, response)

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        one = self.inner.estimate(prompt, response, count)
        return one._replace(seconds=one.seconds + self.latency)

    @override
    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        return self.inner.rate_limit_seconds(queries, tokens)

    @override
    def identity(self) -> list[object]:
        return [self.inner.fingerprint(), self.model_dump(mode="json", exclude={"inner", "latency"})]

    @override
    def check(self) -> None:
        self.inner.check()
        if self.inner.annotation_task(Rubric()):
            raise ConfigError(f"noisy calls its inner oracle, and {self.inner.kind_name()!r} answers through a queue")
