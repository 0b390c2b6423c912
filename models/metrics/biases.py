"""Bias metrics of an evaluator: preference for length and for formatting."""

import re

import numpy as np

from models.core.arrays import FloatArray, IntArray
from models.metrics.agreement import agrees, within_prompt_pairs
from models.metrics.intervals import Interval, clustered_mean

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?![a-z])")  # not after "e.g."
_FORMATTED = re.compile(r"^\s*([-*•#]|\d+[.)]|```)", re.MULTILINE)

_ROUNDING = 1e-6  # a smaller spread of scores, beside them, is none


def longer_preferred(scores: FloatArray, length: FloatArray, prompt: IntArray) -> Interval:
    """Return in which share of the pairs of one prompt and of different length the longer response scores higher.

    All of shape (N,); a tie counts one half; the interval is over prompts.
    """
    first, second = within_prompt_pairs(prompt)
    longer = length[first] - length[second]
    first, second = first[longer != 0], second[longer != 0]
    preferred = agrees(scores[first] - scores[second], longer[longer != 0])
    return clustered_mean(preferred, prompt[first])


def format_shift(plain: FloatArray, formatted: FloatArray, spread: float) -> Interval:
    """Return by how many standard deviations of scores, `spread`, the same text scores higher as a list; both (N,)."""
    if spread <= _ROUNDING * max(1.0, float(np.abs(plain).max(initial=0.0))):
        return Interval(float("nan"), float("nan"), float("nan"))
    return clustered_mean((formatted - plain) / spread, np.arange(len(plain)))


def is_unformatted(text: str) -> bool:
    """Whether a text is no list and has no headings or code."""
    return _FORMATTED.search(text) is None


def as_list(text: str) -> str:
    """Return the same words as a list with a bold beginning, a sentence to a line."""
    if not text.strip():
        return text
    first, *rest = _SENTENCE_END.split(text.strip())
    return "\n".join([f"- **{first}**", *[f"- {sentence}" for sentence in rest]])
