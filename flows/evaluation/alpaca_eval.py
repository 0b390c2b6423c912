"""Run AlpacaEval 2 on a finished run: both policies against the reference answers, judgements bought through the ledger."""

from typing import NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from flows.reporting.export import FinishedRun
from models.benchmarks.alpaca_eval import answers, difficulties_file, installed, reference_file
from models.core.cache import remembered_sha256
from models.core.errors import ConfigError
from models.core.money import NO_CAP, MicroUsd
from models.core.randomness import seed_of
from models.core.registry import Frozen, digest_of
from models.core.rubric import Rubric
from models.oracles.alpaca_eval import AlpacaEval
from models.oracles.base import CostEstimate, approximate_tokens
from tasks.engine.caching import StageResult
from tasks.evaluation.alpaca_eval import (
    AT_EQUAL_LENGTH,
    RAW,
    Judgements,
    grade_answers,
    instructions,
    spread_at_equal_length,
)
from tasks.labelling.annotate import AnnotationRequest, LabellingTerms, annotate
from tasks.policy.generate import generate_sharded
from tasks.policy.policy_ref import Policy


class AlpacaEvalConfig(Frozen):
    """AlpacaEval 2: who judges, how many instructions (0: all), and the most that both policies' judgements may cost."""

    judge: AlpacaEval = AlpacaEval()
    limit: NonNegativeInt = Field(0, description="instructions at most; 0: all")
    max_micro_usd: MicroUsd = Field(description="micro-dollars that both policies' judgements may cost")
    concurrency: PositiveInt = Field(8, description="concurrent queries; does not change the result")

    def check(self) -> None:
        """Raise ConfigError, before anything is bought, if the package, the reference, the judge or its key is not there."""
        self.judge.check()
        if self.judge.reference is None:
            difficulties_file()
            if self.limit == 1:
                raise ConfigError(
                    "limit=1 leaves the length control nothing to compare: ask about two instructions or more"
                )

    def estimate(self) -> tuple[int, CostEstimate]:
        """Return how many judgements two policies need, and their usual price if answers are as long as the reference's."""
        asked = answers(reference_file(self.judge.reference))[: self.limit or None]
        total = CostEstimate(0)
        for instruction, output in asked:
            total = total.plus(self.judge.estimate(instruction, output, approximate_tokens).times(2))
        return 2 * len(asked), total


class AlpacaEvalResult(NamedTuple):
    """What both policies got in a benchmark, and how far the interval of their gain reaches below and above it.

    Without `reach` the interval is that over questions.
    """

    name: str
    before: StageResult
    after: StageResult
    reach: tuple[float, float] | None = None


def run_alpaca_eval(
    known: FinishedRun, policies: tuple[Policy, Policy], config: AlpacaEvalConfig
) -> tuple[list[AlpacaEvalResult], int]:
    """Return the policies' grades, as they stand and, by the published reference, at equal length; and who was left out.

    Raises ConfigError where the money does not cover every judgement; what was bought is kept.
    """
    judge, generation = config.judge, known.experiment.generation
    path = reference_file(judge.reference)
    content, fingerprint = remembered_sha256(path), judge.fingerprint()
    asked = instructions(
        path,
        content=content,
        policy=policies[0],
        max_prompt_tokens=known.experiment.policy.max_prompt_tokens,
        limit=config.limit,
    )
    seed = seed_of(known.experiment.seeds.training, 0, "alpaca_eval")  # the same random numbers for every policy
    answered = [generate_sharded(policy, asked.prompts, generation, samples=1, seed=seed).ref for policy in policies]
    left, judged = config.max_micro_usd, []
    for responses in answered:
        request = AnnotationRequest(
            responses=responses,
            picks=None,
            oracle=judge,
            fingerprint=fingerprint,
            rubric=Rubric(),
            account=digest_of(["alpaca_eval", fingerprint, responses.sha256, left]),
            max_queries=NO_CAP,  # a lost reply is asked for again: money is the cap
            max_micro_usd=left,
            max_tokens=NO_CAP,
        )
        labels = annotate(request, terms=LabellingTerms(concurrency=config.concurrency))
        left -= int(labels.facts["micro_usd"])
        judged.append(Judgements(responses=responses, labels=labels.ref))
    package = installed()
    raw = [grade_answers(each, path, content=content, package=package, at_equal_length=False) for each in judged]
    found = [AlpacaEvalResult(RAW, raw[0], raw[1])]
    if judge.reference is None:
        content = digest_of([content, remembered_sha256(difficulties_file())])
        level = [grade_answers(each, path, content=content, package=package, at_equal_length=True) for each in judged]
        reach = spread_at_equal_length(judged[0], judged[1], path, content=content)
        found.append(AlpacaEvalResult(AT_EQUAL_LENGTH, level[0], level[1], (reach["below"], reach["above"])))
    return found, len(asked.over_long)
