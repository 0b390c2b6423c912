"""Diversity metrics of a policy's texts: distinct bigrams, distance between answers."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from models.core.arrays import IntArray
from models.metrics.intervals import Interval, clustered_mean


def apart(texts: Sequence[str], prompt: IntArray) -> Interval:
    """Return how different two answers to one prompt are: 1 − the share of word pairs in common (Jaccard), over prompts.

    0 where a policy repeats itself, 1 where two answers share no two words in a row.
    """
    bigrams = [_bigrams(text.split()) for text in texts]
    found, of = [], []
    for number in np.unique(prompt):
        for one, other in combinations(np.flatnonzero(prompt == number).tolist(), 2):
            both = bigrams[one] | bigrams[other]
            alike = len(bigrams[one] & bigrams[other]) / len(both) if both else float(texts[one] == texts[other])
            found.append(1.0 - alike)
            of.append(number)
    return clustered_mean(np.array(found), np.array(of, dtype=np.int64))


def distinct_bigrams(texts: Sequence[str], words: int) -> float:
    """Return the share of distinct pairs of words (distinct-2, 1510.03055) in the first `words` words of all texts.

    The share falls with the number of words, so that two policies are compared over as many. NaN of nothing.
    """
    pairs: list[tuple[str, str]] = []
    for text in texts:
        mine = text.split()[:words]
        words -= len(mine)
        pairs += pairwise(mine)
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def _bigrams(words: Sequence[str]) -> set[tuple[str, str]]:
    return set(pairwise(words)) if len(words) > 1 else {(word, "") for word in words}
