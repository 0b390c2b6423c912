"""Intervals: the bootstrap over prompts, because responses to one prompt are not independent."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RESAMPLES = 4000


class Interval(NamedTuple):
    """A mean and its 95 % percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_difference(ours: Floats, other: Floats, *, seed: int = 0) -> Interval:
    """Return mean(ours − other) and its interval when whole pairs (seeds) are resampled; both of shape (pairs,)."""
    return clustered_mean(ours - other, np.arange(len(ours)), seed=seed)


def clustered_mean(values: Floats, cluster: NDArray[np.int64], *, seed: int = 0) -> Interval:
    """Return the mean of `values` and its interval when whole clusters (prompts) are resampled.

    Both arrays have shape (n,). With no value, or a single cluster, the interval is NaN.
    """
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    _, number = np.unique(cluster, return_inverse=True)
    totals, counts = np.bincount(number, weights=values), np.bincount(number)
    if len(totals) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(len(totals), size=(_RESAMPLES, len(totals)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
