"""Schema of a run's report, the file report.json: what the run bought, what it measured, where what it made lies."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from models.core.registry import Frozen
from models.ledger.audit import BudgetAudit
from models.metrics.intervals import Interval, json_number

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(json_number, return_type=float | None, when_used="json"),
]
"""A number that may not be known: NaN, and null in JSON."""


class PairwiseJudge(Frozen):
    """Oracle that compared the answers of both policies, where their scores did not decide."""

    oracle: str
    simulated: bool
    order_consistency: Number = Field(description="Share of the comparisons in which both orders agree.")
    undecided: int


class GateReport(Frozen):
    """What the gate measured on held-out labels, and what followed from it."""

    verdict: str
    sentence: str = Field(description="The verdict in a sentence.")
    agreement: Interval = Field(description="Share of the pairs that the evaluator orders as the oracle does.")
    pairs: int
    pairs_of: str
    prompts: int
    within_prompt: bool
    calibration: str
    temperature: Number
    calibration_error: Number
    threshold: float = Field(description="Least probability of a pair that the evaluator may label.")
    coverage: Number = Field(description="Share of the pairs that reach the threshold.")
    risk: Number = Field(description="Share of these that are wrong.")
    curve: tuple[tuple[float, float], ...] = Field(description="Coverage and risk at other thresholds, surest first.")
    relabel_queries: int
    left_out: int = Field(description="Prompts that gave no pair.")


class ScoreSpread(Frozen):
    """How the evaluator's scores of the last round are spread: `counts` between `edges`."""

    top_share: Number = Field(description="Share of the scores that are the commonest value.")
    tied_pairs: Number = Field(description="Share of the pairs of one prompt with equal scores.")
    unparsed: Number
    counts: tuple[int, ...]
    edges: tuple[float, ...]


class EvaluatorReport(Frozen):
    """How the evaluator agrees with the oracle on held-out prompts, beside one trained on shuffled labels."""

    kind: str
    calibration_error: Number
    pair_accuracy: Interval
    similar_length: Interval = Field(description="Pair accuracy among responses of similar length.")
    spearman: Number
    shuffled_pair_accuracy: Interval
    shuffled_similar_length: Interval
    shuffled_spearman: Number
    longer_preferred: Interval = Field(description="Share of a prompt's pairs in which it prefers the longer response.")
    longer_preferred_by_oracle: Interval
    format_shift: Interval = Field(description="What being written as a list adds to a score, in standard deviations.")
    position_bias: Number = Field(description="Logit by which the first of two equal responses wins.")


class BestOf(Frozen):
    """The best of several answers of M_1, by the evaluator, against each single one, by the oracle."""

    count: int
    win_rate: Interval
    gain: Interval
    kl: float = Field(description="Most that the choice may cost in KL, in nats an answer (2401.01879).")


class CurvePoint(Frozen):
    """A policy on the way from M_1 to M_2, after a share of the training."""

    share: float
    kl: Number
    oracle_mean: Number
    oracle_std: Number
    proxy_mean: Number
    proxy_std: Number


class PolicyReport(Frozen):
    """What the oracle says of M_2's held-out answers against M_1's, and what the training cost."""

    model: str
    win_rate: Interval
    lc_win_rate: Interval = Field(description="Length-controlled win rate (2404.04475).")
    length_effect: Number
    tie_rate: Number
    oracle_mean_before: Number
    oracle_mean_after: Number
    oracle_gain: Interval
    kl: Number = Field(description="KL to M_1, in nats an answer.")
    tokens_before: Number
    tokens_after: Number
    nll_per_token_before: Number
    nll_per_token_after: Number
    diversity_before: Number
    diversity_after: Number
    distinct_2_before: Number
    distinct_2_after: Number
    readable_before: Number = Field(description="Share of M_1's held-out answers that have a letter or a digit.")
    readable_after: Number = Field(description="The same of M_2's.")


class StageRun(Frozen):
    """One stage of the run: its seconds, and whether it came from the cache."""

    name: str
    cached: bool
    seconds: float


class Sample(Frozen):
    """Answers of both policies to a held-out prompt, with the oracle's scores."""

    prompt_id: str
    prompt: str
    before: str
    after: str
    before_score: Number
    after_score: Number
    won: Number


class RunReport(Frozen):
    """The report of a finished run. Money is in micro-dollars; intervals are 95 %, over prompts."""

    schema_version: Literal[1] = 1  # raised with a change of what a field means or is called
    name: str
    arm: str = Field(description="Digest of the experiment.")
    inputs: str = Field(description="Digest of the files that the prompts came from.")
    mlflow_run: str
    accounts: tuple[str, ...] = Field(description="Of the ledger.")
    strategy: str
    feedback: str
    labels_shuffled: bool
    oracle: str
    oracle_simulated: bool
    query_type: str
    evaluation_oracle: str
    evaluation_oracle_simulated: bool
    pairwise_judge: PairwiseJudge | None
    selection_seed: int
    training_seed: int
    queries: int
    queries_bought: int = Field(description="Those that were not owned already.")
    micro_usd: int = Field(description="Price of the queries, as if this run had bought them alone.")
    micro_usd_paid: int
    tokens: int
    lost_queries: int = Field(description="Calls without a reply, counted as paid.")
    oracle_facts: dict[str, Number]
    responses: dict[str, Number] = Field(
        description="Shares of the last pool's responses: empty, readable, finished by the model itself, distinct."
    )
    quarantined: int
    asked_again: int = Field(description="Queries of `ninefold labels retry`, which are on top of the caps.")
    asked_again_micro_usd: int
    unscored: int
    evaluation_queries: int
    evaluation_micro_usd: int
    pairs: int
    proxy_pairs: int
    oracle_pairs: int
    pairs_per_query: float
    tied_prompts: int
    too_long: dict[str, int] = Field(description="Rows that were left out, by stage.")
    prompts_over_long: tuple[str, ...]
    gate: GateReport | None
    scores: ScoreSpread | None
    evaluator: EvaluatorReport | None
    best_of: BestOf | None
    curve: tuple[CurvePoint, ...]
    policy: PolicyReport
    budget_audit: BudgetAudit
    artifacts: dict[str, Any] = Field(description="References to the prompts, policies, labels, evaluator and pairs.")
    stages: tuple[StageRun, ...]
    seconds: float = Field(description="Of all stages, those from the cache at what they took.")
    seconds_now: float
    samples: tuple[Sample, ...]
