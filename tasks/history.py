"""What has been bought so far: for each batch, which pool it was picked from, its labels and its vectors."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from models.plugins import Frozen
from models.preference import Label, Response, usable_scores
from tasks.store import Ref, store


class Batch(Frozen):
    """One acquired batch. `vectors` are the pool's in the strategy's view, `features` in the evaluator's."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"picks"})  # why is for people: the labels are what counts

    picks: Ref
    responses: Ref
    labels: Ref
    vectors: Ref | None = None
    features: Ref | None = None


def labels_of(history: Sequence[Batch]) -> list[Label]:
    """Return every label of the history, quarantined ones included."""
    return [label for batch in history for label in store().rows(batch.labels, Label)]


def scores_of(history: Sequence[Batch]) -> dict[str, float]:
    """Return the expert's score by response id, over the whole history."""
    return usable_scores(labels_of(history))


def labelled(
    history: Sequence[Batch],
) -> tuple[list[Response], NDArray[np.float64], NDArray[np.float32] | None]:
    """Return the labelled tuples, their scores (n,) and their features (n, d) where the batches have them."""
    tuples: list[Response] = []
    scores: list[float] = []
    features: list[NDArray[np.float32]] = []
    for batch in history:
        responses = store().rows(batch.responses, Response)
        row_of = {r.id: row for row, r in enumerate(responses)}
        known = usable_scores(store().rows(batch.labels, Label))
        rows = [row_of[response_id] for response_id in known]
        tuples += [responses[row] for row in rows]
        scores += known.values()
        if batch.features is not None:
            features.append(np.asarray(store().matrix(batch.features)[rows]))
    return tuples, np.array(scores), np.concatenate(features) if features else None


def anchors(history: Sequence[Batch], current: Ref) -> NDArray[np.float32] | None:
    """Return the vectors labelled in pools other than the current one; None if there are none."""
    found = []
    for batch in history:
        if batch.responses == current or batch.vectors is None:
            continue
        row_of = {r.id: row for row, r in enumerate(store().rows(batch.responses, Response))}
        rows = [row_of[label.response_id] for label in store().rows(batch.labels, Label)]
        found.append(np.asarray(store().matrix(batch.vectors)[rows]))
    return np.concatenate(found) if found else None
