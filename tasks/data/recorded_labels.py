"""Stages over recorded labels: load them as a pool, compute one learning curve."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from models.acquisition.base import Acquisition
from models.core.data import Label, Prompt, Response, text_hash
from models.core.randomness import stream
from models.core.registry import Frozen
from models.embeddings.base import View
from models.evaluators.base import Evaluator
from models.generators.base import response_id
from models.metrics.agreement import group_ids
from models.oracles.replay import Replay
from models.studies.recorded import Point, Recording, learning_curve
from tasks.engine.caching import stage
from tasks.engine.store import Ref, store


class Recorded(Frozen):
    """Refs of the tuples (Response rows) and of their labels (Label rows, in the same order)."""

    responses: Ref
    labels: Ref


class Curve(Frozen):
    """One strategy's learning curve for one seed."""

    points: tuple[Point, ...]


class ViewRef(NamedTuple):
    """The vectors of a view."""

    view: View
    vectors: Ref


@stage(version=2)
def load_recording(labels: Replay, *, fingerprint: str, responses_per_prompt: int) -> Recorded:
    """Return at most `responses_per_prompt` tuples of each prompt, chosen by the hash of their text.

    `fingerprint` digests the table, so that an edited file is loaded anew.
    """
    del fingerprint
    frame = labels.frame()
    frame = frame.assign(order=frame.response.map(text_hash)).sort_values(["prompt", "order"])
    frame = frame.groupby("prompt", sort=False).head(responses_per_prompt)
    seen: Counter[str] = Counter()
    tuples, answers = [], []
    for prompt, response, score, micro_usd in frame[["prompt", "response", "score", "micro_usd"]].itertuples(
        index=False, name=None
    ):
        prompt_id, sample = Prompt.of(prompt).id, seen[prompt]
        seen[prompt] += 1
        number = response_id(prompt_id, sample, response)
        tuples.append(Response(number, prompt_id, prompt, sample, response, tokens=0, logprob=float("nan")))
        answers.append(Label(number, score, int(micro_usd), tokens=0, bought=False, status="labelled"))
    return Recorded(
        responses=store().write_rows("responses", tuples, Response), labels=store().write_rows("labels", answers, Label)
    )


@stage(version=1, told=False)
def curve(
    recorded: Recorded,
    views: tuple[ViewRef, ...],
    strategy: Acquisition,
    evaluator: Evaluator,
    *,
    budgets: tuple[int, ...],
    held_out: float,
    seed: int,
    shuffle: bool,
) -> Curve:
    """Return the agreement with the oracle after each budget; a seed fixes the split, the first batch and every draw."""
    tuples = store().rows(recorded.responses, Response)
    labels = store().rows(recorded.labels, Label)
    prompt = group_ids([r.prompt_id for r in tuples])
    recording = Recording(
        responses=tuples,
        prompt=prompt,
        scores=np.array([label.score for label in labels]),
        micro_usd=np.array([label.micro_usd for label in labels], dtype=np.int64),
        vectors={view: store().matrix(ref) for view, ref in views},
    )
    pool, test = recording.split(held_out, stream(seed, 0, "split"))
    return Curve(
        points=tuple(learning_curve(pool, test, strategy, evaluator, budgets=budgets, seed=seed, shuffle=shuffle))
    )
