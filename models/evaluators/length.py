"""The control that an evaluator must beat: longer is better, or worse, whichever the labels say."""

import json
from typing import Literal

import numpy as np

from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_trainable

_FILE = "length.json"


class Length(Evaluator):
    """±log(1 + characters), scaled to the labels by least squares; a single member."""

    kind: Literal["length"] = "length"

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_trainable(scores)
        length = _log_length(tuples)
        slope = 0.0 if np.ptp(length) == 0 else float(np.polyfit(length, scores, 1)[0])
        centre = float(scores.mean() - slope * length.mean())
        (bench.folder / _FILE).write_text(json.dumps({"slope": slope, "centre": centre}))
        return {"slope": slope}

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        saved = json.loads((bench.folder / _FILE).read_text())
        return np.asarray(saved["slope"] * _log_length(tuples) + saved["centre"])[None, :]


def _log_length(tuples: Tuples) -> Floats:
    return np.log1p([len(r.text) for r in tuples.responses])
