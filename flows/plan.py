"""What a run will do and cost, before anything is bought or written; and every check that can fail that early."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flows.experiment import Experiment
from models.cost import dollars
from models.oracles.base import Oracle, pair_text
from models.policies.pretrained import PACKAGED, check_reference
from models.preference import Prompt

# Seconds on two cores with bf16 instructions, measured with the packaged model and texts of about 22 tokens.
# For other models and machines they are only proportions, and the plan says so.
_SECONDS_PER_TRAINED_TEXT = 0.14
_SECONDS_PER_GENERATED_TEXT = 0.055
_SECONDS_PER_SCORED_TEXT = 0.02
_START_SECONDS = 40.0

_CHARACTERS_PER_TOKEN = 4
_SOME_PROMPTS = 50


@dataclass(frozen=True)
class Step:
    """A stage: what it works on, and a rough duration in seconds."""

    stage: str
    work: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The whole run, ready to be shown."""

    experiment: Experiment
    steps: tuple[Step, ...]
    pool_tuples: int
    queries: int
    micro_usd: int
    micro_usd_range: tuple[int, int]
    evaluation_queries: int
    evaluation_micro_usd: int
    proxy_pairs: int

    @property
    def seconds(self) -> float:
        """Return the rough duration of the whole."""
        return sum(step.seconds for step in self.steps)

    @property
    def measured(self) -> bool:
        """Whether the durations were measured with this model."""
        return self.experiment.policy.model == PACKAGED

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        x, oracle = self.experiment, self.experiment.labelling.oracle
        simulated = " (simulated)" if oracle.simulated else ""
        unit = "comparison of two responses" if oracle.unit == "pair" else "response"
        return [
            f"experiment {x.name}: {x.labelling.acquisition.label()} × {oracle.label()} × "
            f"{x.evaluator.label()}, selection seed {x.seeds.selection}, training seed {x.seeds.training}",
            f"expert     {oracle.description}{simulated}; a query is one {unit}",
            f"budget     at most {self.queries} queries and {dollars(x.labelling.max_micro_usd)}; "
            f"expected {dollars(self.micro_usd)}{self._range()}",
            f"evaluation at most {self.evaluation_queries} further queries, expected "
            f"{dollars(self.evaluation_micro_usd)}: they measure and teach nothing",
            f"pairs      about {self.proxy_pairs} proxy-labelled pairs, {self.proxy_pairs / self.queries:.1f} per query",
        ]

    def _range(self) -> str:
        low, high = self.micro_usd_range
        if low == high:
            return ""
        return f", from {dollars(low)} (answers without a word) to {dollars(high)} (the longest, every call at its ceiling)"


def plan(experiment: Experiment) -> Plan:
    """Check everything that can be checked without spending, and return the plan.

    Raises ValueError or FileNotFoundError naming the value, the rule and the remedy.
    """
    x = experiment
    check_reference(x.policy.model)
    x.embedding.check()
    x.labelling.oracle.check()
    x.judge.check()
    prompts = x.prompts.load()
    tuples = len(prompts.pool) * x.generation.samples
    _check_queries(x, len(prompts.pool))
    held_out = len(prompts.held_out) * x.evaluation.samples
    longest = _CHARACTERS_PER_TOKEN * x.generation.max_new_tokens
    usual = int(np.mean([len(d.response) for d in prompts.seed])) if prompts.seed else longest // 2
    price = _prices(x.labelling.oracle, prompts.pool, usual=usual, longest=longest)
    if price.ceiling > x.labelling.max_micro_usd:
        raise ValueError(
            f"labelling.max_micro_usd={x.labelling.max_micro_usd} does not pay for one query at {price.ceiling}: raise it"
        )
    evaluation_cost = 2 * held_out * _prices(x.judge, prompts.pool, usual=usual, longest=longest).usual
    if evaluation_cost > x.evaluation.max_micro_usd:
        raise ValueError(
            f"the evaluation asks {2 * held_out} queries, {dollars(evaluation_cost)}, and evaluation.max_micro_usd allows "
            f"{dollars(x.evaluation.max_micro_usd)}: raise it or lower evaluation.samples"
        )
    totals = [min(x.labelling.queries * one, x.labelling.max_micro_usd) for one in price]
    return Plan(
        experiment=x,
        steps=_steps(x, len(prompts.seed), len(prompts.pool), tuples, held_out),
        pool_tuples=tuples,
        queries=x.labelling.queries,
        micro_usd=totals[1],
        micro_usd_range=(totals[0], totals[2]),
        evaluation_queries=2 * held_out,
        evaluation_micro_usd=evaluation_cost,
        proxy_pairs=len(prompts.pool),
    )


def _check_queries(x: Experiment, prompts: int) -> None:
    """Raise ValueError if there is not enough to ask about."""
    samples, unit = x.generation.samples, x.labelling.oracle.unit
    most = prompts * x.dpo.rounds * (samples // 2 if unit == "pair" else samples)
    if x.labelling.queries > most:
        kind = "disjoint pairs" if unit == "pair" else "tuples"
        raise ValueError(
            f"labelling.queries={x.labelling.queries} passes the pool of {prompts} prompts × {samples} responses × "
            f"{x.dpo.rounds} rounds = {most} {kind}: lower labelling.queries or add prompts"
        )


class _Prices(NamedTuple):
    """Of one query, in micro-dollars: about an empty response, about a usual one, and the ceiling about the longest."""

    least: int
    usual: int
    ceiling: int


def _prices(oracle: Oracle, pool: list[Prompt], *, usual: int, longest: int) -> _Prices:
    """Return the mean over some prompts, and the greatest ceiling; lengths in characters."""

    def asked(length: int) -> str:
        text = "x" * length
        return pair_text(text, text)[0] if oracle.unit == "pair" else text

    some = [prompt.text for prompt in pool[:_SOME_PROMPTS]]
    least, typical = (int(np.mean([oracle.expected(p, asked(n)) for p in some])) for n in (0, usual))
    return _Prices(least, typical, max(oracle.ceiling(p, asked(longest)) for p in some))


def _steps(x: Experiment, seed: int, pool: int, tuples: int, held_out: int) -> tuple[Step, ...]:
    rounds, epochs = x.dpo.rounds, x.dpo.epochs
    train, generate, score = _SECONDS_PER_TRAINED_TEXT, _SECONDS_PER_GENERATED_TEXT, _SECONDS_PER_SCORED_TEXT
    return (
        Step("start", "server, tracking, model", _START_SECONDS),
        Step("fine_tune", f"{seed} demonstrations", seed * x.policy.sft.epochs * train),
        Step("generate", f"{pool} prompts × {x.generation.samples}", rounds * tuples * generate),
        Step("embed", f"{tuples} tuples", rounds * tuples * score),
        Step("acquire, annotate", f"{x.labelling.queries} queries of {tuples * rounds} tuples", 2.0),
        Step("train_evaluator, proxy_label", f"{x.evaluator.label()}", 2.0),
        Step("align", f"about {pool} pairs", rounds * pool * epochs * 2 * train),
        Step("evaluate", f"{2 * held_out} held-out responses", 2 * held_out * (generate + 2 * score)),
    )
