"""Text features of responses: length, lists, digits, vocabulary."""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from models.core.arrays import FloatArray

LENGTH = ("log_characters", "log_characters_squared")
STYLE = (
    "log_words",
    "log_lines",
    "log_bullets",
    "log_numbered",
    "log_bold",
    "log_code_fences",
    "log_digits",
    "ends_whole",
    "log_commas",
    "distinct_words",
    "log_questions",
    "log_exclamations",
    "capitals",
    "characters_per_word",
    "log_colons",
    "first_person_start",
    "apology",
    "prompt_words_repeated",
    "log_prompt_characters",
)


def length(texts: Sequence[str]) -> FloatArray:
    """Return log(1 + characters) and its square, shape (N, 2): more is better only up to a point."""
    log = np.log1p([len(text) for text in texts])
    return np.stack([log, log**2], axis=1)


def style(prompts: Sequence[str], texts: Sequence[str]) -> FloatArray:
    """Return the columns of STYLE, shape (N, len(STYLE))."""
    return np.array([_style(x, y) for x, y in zip(prompts, texts, strict=True)], dtype=np.float64).reshape(
        -1, len(STYLE)
    )


@lru_cache(maxsize=100_000)  # a pool is scored again after every batch
def _style(prompt: str, text: str) -> tuple[float, ...]:
    words = text.lower().split()
    asked = set(prompt.lower().split())
    counts = [
        len(words),
        text.count("\n"),
        len(re.findall(r"^\s*[-*•]", text, re.MULTILINE)),
        len(re.findall(r"^\s*\d+[.)]", text, re.MULTILINE)),
        text.count("**"),
        text.count("```"),
        sum(character.isdigit() for character in text),
    ]
    return (
        *np.log1p(counts),
        float(text.rstrip()[-1:] in tuple('.!?)`"')),
        np.log1p(text.count(",")),
        len(set(words)) / (len(words) + 1),
        np.log1p(text.count("?")),
        np.log1p(text.count("!")),
        sum(character.isupper() for character in text) / (len(text) + 1),
        float(np.mean([len(word) for word in words])) if words else 0.0,
        np.log1p(text.count(":")),
        float(bool(re.search(r"\bI\b", text[:40]))),
        float("sorry" in text[:200].lower()),
        len(asked & set(words)) / (len(asked) + 1),
        np.log1p(len(prompt)),
    )
