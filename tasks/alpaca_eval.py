"""AlpacaEval 2 as stages: the instructions a policy can read, and the grades of its answers to them."""

from pathlib import Path

import numpy as np

from models.alpaca_eval import Annotation, answers, length_controlled
from models.plugins import Frozen
from models.preference import Graded, Label, Prompt, Response, usable_scores
from tasks.caching import Product, stage
from tasks.policy import Policy
from tasks.prompts import set_aside
from tasks.store import Ref, store

RAW, AT_EQUAL_LENGTH = "alpaca_eval", "alpaca_eval:lc"


class Instructions(Frozen):
    """Ref of the instructions (Prompt rows, whose ids are their places in the reference), and those that are too long."""

    prompts: Ref
    over_long: tuple[str, ...] = ()


@stage(version=1, ignore=["reference"])
def instructions(reference: Path, *, content: str, policy: Policy, max_prompt_tokens: int, limit: int) -> Instructions:
    """Return the first `limit` instructions (0: all) of at most `max_prompt_tokens`; `content` digests the reference."""
    del content
    asked = [Prompt(str(place), answer.instruction) for place, answer in enumerate(answers(reference))]
    short, over_long = set_aside(asked[: limit or None], policy, max_prompt_tokens)
    return Instructions(prompts=store().write_rows("prompts", short, Prompt), over_long=over_long)


@stage(version=1, ignore=["reference"])
def grade_answers(
    responses: Ref, labels: Ref, reference: Path, *, content: str, package: str, at_equal_length: bool
) -> Product:
    """Return Graded rows: how likely each answer beats the reference's, as it stands or `at_equal_length`.

    Both need the `package`, whose version they come from. Raises ValueError where the money has not covered every answer.
    """
    del content, package
    asked, said = store().rows(responses, Response), store().rows(labels, Label)
    if len(said) < len(asked):
        raise ValueError(
            f"the money has covered {len(said)} of {len(asked)} judgements: raise --max-micro-usd. What was bought is kept"
        )
    against, preferred = answers(reference), usable_scores(said)
    annotations = [
        Annotation(int(r.prompt_id), r.prompt, against[int(r.prompt_id)].output, r.text, preferred[r.id])
        for r in asked
        if r.id in preferred
    ]
    if not annotations:
        raise ValueError(f"none of {len(asked)} judgements can be read: look at ninefold labels list")
    name, metric = (AT_EQUAL_LENGTH, "length-controlled win rate") if at_equal_length else (RAW, "win rate")
    scores = length_controlled(annotations) if at_equal_length else np.array([a.preferred for a in annotations])
    rows = [Graded(name, a.place, metric, float(score)) for a, score in zip(annotations, scores, strict=True)]
    facts = {"mean": float(scores.mean()), "questions": float(len(rows)), "unread": float(len(asked) - len(rows))}
    return Product(ref=store().write_rows("grades", rows, Graded), facts=facts)
