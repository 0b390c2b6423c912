"""Stages: biases of the evaluator towards length and format."""

from dataclasses import replace

import numpy as np

from models.core.data import Label, Response, Score, usable_scores
from models.metrics.agreement import group_ids
from models.metrics.biases import as_list, format_shift, is_unformatted, longer_preferred
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.evaluator.score import Scored

_LIST = " as a list"  # ends the id of a response that is written so


@stage(version=3)
def reformat(responses: Ref) -> StageResult:
    """Return one response to each prompt, and the same one written as a list; none where all are formatted already."""
    rows = [r for r in store().rows(responses, Response) if is_unformatted(r.text)]
    plain = list({r.prompt_id: r for r in reversed(rows)}.values())
    listed = [replace(r, id=r.id + _LIST, sample=-1 - r.sample, text=as_list(r.text)) for r in plain]
    return StageResult(
        ref=store().write_rows("responses", [r for both in zip(plain, listed, strict=True) for r in both], Response)
    )


@stage(version=2)
def assess_biases(responses: Ref, labels: Ref, scores: Scored, reformatted: Scored | None) -> dict[str, float]:
    """Return how often the longer response is preferred, by the evaluator and by the oracle, and what a list is worth.

    Of the responses that both have scored; `reformatted` are the scores of what `reformat` has made, if anything.
    """
    oracle = usable_scores(store().rows(labels, Label))
    proxy, varied = (
        {s.response_id: s.score for s in store().rows(given.ref, Score)} if given is not None else {}
        for given in (scores, reformatted)
    )
    rows = [r for r in store().rows(responses, Response) if r.id in proxy and r.id in oracle]
    length = np.array([float(len(r.text)) for r in rows])
    prompt = group_ids([r.prompt_id for r in rows])
    facts: dict[str, float] = {}
    for whose, known in (("", proxy), ("_by_oracle", oracle)):
        found = longer_preferred(np.array([known[r.id] for r in rows]), length, prompt)
        facts |= {f"longer_preferred{whose}_{name}": value for name, value in found._asdict().items()}
    both = [plain for plain in varied if plain + _LIST in varied]
    shift = format_shift(
        np.array([varied[plain] for plain in both]),
        np.array([varied[plain + _LIST] for plain in both]),
        float(np.std(list(proxy.values()))) if proxy else 0.0,
    )
    return facts | {f"format_shift_{name}": value for name, value in shift._asdict().items()}
