"""Confidence intervals clustered by prompt: bootstrap and jackknife."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from models.core.arrays import FloatArray, IntArray
from models.metrics.crossed import crossed_mean

_RESAMPLES = 4000


def json_number(value: float) -> float | None:
    """Return a number as JSON holds it: None for NaN and infinities, which JSON has no word for."""
    return value if math.isfinite(value) else None


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN where it is not known. As JSON: an object of three numbers, null for NaN."""

    mean: float
    low: float
    high: float

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return how a field of this type is read from JSON and written to it."""
        number = core_schema.nullable_schema(core_schema.float_schema())
        numbers = core_schema.typed_dict_schema(
            {name: core_schema.typed_dict_field(number) for name in cls._fields}, extra_behavior="forbid"
        )
        read = core_schema.no_info_after_validator_function(cls.of, numbers)
        return core_schema.json_or_python_schema(
            json_schema=read,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), read]),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.written, return_schema=numbers),
        )

    @classmethod
    def of(cls, numbers: Mapping[str, float | None]) -> "Interval":
        """Return the interval that JSON holds."""
        return cls(**{name: math.nan if value is None else value for name, value in numbers.items()})

    def written(self) -> dict[str, float | None]:
        """Return the interval as JSON holds it."""
        return {name: json_number(value) for name, value in self._asdict().items()}


def paired_difference(ours: FloatArray, other: FloatArray) -> Interval:
    """Return mean(ours − other) over paired seeds and its 95 % interval (Student's t); both of shape (seeds,)."""
    return Interval(*crossed_mean((ours - other)[:, None])[:3])


def clustered_mean(values: FloatArray, cluster: IntArray, *, seed: int = 0) -> Interval:
    """Return the mean of `values` and its percentile-bootstrap interval when whole clusters (prompts) are resampled.

    Both arrays have shape (n,). With no value, or a single cluster, the interval is NaN.
    """
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    _, number = np.unique(cluster, return_inverse=True)
    totals, counts = np.bincount(number, weights=values), np.bincount(number)
    if len(totals) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    drawn = _drawn(len(totals), _RESAMPLES, seed)
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def averaged(parts: Sequence[Interval], family: Sequence[str]) -> Interval:
    """Return the mean of estimates, of which those of one `family` may be of the same questions.

    The halves of its interval are theirs, added within a family, as if they moved together, and in quadrature between
    families, which are independent.
    """
    means, lows, highs = np.array(parts).T
    _, number = np.unique(np.array(family), return_inverse=True)
    below, above = (
        float(np.sqrt(np.square(np.bincount(number, weights=np.abs(end - means))).sum()) / len(parts))
        for end in (lows, highs)
    )
    mean = float(means.mean())
    return Interval(mean, mean - below, mean + above)


def weighted_mean(values: FloatArray, weights: FloatArray) -> Interval:
    """Return Σ w v / Σ w of independent rows, both of shape (n,), and its percentile-bootstrap interval."""
    drawn = resampled(np.arange(len(values))) * weights
    low, high = np.quantile(drawn @ values / drawn.sum(axis=1), [0.025, 0.975])
    return Interval(float(weights @ values / weights.sum()), float(low), float(high))


def resampled(cluster: IntArray, *, resamples: int = 1000, seed: int = 0) -> FloatArray:
    """Return how often each of n rows is drawn when whole clusters are resampled, shape (resamples, n)."""
    _, number = np.unique(cluster, return_inverse=True)
    count = int(number.max(initial=-1)) + 1
    drawn = _drawn(count, resamples, seed)
    return np.stack([np.bincount(row, minlength=count) for row in drawn])[:, number].astype(np.float64)


def _drawn(clusters: int, resamples: int, seed: int) -> IntArray:
    return np.random.default_rng(seed).integers(clusters, size=(resamples, clusters))


def jackknife_mean(values: FloatArray, one: IntArray, other: IntArray) -> Interval:
    """Return the mean over pairs of clusters (prompts) and its 95 % interval by leaving out each cluster in turn.

    All arrays have shape (pairs,); `one` and `other` number the clusters of a pair's two sides, which may be the same. The
    delete-one jackknife (Arvesen 1969, for U-statistics) with Student's quantile; NaN with fewer than two clusters, or
    where one of them is in every pair.
    """
    from scipy.stats import t as student

    nothing = Interval(float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan"))
    names, number = np.unique(np.concatenate([one, other]), return_inverse=True)
    sides = np.split(number, 2)
    apart = sides[0] != sides[1]  # a pair counts once for each cluster that it is of
    total, count = np.bincount(sides[0], values, len(names)), np.bincount(sides[0], minlength=len(names)).astype(float)
    total += np.bincount(sides[1][apart], values[apart], len(names))
    count += np.bincount(sides[1][apart], minlength=len(names))
    if len(names) < 2 or (count == len(values)).any():
        return nothing
    without = (values.sum() - total) / (len(values) - count)
    spread = np.sqrt((len(names) - 1) * np.mean((without - without.mean()) ** 2))
    margin = float(spread * student.ppf(0.975, len(names) - 1))
    return Interval(nothing.mean, nothing.mean - margin, nothing.mean + margin)
