"""Oracle: people, through the annotation queue."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.money import MicroUsd
from models.core.rubric import Rubric
from models.metrics.agreement import krippendorff_alpha
from models.oracles.base import AnnotationTask, CostEstimate, Oracle, TokenCounter, Verdict


class Human(Oracle):
    """Ask `annotators` people about each item; the most frequent score counts, and a tie asks one person more.

    A run posts its questions and waits: `ninefold labels export --queue`, `labels import`, or Label Studio.
    """

    description: ClassVar[str] = "people"
    billed_on_failure: ClassVar[bool] = False

    kind: Literal["human"] = "human"
    task: Literal["pointwise", "pairwise"] = Field(
        "pointwise", description="What people are asked: a score of one response, or which of two is better."
    )
    annotators: PositiveInt = Field(1, description="People who judge each item.")
    micro_usd: MicroUsd = Field(description="Micro-dollars for one person's judgement of one item.")
    annotator_pool: str = Field("", description="Who the people are: labels of another pool are other labels.")

    @property
    @override
    def query_type(self) -> Literal["pointwise", "pairwise"]:
        return self.task

    @override
    def annotation_task(self, rubric: Rubric) -> AnnotationTask | None:
        return AnnotationTask(rubric.guide(self.query_type), self.annotators, self.micro_usd)

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        raise RuntimeError("people answer through the queue, not when called: ninefold labels export FILE --queue")

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self.micro_usd * (self.annotators + 1)  # one more after a tie

    @override
    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        return CostEstimate(self.micro_usd * self.annotators)

    @override
    def diagnostics(self, replies: Sequence[str]) -> dict[str, float]:
        judged = []
        for reply in replies:
            with suppress(ValueError, TypeError, KeyError):  # an import's may be others
                judged.append([(name, score) for name, score, _ in json.loads(reply)["judgements"]])
        return {"judgements": float(sum(map(len, judged))), "krippendorff_alpha": krippendorff_alpha(judged)}

    @override
    def identity(self) -> list[Any]:
        return [self.annotator_pool, self.task, self.annotators]
