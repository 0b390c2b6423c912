"""Length-only evaluator: the control that every other one must beat."""

import json
from typing import Literal

import numpy as np
from typing_extensions import override

from models.core.arrays import FloatArray
from models.evaluators.base import Evaluator, Examples, FitContext, check_trainable

_FILE = "length.json"


class Length(Evaluator):
    """±log(1 + characters), scaled to the labels by least squares; a single member."""

    kind: Literal["length"] = "length"

    @override
    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        check_trainable(scores)
        length = _log_length(tuples)
        slope = 0.0 if np.ptp(length) == 0 else float(np.polyfit(length, scores, 1)[0])
        centre = float(scores.mean() - slope * length.mean())
        (context.folder / _FILE).write_text(json.dumps({"slope": slope, "centre": centre}))
        return {"slope": slope}

    @override
    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        saved = json.loads((context.folder / _FILE).read_text())
        return np.asarray(saved["slope"] * _log_length(tuples) + saved["centre"])[None, :]


def _log_length(tuples: Examples) -> FloatArray:
    return np.log1p([len(r.text) for r in tuples.responses])
