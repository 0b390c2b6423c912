"""Estimate money, tokens and seconds of a run's oracle queries before any is bought."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flows.config.experiment import Experiment
from models.core.data import Prompt
from models.core.errors import ConfigError
from models.core.money import NO_CAP, Amount
from models.ledger.database import recent_latencies
from models.oracles.base import CostEstimate, Oracle, TokenCounter, canonical_pair
from tasks.engine.settings import settings

_SOME_PROMPTS = 50
_ENOUGH_TIMES = 5


class Range(NamedTuple):
    """What is expected, and between which bounds it lies."""

    low: float
    usual: float
    high: float


@dataclass(frozen=True)
class QueryCost:
    """What the budget's queries take: micro-dollars, tokens (0 where none are counted), seconds; and how it is known."""

    micro_usd: Range
    tokens: Range
    seconds: Range
    counted_by: str
    timed_by: str


def check_caps(config: Experiment, most: Amount) -> None:
    """Raise ConfigError if a cap does not pay for one query, or is on what this oracle does not count."""
    caps = config.labelling
    if most.micro_usd > caps.max_micro_usd:
        raise ConfigError(
            f"labelling.max_micro_usd={caps.max_micro_usd} does not pay for one query at {most.micro_usd}: raise it"
        )
    if caps.max_tokens != NO_CAP and not most.tokens:
        raise ConfigError(
            f"labelling.max_tokens={caps.max_tokens}, and oracle {caps.oracle.kind_name()!r} is not billed by the token: "
            "leave it out"
        )
    if most.tokens > caps.max_tokens:
        raise ConfigError(
            f"labelling.max_tokens={caps.max_tokens} does not pay for one query of up to {most.tokens} tokens: raise it"
        )


def _some(pool: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in pool[:_SOME_PROMPTS]]


def _asked(oracle: Oracle, length: int) -> str:
    """Return what is asked about an answer of so many characters."""
    text = ("word " * (length // 5 + 1))[:length]
    return canonical_pair(text, text)[0] if oracle.query_type == "pairwise" else text


def expected_of(oracle: Oracle, pool: list[Prompt], length: int, count: TokenCounter) -> CostEstimate:
    """Return what one query usually takes about an answer of so many characters: a mean over some prompts."""
    asked = _asked(oracle, length)
    micro_usd, tokens, seconds = np.mean([oracle.estimate(p, asked, count) for p in _some(pool)], axis=0)
    return CostEstimate(round(micro_usd), round(tokens), seconds)


def max_cost(oracle: Oracle, pool: list[Prompt], length: int) -> Amount:
    """Return the most that one query about such an answer may take, of some prompts."""
    asked = _asked(oracle, length)
    return Amount(*(max(most(p, asked) for p in _some(pool)) for most in (oracle.max_cost, oracle.max_query_tokens)))


def estimate_query_cost(
    config: Experiment, least: CostEstimate, usual: CostEstimate, most: Amount, counted_by: str
) -> QueryCost:
    """Return what the queries take of the budget, given what one takes at least, usually and at most."""
    caps, known = config.labelling, recent_latencies(settings().ledger_url, config.labelling.oracle.fingerprint())
    seconds = Range(usual.seconds / 2, usual.seconds, 3 * usual.seconds)
    timed_by = "a call's time is assumed"
    if len(known) >= _ENOUGH_TIMES:
        seconds, timed_by = Range(*np.quantile(known, (0.1, 0.5, 0.9))), f"as its last {len(known)} answers took"
    paced = caps.oracle.rate_limit_seconds(caps.queries, caps.queries * most.tokens)
    return QueryCost(
        micro_usd=Range(*(min(caps.queries * one.micro_usd, caps.max_micro_usd) for one in (least, usual, most))),
        tokens=Range(*(min(caps.queries * one.tokens, caps.max_tokens) for one in (least, usual, most))),
        seconds=Range(*(max(caps.queries * one / caps.concurrency, paced) for one in seconds)),
        counted_by=counted_by,
        timed_by=timed_by,
    )
