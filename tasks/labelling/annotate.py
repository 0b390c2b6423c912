"""Stage: buy labels from the oracle through the ledger."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import InstanceOf

from models.core.data import SETTLED, Label, Response, Selection
from models.core.errors import UnusableOutput
from models.core.registry import Frozen
from models.core.rubric import Rubric
from models.core.usable import require, same_score
from models.labelling.label import AnswersPending, LabellingSession, label_responses
from models.labelling.retry import PATIENCE
from models.labelling.watch import last_unusable
from models.ledger.ledger import Ledger
from models.ledger.purses import Purse
from models.metrics.agreement import rank_correlation
from models.oracles.base import Oracle, canonical_pair, refused
from tasks.engine.caching import StageResult, stage
from tasks.engine.devices import on_device
from tasks.engine.ledgers import open_ledger
from tasks.engine.store import Ref, store


class AnnotationResult(StageResult):
    """Labels, and the ledger's account that was charged for them."""

    account: str


class AnnotationRequest(Frozen):
    """What is asked of whom: the picked responses or pairs (all responses, without picks), and who pays how much.

    `fingerprint` is the oracle's identity, data files included.
    """

    responses: Ref
    picks: Ref | None
    oracle: InstanceOf[Oracle]
    fingerprint: str
    rubric: Rubric
    account: str
    max_queries: int
    max_micro_usd: int
    max_tokens: int
    reopened: int = 0  # questions of this account that were asked again by request: their answers are other ones


class LabellingTerms(Frozen):
    """How it is asked, which changes no label: calls in flight, seconds of patience, the share of replies that must be
    usable, and the purses that pay beside the account."""

    concurrency: int
    patience: float = PATIENCE
    least_usable: float = 0.0
    purses: tuple[Purse, ...] = ()


def enqueue_for_humans(request: AnnotationRequest, purses: tuple[Purse, ...] = ()) -> int:
    """Put what has not been asked yet into the queue, and return how many questions are open; 0 for any other oracle."""
    if request.oracle.annotation_task(request.rubric) is None:
        return 0
    try:
        terms = LabellingTerms(concurrency=1, purses=purses)
        _buy(request, _by_id(request), open_ledger(), terms)
    except AnswersPending as pending:
        return pending.questions
    return 0


@stage(version=6, ignore=["terms"])
def annotate(request: AnnotationRequest, *, terms: LabellingTerms) -> AnnotationResult:
    """Return the labels, within every cap.

    The account is charged for every label, bought now or found in the ledger, so that runs compare at equal budget; the
    purses for what is bought now. Raises UnusableOutput where fewer of the answers than the share `least_usable` hold a
    verdict, or all labels to learn from are the same.
    """
    by_id, ledger = _by_id(request), open_ledger()
    with on_device() if request.oracle.uses_device else nullcontext():
        labels = _buy(request, by_id, ledger, terms)
    facts = {name: float(value) for name, value in ledger.spent(request.account)._asdict().items()}
    settled = [row for row in ledger.rows(account=request.account) if row["status"] in SETTLED]
    facts |= request.oracle.diagnostics([row["raw"] for row in settled])
    _require_usable(request, labels, [row for row in settled if row["status"] != "labelled"], terms.least_usable)
    facts["refused"] = float(sum(refused(row["raw"] or "") for row in settled))
    said = {(row["prompt"], row["response"]): row["raw"] for row in settled}
    labels = [replace(entry, remark=_remark(request.oracle, by_id[entry.response_id], said)) for entry in labels]
    facts |= annotation_stats(labels, by_id)
    return AnnotationResult(ref=store().write_rows("labels", labels, Label), facts=facts, account=request.account)


def _require_usable(
    request: AnnotationRequest, labels: Sequence[Label], unusable: Sequence[Mapping[str, Any]], least: float
) -> None:
    """Raise UnusableOutput if the labels are not worth what follows; to measure by, any one is enough."""
    scores = [label.score for label in labels if label.status == "labelled"]
    bound = min(least, 1 / max(len(labels), 1)) if request.picks is None else least
    require(
        len(scores),
        len(labels),
        bound,
        field="labelling.least_usable",
        what="answers of the oracle hold a verdict",
        told=last_unusable(request.oracle, unusable[-1]["raw"] or "") if unusable else "",
    )
    if request.picks is not None and least and (score := same_score(scores)) is not None:
        raise UnusableOutput(
            f"all {len(scores)} labels are {score:g}: nothing can be learnt from them. See labelling.oracle and "
            "labelling.rubric, or what it says with `ninefold labels list`; labelling.least_usable 0 goes on all the same"
        )


def _remark(oracle: Oracle, response: Response, said: Mapping[tuple[str, str], str]) -> str:
    return oracle.rationale(said.get((response.prompt, response.text), ""))


def _by_id(request: AnnotationRequest) -> dict[str, Response]:
    return {r.id: r for r in store().rows(request.responses, Response)}


def _buy(
    request: AnnotationRequest, by_id: Mapping[str, Response], ledger: Ledger, terms: LabellingTerms
) -> list[Label]:
    """Ask about what was picked, and return the answers as seen from the picked responses. Raises as `label`."""
    picks = [Selection(i, 0.0) for i in by_id] if request.picks is None else store().rows(request.picks, Selection)
    questions = [_question(pick, by_id) for pick in picks]
    labels = label_responses(
        [question for question, _ in questions],
        LabellingSession(
            ledger,
            request.oracle,
            request.rubric,
            request.account,
            patience=terms.patience,
            least_usable=terms.least_usable,
            purses=terms.purses,
        ),
        max_queries=request.max_queries,
        max_micro_usd=request.max_micro_usd,
        max_tokens=request.max_tokens,
        concurrency=terms.concurrency,
    )
    asked = {question.id: (pick, sign) for pick, (question, sign) in zip(picks, questions, strict=True)}
    return [_as_picked(entry, *asked[entry.response_id]) for entry in labels]


def annotation_stats(labels: Sequence[Label], by_id: Mapping[str, Response]) -> dict[str, float]:
    """Return how the oracle has scored: mean, spread, what could not be used, and whether longer is better to it."""
    usable = [entry for entry in labels if entry.status == "labelled"]
    scores = np.array([entry.score for entry in usable])
    longer = [len(by_id[e.response_id].text) - (len(by_id[e.against].text) if e.against else 0) for e in usable]
    return {
        "quarantined": float(len(labels) - len(usable)),
        "readable": len(usable) / len(labels) if labels else math.nan,
        "distinct_scores": float(len(np.unique(scores))),
        "score_mean": float(scores.mean()) if usable else math.nan,
        "score_std": float(scores.std()) if usable else math.nan,
        "length_correlation": rank_correlation(np.array(longer, dtype=float), scores),
    }


def _question(pick: Selection, by_id: Mapping[str, Response]) -> tuple[Response, int]:
    """Return what the oracle is asked, and the sign of the answer as seen from the picked response."""
    response = by_id[pick.response_id]
    if not pick.against:
        return response, 1
    text, sign = canonical_pair(response.text, by_id[pick.against].text)
    return replace(response, id=f"{pick.response_id} {pick.against}", text=text), sign


def _as_picked(label: Label, pick: Selection, sign: int) -> Label:
    return replace(label, response_id=pick.response_id, against=pick.against, score=sign * label.score)
