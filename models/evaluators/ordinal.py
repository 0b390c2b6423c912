"""Bin scores into ordered levels, and resample so that levels are balanced."""

import numpy as np

from models.core.arrays import FloatArray, IntArray
from models.core.rubric import LEVELS


def levels_of(scores: FloatArray, most: int = LEVELS) -> IntArray:
    """Cut N scores into at most so many levels, of equal size where they are not tied; equal scores share a level."""
    distinct, rank = np.unique(scores, return_inverse=True)
    if len(distinct) > most:
        edges = np.unique(np.quantile(scores, np.arange(1, most) / most))
        _, rank = np.unique(np.searchsorted(edges, scores, side="left"), return_inverse=True)
        if rank.max() == 0:  # nearly all labels are the highest score
            rank = scores == distinct[-1]
    return rank.astype(np.int64)


def balanced(scores: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return n of n rows, drawn so that each level is as frequent: distinct scores, or six equal parts of their range."""
    _, level = np.unique(scores, return_inverse=True)
    if level.max(initial=0) >= LEVELS:
        edges = np.linspace(scores.min(), scores.max(), LEVELS + 1)[1:-1]
        _, level = np.unique(np.digitize(scores, edges), return_inverse=True)
    weight = 1 / np.bincount(level)[level]
    return rng.choice(len(scores), size=len(scores), p=weight / weight.sum())
