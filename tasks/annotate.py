"""Buy labels from the expert, through the ledger."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from models.labelling import Desk, label
from models.ledger import Ledger
from models.oracles.base import Oracle, pair_text
from models.preference import Label, Pick, Response
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.settings import settings
from tasks.store import Ref, store


@stage(version=2, ignore=["workers"])
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
    workers: int,
) -> Product:
    """Return the labels of the picked responses or pairs (of all responses, without picks), within both caps.

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
        workers=workers,
    )
    asked = {question.id: (pick, sign) for pick, (question, sign) in zip(wanted, questions, strict=True)}
    labels = [_as_picked(entry, *asked[entry.response_id]) for entry in labels]
    spent = desk.ledger.spent(account)
    usable = np.array([entry.score for entry in labels if entry.status == "labelled"])
    facts = {
        "queries": float(spent.queries),
        "micro_usd": float(spent.micro_usd),
        "bought_queries": float(spent.bought_queries),
        "bought_micro_usd": float(spent.bought_micro_usd),
        "tokens": float(sum(entry.tokens for entry in labels)),
        "quarantined": float(len(labels) - len(usable)),
        "score_mean": float(usable.mean()) if len(usable) else float("nan"),
        "score_std": float(usable.std()) if len(usable) else float("nan"),
    }
    return Product(ref=store().write_rows("labels", labels, Label), facts=facts)


def _question(pick: Pick, by_id: Mapping[str, Response]) -> tuple[Response, int]:
    """Return what the expert is asked, and the sign of the answer as seen from the picked response."""
    response = by_id[pick.response_id]
    if not pick.against:
        return response, 1
    text, sign = pair_text(response.text, by_id[pick.against].text)
    return replace(response, id=f"{pick.response_id} {pick.against}", text=text), sign


def _as_picked(label: Label, pick: Pick, sign: int) -> Label:
    return replace(label, response_id=pick.response_id, against=pick.against, score=sign * label.score)
