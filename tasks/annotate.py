"""Buy labels from the expert, through the ledger."""

import numpy as np

from models.labelling import Desk, label
from models.ledger import Ledger
from models.oracles.base import Oracle
from models.preference import Label, Pick, Response, usable_scores
from models.rubric import Rubric
from tasks.caching import Product, stage
from tasks.settings import settings
from tasks.store import Ref, store


@stage(version=1, ignore=["workers"])
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
    """Return the labels of the picked responses (of all, without picks), within both caps.

    `fingerprint` is the oracle's identity, data files included. The account is charged for every label, bought now or
    found in the ledger, so that runs compare at equal budget.
    """
    del fingerprint
    by_id = {r.id: r for r in store().rows(responses, Response)}
    wanted = list(by_id) if picks is None else [pick.response_id for pick in store().rows(picks, Pick)]
    desk = Desk(Ledger(settings().ledger_url), oracle, rubric, account)
    labels = label(
        [by_id[i] for i in wanted],
        desk,
        max_queries=max_queries,
        max_micro_usd=max_micro_usd,
        workers=workers,
    )
    spent = desk.ledger.spent(account)
    usable = np.array(list(usable_scores(labels).values()))
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
