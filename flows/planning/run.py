"""Plan a run: stages, queries, cost, time and memory; and every check that can fail before money is spent."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flows.config.experiment import Experiment
from flows.planning.memory import memory_lines
from flows.planning.model_checks import check_models
from flows.planning.purses import check_left, run_purse
from flows.planning.query_cost import QueryCost, check_caps, estimate_query_cost, expected_of, max_cost
from models.core.data import Prompt
from models.core.errors import ConfigError
from models.core.money import NO_CAP, dollars
from models.ledger.database import recent_latencies
from models.metrics.selective import ANY_PAIR
from models.oracles.base import Oracle, approximate_tokens
from models.policies.resolve import PACKAGED, check_reference, tokenizer_at_hand
from models.training.accelerate import IN_ONE, check_config
from tasks.engine.ray_cluster import check_cluster
from tasks.engine.settings import settings

# Seconds on two cores with bf16 instructions, measured with the packaged model and texts of about 22 tokens.
# For other models and machines they are only proportions, and the plan says so.
_SECONDS_PER_TRAINED_TEXT = 0.065
_SECONDS_PER_GENERATED_TEXT = 0.025
_SECONDS_PER_SCORED_TEXT = 0.005
START_SECONDS = 15.0

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Step:
    """One or more stages: what they work on, and a rough duration in seconds."""

    stage: str
    work: str
    seconds: float

    @property
    def stages(self) -> list[str]:
        """Return the stages by name."""
        return self.stage.split(", ")


class Judging(NamedTuple):
    """What the evaluation asks of one oracle, and the price expected, and at most."""

    oracle: Oracle
    queries: int
    micro_usd: int
    most: int


@dataclass(frozen=True)
class Plan:
    """The whole run, ready to be shown."""

    experiment: Experiment
    steps: tuple[Step, ...]
    demonstrations: int
    pool_tuples: int
    queries: int
    asking: QueryCost
    judges: tuple[Judging, ...]
    pairs: int
    left: tuple[str, ...] = ()  # of the run's purse and the lab's, in words
    cluster: str = ""
    notes: tuple[str, ...] = ()

    @property
    def evaluation_queries(self) -> int:
        """Return the queries of the evaluation, at most."""
        return sum(judge.queries for judge in self.judges)

    @property
    def evaluation_micro_usd(self) -> int:
        """Return the price expected of the evaluation's queries."""
        return sum(judge.micro_usd for judge in self.judges)

    @property
    def seconds(self) -> float:
        """Return the rough duration of the whole."""
        return sum(step.seconds for step in self.steps)

    @property
    def measured(self) -> bool:
        """Whether the durations were measured with this model."""
        return self.experiment.policy.model == PACKAGED

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        config, oracle = self.experiment, self.experiment.labelling.oracle
        simulated = " (simulated)" if oracle.simulated else ""
        unit = "comparison of two responses" if oracle.query_type == "pairwise" else "response"
        return [
            f"experiment {config.name}: {config.labelling.acquisition.kind_name()} × {oracle.kind_name()} × "
            f"{config.evaluator.kind_name()}, selection seed {config.seeds.selection}, "
            f"training seed {config.seeds.training}",
            f"oracle     {oracle.description}{simulated}; a query is one {unit}",
            f"budget     at most {self.queries} queries{self._token_cap()} and {dollars(config.labelling.max_micro_usd)}; "
            f"expected {dollars(self.micro_usd)}{self._range()}",
            *self._asking(),
            *self._gate(),
            f"evaluation at most {self.evaluation_queries} further queries, expected "
            f"{dollars(self.evaluation_micro_usd)}: they measure and train nothing",
            "; ".join([self._money(), *self.left]),
            self._pairs(),
            *self._shards(),
            *memory_lines(config),
            *self.notes,
        ]

    def _shards(self) -> list[str]:
        size = settings().shard_size
        if not self.cluster and self.pool_tuples <= size:
            return []
        count = math.ceil(self.pool_tuples / size)
        where = self.cluster or "one after another on this machine"
        return [f"shards     the pool's responses in {count}, of {min(size, self.pool_tuples):,} and more, {where}"]

    def _gate(self) -> list[str]:
        gate = self.experiment.gate
        if self.experiment.feedback != "proxy":
            return []
        line = f"gate       {gate.folds} evaluators, each trained without a part of the labels; at chance the run "
        line += "stops" if gate.on_failure == "stop" and not self.experiment.labelling.shuffle_labels else "goes on"
        if gate.relabel_queries:
            line += f"; pairs under {gate.min_confidence} go to the oracle ({gate.relabel_queries} of the queries), "
            line += "then are left out"
        elif gate.min_confidence > ANY_PAIR:
            line += f"; pairs under {gate.min_confidence} are left out"
        return [line]

    def _pairs(self) -> str:
        if self.experiment.feedback == "proxy":
            return f"pairs      about {self.pairs} proxy-labelled pairs, {self.pairs / self.queries:.1f} per query"
        return f"pairs      at most {self.pairs}, feedback by: {self.experiment.feedback}"

    @property
    def micro_usd(self) -> int:
        """Return the price expected of the budget's queries."""
        return int(self.asking.micro_usd.usual)

    @property
    def most_micro_usd(self) -> int:
        """Return the most that labels and evaluation cost if every call is at its ceiling."""
        evaluation = min(sum(judge.most for judge in self.judges), self.experiment.evaluation.max_micro_usd)
        return int(self.asking.micro_usd.high) + evaluation

    @property
    def paid_micro_usd(self) -> int:
        """Return what of the price expected is paid for, and not only counted as for simulated oracles."""
        labels = self.micro_usd if self.experiment.labelling.oracle.costs_money else 0
        return labels + sum(judge.micro_usd for judge in self.judges if judge.oracle.costs_money)

    def _money(self) -> str:
        expected, cap = self.micro_usd + self.evaluation_micro_usd, run_purse(self.experiment).micro_usd
        return f"money      expected {dollars(expected)}, at most {dollars(self.most_micro_usd)}, cap {dollars(cap)}"

    def _token_cap(self) -> str:
        cap = self.experiment.labelling.max_tokens
        return "" if cap == NO_CAP else f", {cap:,} tokens"

    def _range(self) -> str:
        low, _, high = (int(value) for value in self.asking.micro_usd)
        if low == high:
            return ""
        return f", from {dollars(low)} (answers without a word) to {dollars(high)} (the longest, every call at its ceiling)"

    def _asking(self) -> list[str]:
        tokens, seconds, lines = self.asking.tokens, self.asking.seconds, []
        if tokens.high:
            low, usual, high = (f"{int(value):,}" for value in tokens)
            lines.append(f"tokens     about {usual}, from {low} to {high}; counted {self.asking.counted_by}")
        if seconds.high:
            low, usual, high = (f"{value:.0f}" for value in seconds)
            lines.append(
                f"asking     about {usual} s with {self.experiment.labelling.concurrency} in flight, from {low} to {high}; "
                f"{self.asking.timed_by}"
            )
        return lines


