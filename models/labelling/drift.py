"""Check an oracle for drift: label a sample again and compare."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.core.data import Response, text_hash, usable_scores
from models.labelling.label import LabellingSession, label_responses
from models.metrics.agreement import rank_correlation
from models.metrics.intervals import Interval, clustered_mean

_ROUNDING = 1e-6


class Drift(NamedTuple):
    """How new answers agree with the old: share of equal scores, Spearman, mean change with its interval, micro-dollars."""

    asked: int
    answered: int
    same: float
    spearman: float
    change: Interval
    micro_usd: int


def sample_of(rows: Sequence[Mapping[str, Any]], session: LabellingSession, size: int) -> list[Mapping[str, Any]]:
    """Return at most `size` labels of this oracle and criterion, chosen by the hash of their texts."""
    asked = session.question(Response.recorded("", "", ""))
    own = [r for r in rows if (r["oracle"], r["criterion"], r["status"]) == (asked.oracle, asked.criterion, "labelled")]
    return sorted(own, key=lambda r: text_hash(r["prompt_hash"] + r["response_hash"]))[:size]


def ask_again(
    sample: Sequence[Mapping[str, Any]],
    session: LabellingSession,
    *,
    replicate: str,
    max_micro_usd: int,
    concurrency: int = 4,
) -> Drift:
    """Buy the sample's labels once more and return how they agree; the old ones stay as they are.

    They are bought on an `replicate`, under whose name they are owned, by an account of their own. Raises as `label`.
    """
    again = session.for_replicate("drift", replicate)
    questions = [Response.recorded(str(number), row["prompt"], row["response"]) for number, row in enumerate(sample)]
    labels = label_responses(
        questions, again, max_queries=len(questions), max_micro_usd=max_micro_usd, concurrency=concurrency
    )
    new = usable_scores(labels)
    rows = [number for number, question in enumerate(questions) if question.id in new]
    old_scores = np.array([float(sample[number]["score"]) for number in rows])
    new_scores = np.array([new[questions[number].id] for number in rows])
    return Drift(
        asked=len(labels),
        answered=len(rows),
        same=float(np.isclose(old_scores, new_scores, rtol=0, atol=_ROUNDING).mean()) if rows else float("nan"),
        spearman=rank_correlation(old_scores, new_scores),
        change=clustered_mean(new_scores - old_scores, np.arange(len(rows))),
        micro_usd=sum(entry.micro_usd for entry in labels),
    )
