"""Oracle: people, through the annotation queue."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

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
    asks: Literal["score", "better"] = Field("score", description="a score of one response, or which of two is better")
    annotators: PositiveInt = Field(1, description="who judge each item")
    micro_usd: MicroUsd = Field(description="micro-dollars for one person's judgement of one item")
    panel: str = Field("", description="who they are: another panel's labels are other labels")

    @property
    def query_type(self) -> Literal["pointwise", "pairwise"]:  # noqa: D102
        return "pointwise" if self.asks == "score" else "pairwise"

    def annotation_task(self, rubric: Rubric) -> AnnotationTask | None:  # noqa: D102
        return AnnotationTask(rubric.guide(self.query_type), self.annotators, self.micro_usd)

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:  # noqa: D102
        raise RuntimeError("people answer through the queue, not when called: ninefold labels export FILE --queue")

    def max_cost(self, prompt: str, response: str) -> MicroUsd:  # noqa: D102
        return self.micro_usd * (self.annotators + 1)  # one more after a tie

    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:  # noqa: D102
        return CostEstimate(self.micro_usd * self.annotators)

    def diagnostics(self, replies: Sequence[str]) -> dict[str, float]:  # noqa: D102
        judged = []
        for reply in replies:
            with suppress(ValueError, TypeError, KeyError):  # an import's may be others
                judged.append([(name, score) for name, score, _ in json.loads(reply)["judgements"]])
        return {"judgements": float(sum(map(len, judged))), "krippendorff_alpha": krippendorff_alpha(judged)}

    def identity(self) -> list[Any]:  # noqa: D102
        return [self.panel, self.asks, self.annotators]
