"""What has been bought so far: for each batch, which pool it was picked from, its labels and its vectors."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.plugins import Frozen
from models.preference import Label, Response, usable_comparisons, usable_scores
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


class Compared(NamedTuple):
    """Compared responses, n of each side, the expert's preference (n,) and features (n, d) where the batches have them."""

    first: list[Response]
    second: list[Response]
    preference: NDArray[np.float64]
    first_features: NDArray[np.float32] | None
    second_features: NDArray[np.float32] | None


def compared(history: Sequence[Batch]) -> Compared:
    """Return every comparison of the history, quarantined ones left out."""
    sides: tuple[list[Response], list[Response]] = ([], [])
    features: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    preference: list[float] = []
    for batch in history:
        responses = store().rows(batch.responses, Response)
        row_of = {r.id: row for row, r in enumerate(responses)}
        known = usable_comparisons(store().rows(batch.labels, Label))
        preference += known.values()
        for side, found in enumerate(features):
            rows = [row_of[pair[side]] for pair in known]
            sides[side].extend(responses[row] for row in rows)
            if batch.features is not None:
                found.append(np.asarray(store().matrix(batch.features)[rows]))
    first, second = (np.concatenate(found) if found else None for found in features)
    return Compared(*sides, np.array(preference), first, second)


def anchors(history: Sequence[Batch], current: Ref) -> NDArray[np.float32] | None:
    """Return the vectors labelled in pools other than the current one; None if there are none."""
    found = []
    for batch in history:
        if batch.responses == current or batch.vectors is None:
            continue
        row_of = {r.id: row for row, r in enumerate(store().rows(batch.responses, Response))}
        rows = [row_of[asked] for label in store().rows(batch.labels, Label) for asked in label.asked]
        found.append(np.asarray(store().matrix(batch.vectors)[rows]))
    return np.concatenate(found) if found else None
