"""Result types of a run, and the tables that its report is built from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from models.core.arrays import FloatArray
from models.core.data import Comparison, Label, Pair, Response, Score, Selection, to_frame, usable_scores
from models.core.registry import Frozen
from models.metrics.agreement import pair_outcomes
from models.metrics.selective import Decision
from tasks.data.prompts import PromptSets
from tasks.engine.caching import StageResult
from tasks.engine.store import Ref, store
from tasks.evaluator.score import Scored
from tasks.labelling.batches import Batch
from tasks.policy.policy_ref import Policy

HELD_OUT = "held_out.parquet"  # of a run's report folder, made by `per_prompt`


class RunArtifacts(Frozen):
    """Artifacts of a run: its policies, labelled batches, evaluator, and the last scores and preference pairs."""

    prompts: PromptSets
    sft_policy: Policy
    policy: Policy
    checkpoints: tuple[Policy, ...] = ()
    history: tuple[Batch, ...]
    trained_on: tuple[Batch, ...] = ()
    evaluator: StageResult | None = None
    gate: Decision | None = None
    responses: Ref | None = None
    scores: Scored | None = None
    pairs: StageResult | None = None

    def record(self) -> dict[str, Any]:
        """Return where everything lies, as JSON values from which this is made again; facts are the report's."""
        facts: Any = {"gate": True, **{stage: {"facts"} for stage in ("evaluator", "scores", "pairs")}}
        return self.model_dump(mode="json", exclude=facts)


class EvaluatorAgreement(NamedTuple):
    """The evaluator's scores of M_1's held-out answers, and how they agree with the oracle's."""

    scores: Ref
    facts: dict[str, float]


class PolicyPoint(NamedTuple):
    """A policy on the way from M_1 to M_2: the share of the training done, and what is said of its held-out answers."""

    share: float
    facts: dict[str, float]


@dataclass(frozen=True)
class RunResults:
    """What the report is made of: the run's artifacts, M_1's held-out answers, and what the assessments found.

    `order_consistency` is that of an oracle that has compared. `best_of` is about the best of several answers of M_1, by the
    evaluator; `curve` about the policies on the way to M_2.
    """

    artifacts: RunArtifacts
    held_out: Ref
    held_out_labels: Ref
    agreement: EvaluatorAgreement | None
    outcome: StageResult
    order_consistency: float = float("nan")
    best_of: dict[str, float] | None = None
    curve: tuple[PolicyPoint, ...] = ()


def picked(history: tuple[Batch, ...]) -> pd.DataFrame:
    """Return every pick in order: round, tuple or pair, utility, components, and its label (none where unasked)."""
    tables = []
    for round_number, batch in enumerate(history):
        frame = to_frame(store().rows(batch.picks, Selection), Selection)
        texts = to_frame(store().rows(batch.responses, Response), Response)[["id", "prompt", "text"]]
        labels = to_frame(store().rows(batch.labels, Label), Label)[["response_id", "score", "micro_usd", "status"]]
        frame = frame.merge(texts.rename(columns={"id": "response_id"}), on="response_id", how="left")
        frame = frame.assign(against_text=frame.against.map(texts.set_index("id").text))
        tables.append(frame.merge(labels, on="response_id", how="left").assign(round_number=round_number))
    return pd.concat(tables, ignore_index=True) if tables else to_frame([], Selection)


def per_prompt(findings: RunResults, comparisons: list[Comparison]) -> pd.DataFrame:
    """Return what each held-out prompt says, so that arms can be compared prompt by prompt.

    `wins`, `gain`: sums over `comparisons` of M_2 with M_1 by the oracle; `agreed`: sum over the `pairs` of M_1's answers
    that the evaluator orders as the oracle does.
    """
    frame = pd.DataFrame(
        {
            "prompt_id": [c.prompt_id for c in comparisons],
            "wins": [c.won for c in comparisons],
            "gain": [c.after_score - c.before_score for c in comparisons],
            "comparisons": 1,
        }
    )
    table = frame.groupby("prompt_id", sort=True).sum()
    rows, oracle, proxy = both_scored(findings)
    ids, number = np.unique([r.prompt_id for r in rows], return_inverse=True)
    agreed, of = pair_outcomes(oracle, proxy, number.astype(np.int64))
    count = len(ids)
    counted = {"agreed": np.bincount(of, agreed, count), "pairs": np.bincount(of, minlength=count)}
    return table.join(pd.DataFrame(counted, index=ids), how="left").fillna({"agreed": 0.0, "pairs": 0}).reset_index()


def pairs_of(findings: RunResults) -> list[Pair]:
    """Return the preference pairs of the last round."""
    return [] if findings.artifacts.pairs is None else store().rows(findings.artifacts.pairs.ref, Pair)


def both_scored(findings: RunResults) -> tuple[list[Response], FloatArray, FloatArray]:
    """Return M_1's held-out answers that oracle and evaluator have both scored, with their scores."""
    oracle = usable_scores(store().rows(findings.held_out_labels, Label))
    scored = [] if findings.agreement is None else store().rows(findings.agreement.scores, Score)
    proxy = {s.response_id: s.score for s in scored}
    shared = [r for r in store().rows(findings.held_out, Response) if r.id in oracle and r.id in proxy]
    return shared, np.array([oracle[r.id] for r in shared]), np.array([proxy[r.id] for r in shared])