def plan(experiment: Experiment, *, in_sweep: bool = False) -> Plan:
    """Check everything that can be checked without spending, and return the plan.

    What is left of the lab's budget is checked but for an arm that is `in_sweep`, whose labels other arms may pay for.
    Raises ConfigError or FileNotFoundError naming the value, the rule and the remedy.
    """
    config = experiment
    check_reference(config.policy.model)
    config.embedding.check()
    config.labelling.oracle.check()
    config.evaluation_oracle.check()
    if spread_by := settings().accelerate:
        check_config(spread_by, config.policy.sft, *([config.dpo] if config.dpo.algorithm not in IN_ONE else []))
    cluster = check_cluster(config.generation.gpus, config.generation.check)
    if not cluster:  # else it is there that texts are generated
        config.generation.check()
    if config.evaluation.pairwise_judge:
        config.evaluation.pairwise_judge.check()
    prompts = config.prompts.load()
    notes = check_models(config, views_of(config), prompts.demonstrations)
    tuples = len(prompts.pool) * config.generation.samples
    _check_queries(config, len(prompts.pool), len(prompts.demonstrations))
    held_out = config.answers(len(prompts.held_out))
    longest = _CHARACTERS_PER_TOKEN * config.generation.max_new_tokens
    usual = int(np.mean([len(d.response) for d in prompts.demonstrations])) if prompts.demonstrations else longest // 2
    count = tokenizer_at_hand(config.policy.model)
    least, each = (
        expected_of(config.labelling.oracle, prompts.pool, n, count or approximate_tokens) for n in (0, usual)
    )
    most = max_cost(config.labelling.oracle, prompts.pool, longest)
    if config.queries_oracle:
        check_caps(config, most)
    judges = _judges(
        config,
        held_out,
        len(prompts.held_out) * config.evaluation.samples,
        lambda oracle: (
            expected_of(oracle, prompts.pool, usual, count or approximate_tokens).micro_usd,
            max_cost(oracle, prompts.pool, longest).micro_usd,
        ),
    )
    cost = sum(judge.micro_usd for judge in judges)
    if cost > config.evaluation.max_micro_usd:
        raise ConfigError(
            f"the evaluation asks {sum(judge.queries for judge in judges)} queries, {dollars(cost)}, and "
            f"evaluation.max_micro_usd allows {dollars(config.evaluation.max_micro_usd)}: raise it or lower "
            "evaluation.samples"
        )
    planned = Plan(
        experiment=config,
        steps=_steps(config, len(prompts.demonstrations), len(prompts.pool), tuples, held_out),
        demonstrations=len(prompts.demonstrations),
        pool_tuples=tuples,
        queries=config.labelling.queries,
        asking=estimate_query_cost(
            config,
            least,
            each,
            most,
            f"with {config.policy.model}'s tokenizer" if count else "at four bytes to a token",
        ),
        judges=judges,
        pairs=_pairs(config, len(prompts.pool), len(prompts.demonstrations)),
        cluster=cluster,
        notes=(*notes, *_unasked(config)),
    )
    return planned if in_sweep else replace(planned, left=check_left(run_purse(config), planned.paid_micro_usd))


