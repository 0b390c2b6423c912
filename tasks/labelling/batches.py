"""Labelled batches of a run, and the training data, anchors and labels derived from them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from models.core.arrays import Float32Array
from models.core.data import Label, Response, ScoredExample, usable_comparisons, usable_scores
from models.core.registry import Frozen
from models.evaluators.base import Examples
from models.evaluators.training_data import PairwiseData, PointwiseData, TrainingData
from tasks.engine.store import Ref, store


class Batch(Frozen):
    """One acquired batch. `vectors` are the pool's in the strategy's view, `features` in the evaluator's."""

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"picks"}
    )  # their components are for people: the labels are what counts

    picks: Ref
    responses: Ref
    labels: Ref
    vectors: Ref | None = None
    features: Ref | None = None


def labels_of(history: Sequence[Batch]) -> list[Label]:
    """Return every label of the history, quarantined ones included."""
    return [label for batch in history for label in store().rows(batch.labels, Label)]


def training_data_of(history: Sequence[Batch]) -> TrainingData:
    """Return what the oracle has said and could be read: its comparisons where it compares, else its scores."""
    compared = [_compared(batch) for batch in history]
    if any(len(part.preference) for part in compared):
        first, second = (_joined([getattr(part, side) for part in compared]) for side in ("first", "second"))
        return PairwiseData(first, second, np.concatenate([part.preference for part in compared]))
    scored = [_scored(batch) for batch in history]
    return PointwiseData(
        _joined([part.tuples for part in scored]), np.concatenate([[], *(part.scores for part in scored)])
    )


def judged(eft_examples: Ref | None) -> Sequence[ScoredExample]:
    """Return the EFT examples' rows, none where there is no seed."""
    return () if eft_examples is None else store().rows(eft_examples, ScoredExample)


def _scored(batch: Batch) -> PointwiseData:
    labels = store().rows(batch.labels, Label)
    known, remarks = usable_scores(labels), {label.response_id: label.remark for label in labels}
    tuples = replace(_tuples(batch, list(known)), remarks=[remarks[response_id] for response_id in known])
    return PointwiseData(tuples, np.array(list(known.values())))


def _compared(batch: Batch) -> PairwiseData:
    known = usable_comparisons(store().rows(batch.labels, Label))
    first, second = (_tuples(batch, [pair[side] for pair in known]) for side in (0, 1))
    return PairwiseData(first, second, np.array(list(known.values())))


def _tuples(batch: Batch, ids: Sequence[str]) -> Examples:
    responses = store().rows(batch.responses, Response)
    row_of = {r.id: row for row, r in enumerate(responses)}
    rows = [row_of[response_id] for response_id in ids]
    features = None if batch.features is None else np.asarray(store().matrix(batch.features)[rows])
    return Examples([responses[row] for row in rows], features)


def _joined(parts: Sequence[Examples]) -> Examples:
    features = [part.features for part in parts if part.features is not None]
    return Examples(
        [r for part in parts for r in part.responses],
        np.concatenate(features) if features else None,
        [remark for part in parts for remark in part.remarks],
    )


def anchors(history: Sequence[Batch], current: Ref) -> Float32Array | None:
    """Return the vectors labelled in pools other than the current one; None if there are none."""
    found = []
    for batch in history:
        if batch.responses == current or batch.vectors is None:
            continue
        row_of = {r.id: row for row, r in enumerate(store().rows(batch.responses, Response))}
        rows = [row_of[asked] for label in store().rows(batch.labels, Label) for asked in label.asked]
        found.append(np.asarray(store().matrix(batch.vectors)[rows]))
    return np.concatenate(found) if found else None
