"""Buy labels from the expert, through the ledger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from models.labelling import Desk, label
from models.ledger import Ledger
from models.metrics import rank_correlation
from models.oracles.base import Oracle, pair_text
from models.preference import Label, LabelStatus, Pick, Response
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.settings import settings
from tasks.store import Ref, store


class Bought(Product):
    """Labels, and the ledger's account that was charged for them."""

    account: str


@stage(version=3, ignore=["workers"])
def annotate(
    responses: Ref,
    picks: Ref | None,
    oracle: Oracle,
    *,
    fingerprint: str,
    rubric: Rubric,
    account: str,
    max_queries: int,
    max_micro_usd: int,
    max_tokens: int,
    workers: int,
) -> Bought:
    """Return the labels of the picked responses or pairs (of all responses, without picks), within every cap.

    `fingerprint` is the oracle's identity, data files included. The account is charged for every label, bought now or
    found in the ledger, so that runs compare at equal budget.
    """
    del fingerprint
    by_id = {r.id: r for r in store().rows(responses, Response)}
    wanted = [Pick(i, 0.0) for i in by_id] if picks is None else store().rows(picks, Pick)
    questions = [_question(pick, by_id) for pick in wanted]
    desk = Desk(Ledger(settings().ledger_url), oracle, rubric, account)
    labels = label(
        [question for question, _ in questions],
        desk,
        max_queries=max_queries,
        max_micro_usd=max_micro_usd,
        max_tokens=max_tokens,
        workers=workers,
    )
    asked = {question.id: (pick, sign) for pick, (question, sign) in zip(wanted, questions, strict=True)}
    labels = [_as_picked(entry, *asked[entry.response_id]) for entry in labels]
    facts = {name: float(value) for name, value in desk.ledger.spent(account)._asdict().items()}
    replies = [row["raw"] for row in desk.ledger.rows(account=account) if row["status"] in get_args(LabelStatus)]
    facts |= oracle.findings(replies) | _habits(labels, by_id)
    return Bought(ref=store().write_rows("labels", labels, Label), facts=facts, account=account)


def _habits(labels: Sequence[Label], by_id: Mapping[str, Response]) -> dict[str, float]:
    """Return how the expert has scored: mean, spread, what could not be used, and whether longer is better to it."""
    usable = [entry for entry in labels if entry.status == "labelled"]
    scores = np.array([entry.score for entry in usable])
    longer = [len(by_id[e.response_id].text) - (len(by_id[e.against].text) if e.against else 0) for e in usable]
    return {
        "quarantined": float(len(labels) - len(usable)),
        "score_mean": float(scores.mean()) if usable else math.nan,
        "score_std": float(scores.std()) if usable else math.nan,
        "length_correlation": rank_correlation(np.array(longer, dtype=float), scores),
    }


def _question(pick: Pick, by_id: Mapping[str, Response]) -> tuple[Response, int]:
    """Return what the expert is asked, and the sign of the answer as seen from the picked response."""
    response = by_id[pick.response_id]
    if not pick.against:
        return response, 1
    text, sign = pair_text(response.text, by_id[pick.against].text)
    return replace(response, id=f"{pick.response_id} {pick.against}", text=text), sign


def _as_picked(label: Label, pick: Pick, sign: int) -> Label:
    return replace(label, response_id=pick.response_id, against=pick.against, score=sign * label.score)