def _unasked(config: Experiment) -> list[str]:
    """Return a line about the oracles behind a server that have answered nothing yet, as far as the ledger knows."""
    question = Prompt.of("question")
    behind_servers = {
        field: oracle
        for field, oracle in config.oracles.items()
        if oracle.annotation_task(config.labelling.rubric) is None
        and expected_of(oracle, [question], 0, approximate_tokens).seconds
    }
    url = settings().ledger_url
    new = [field for field, one in behind_servers.items() if not recent_latencies(url, one.fingerprint(), last=1)]
    said = f"{' and '.join(new)} never answered yet: `ninefold plan FILE --ask` asks one question, at its price"
    return [f"trial      {said}"] if new else []


def _judges(
    config: Experiment, answers: int, compared: int, prices: Callable[[Oracle], tuple[int, int]]
) -> tuple[Judging, ...]:
    """Return what the evaluation asks of its oracles, at the prices of one query: expected, and at most."""
    asked = [(config.evaluation_oracle, answers)]
    if config.evaluation.pairwise_judge:
        asked.append((config.evaluation.pairwise_judge, compared))
    return tuple(Judging(oracle, queries, *(queries * price for price in prices(oracle))) for oracle, queries in asked)


def _pairs(config: Experiment, pool: int, seed: int) -> int:
    """Return how many preference pairs there may be: one per prompt, and from the oracle alone one per two answers."""
    per_query = 1 if config.labelling.oracle.query_type == "pairwise" else 2
    most = {"none": 0, "demonstrations": seed, "oracle": min(pool, config.labelling.queries // per_query)}
    return most.get(config.feedback, pool)


def _check_queries(config: Experiment, prompts: int, seed: int) -> None:
    """Raise ConfigError if there is not enough to ask about."""
    samples, query_type = config.generation.samples, config.labelling.oracle.query_type
    if not seed and (config.labelling.pool != "on_policy" or config.feedback == "demonstrations"):
        raise ConfigError(
            f"labelling.pool={config.labelling.pool} with feedback={config.feedback} needs the seed's own answers, and the "
            "seed is empty: give prompts.demonstrations"
        )
    if config.labelling.pool != "on_policy":
        if config.labelling.queries - config.gate.relabel_queries > seed:
            raise ConfigError(
                f"labelling.queries={config.labelling.queries} passes the seed of {seed} answers: lower labelling.queries, "
                "or set labelling.pool to on_policy"
            )
        return
    most = prompts * config.iterations * (samples // 2 if query_type == "pairwise" else samples)
    if config.labelling.queries > most:
        kind = "disjoint pairs" if query_type == "pairwise" else "tuples"
        raise ConfigError(
            f"labelling.queries={config.labelling.queries} passes the pool of {prompts} prompts × {samples} responses × "
            f"{config.iterations} iterations = {most} {kind}: lower labelling.queries or add prompts"
        )


def views_of(config: Experiment) -> list[str]:
    """Return the views in which every pool is embedded: what the strategy and the evaluator read, each once."""
    views = (
        () if config.feedback == "none" else (config.labelling.acquisition.needs.view, config.evaluator.feature_view)
    )
    return [view for view in dict.fromkeys(views) if view is not None]


def _in_views(views: list[str]) -> str:
    return "" if len(views) == 1 else f" in {len(views)} views"


def _steps(config: Experiment, seed: int, pool: int, tuples: int, held_out: int) -> tuple[Step, ...]:
    pairs, views = _pairs(config, pool, seed), views_of(config)
    rounds, epochs = (0 if config.feedback == "none" else config.iterations), config.dpo.epochs
    train, generate, score = _SECONDS_PER_TRAINED_TEXT, _SECONDS_PER_GENERATED_TEXT, _SECONDS_PER_SCORED_TEXT
    return (
        Step("start", "server, tracking, model", START_SECONDS),
        Step("fine_tune", f"{seed} demonstrations", seed * config.policy.sft.epochs * train),
        Step("generate", f"{pool} prompts × {config.generation.samples}", rounds * tuples * generate),
        Step("embed", f"{tuples} tuples{_in_views(views)}", rounds * tuples * len(views) * score),
        Step(
            "acquire, annotate",
            f"{config.labelling.queries} queries of {tuples * rounds} tuples",
            2.0 * config.queries_oracle,
        ),
        Step("fit_evaluator, score", f"{config.evaluator.kind_name()}", 2.0 * rounds),
        Step("align", f"about {pairs} pairs", rounds * pairs * 2 * (epochs * train + score)),
        Step("evaluate", f"{held_out} held-out responses", held_out * (generate + 2 * score)),
    )
