"""Stages of AlpacaEval 2: instructions, grades, length-controlled gain."""

from pathlib import Path

import numpy as np

from models.benchmarks.alpaca_eval import Annotation, answers, difficulties, length_controlled
from models.core.data import Label, Prompt, QuestionResult, Response, usable_scores
from models.core.errors import ConfigError
from models.core.registry import Frozen
from models.metrics.length_control import gain_at_equal_length
from tasks.data.prompts import set_aside
from tasks.engine.caching import StageResult, stage
from tasks.engine.store import Ref, store
from tasks.policy.policy_ref import Policy

RAW, AT_EQUAL_LENGTH = "alpaca_eval", "alpaca_eval:lc"


class Instructions(Frozen):
    """Ref of the instructions (Prompt rows, whose ids are their places in the reference), and those that are too long."""

    prompts: Ref
    over_long: tuple[str, ...] = ()


class Judgements(Frozen):
    """Refs of a policy's answers (Response rows) and of how they were judged (Label rows)."""

    responses: Ref
    labels: Ref


@stage(version=1, ignore=["reference"])
def instructions(reference: Path, *, content: str, policy: Policy, max_prompt_tokens: int, limit: int) -> Instructions:
    """Return the first `limit` instructions (0: all) of at most `max_prompt_tokens`; `content` digests the reference."""
    del content
    asked = [Prompt(str(place), answer.instruction) for place, answer in enumerate(answers(reference))]
    short, over_long = set_aside(asked[: limit or None], policy.renderer(), max_prompt_tokens)
    if not short:
        raise ConfigError(f"every instruction passes the run's policy.max_prompt_tokens={max_prompt_tokens}: raise it")
    return Instructions(prompts=store().write_rows("prompts", short, Prompt), over_long=over_long)


@stage(version=1, ignore=["reference"])
def grade_answers(
    judged: Judgements, reference: Path, *, content: str, package: str, at_equal_length: bool
) -> StageResult:
    """Return Graded rows: how likely each answer beats the reference's, as it stands or `at_equal_length`.

    `content` digests the reference, and what else the `package`, of a version, reads. Raises ConfigError where the money has
    not covered every answer.
    """
    del content, package
    annotations = _annotations(judged, reference)
    name, metric = (AT_EQUAL_LENGTH, "length-controlled win rate") if at_equal_length else (RAW, "win rate")
    scores = length_controlled(annotations) if at_equal_length else np.array([a.preferred for a in annotations])
    rows = [QuestionResult(name, a.place, metric, float(score)) for a, score in zip(annotations, scores, strict=True)]
    facts = {"mean": float(scores.mean()), "questions": float(len(rows))}
    return StageResult(ref=store().write_rows("grades", rows, QuestionResult), facts=facts)


@stage(version=1, ignore=["reference"])
def spread_at_equal_length(before: Judgements, after: Judgements, reference: Path, *, content: str) -> dict[str, float]:
    """Return how far below and above the gain at equal length its interval reaches, both policies refitted to resamples."""
    del content
    first, second = ({a.place: a for a in _annotations(judged, reference)} for judged in (before, after))
    shared = sorted(first.keys() & second.keys())
    both = [[table[place] for place in shared] for table in (first, second)]
    gain = gain_at_equal_length(
        np.array([[a.preferred for a in side] for side in both]),
        np.array([[float(len(a.output) - len(a.reference)) for a in side] for side in both]),
        difficulties()[shared],
    )
    return {"below": gain.mean - gain.low, "above": gain.high - gain.mean}


def _annotations(judged: Judgements, reference: Path) -> list[Annotation]:
    asked, said = store().rows(judged.responses, Response), store().rows(judged.labels, Label)
    if len(said) < len(asked):
        raise ConfigError(
            f"the money has covered {len(said)} of {len(asked)} judgements: raise --max-micro-usd. What was bought is kept"
        )
    against = {
        answer.instruction: answer.output for answer in reversed(answers(reference))
    }  # what it was judged against
    preferred = usable_scores(said)
    found = [
        Annotation(int(r.prompt_id), r.prompt, against[r.prompt], r.text, preferred[r.id])
        for r in asked
        if r.id in preferred
    ]
    if not found:
        raise ConfigError(f"none of {len(asked)} judgements can be read: look at ninefold labels list")
    return found
