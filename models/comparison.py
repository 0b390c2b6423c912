"""Arms against each other: over seeds and held-out prompts, paired, with the number of tests taken into account."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.stats import Floats, Interval

_RESAMPLES = 4000


class Outcomes(NamedTuple):
    """What one run's held-out prompts say: sums of an outcome and how many it is the sum of, both of shape (prompts,)."""

    totals: Floats
    counts: Floats

    @property
    def mean(self) -> float:
        """Return the mean outcome; NaN where nothing was counted."""
        counted = self.counts.sum()
        return float(self.totals.sum() / counted) if counted else float("nan")


class Difference(NamedTuple):
    """A mean difference with its 95 % interval, and the probability of one as large if there were none (two-sided)."""

    mean: float
    low: float
    high: float
    p: float


class Spread(NamedTuple):
    """Standard deviations of a figure over seeds: in all, and by source where the seeds are crossed (else NaN).

    `total` is √ of the total variance, as the paper reports it.
    """

    total: float
    selection: float
    training: float
    rest: float


def mean_over_seeds(runs: Sequence[Outcomes], *, seed: int = 0) -> Interval:
    """Return the mean over runs (seeds) of their means; the interval resamples seeds, then prompts within each."""
    drawn = _resampled(runs, None, seed)
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Interval(_mean(runs), float(low), float(high))


def paired_bootstrap(ours: Sequence[Outcomes], other: Sequence[Outcomes], *, seed: int = 0) -> Difference:
    """Return the mean difference of paired runs: run n of both has the same seeds and the same held-out prompts.

    Resamples pairs of runs, then prompts within each, the same for both. p counts the resamples on the other side of
    zero, one added (Davison & Hinkley 1997, eq. 4.11), so that it is never 0. Raises ValueError if they do not pair up.
    """
    if len(ours) != len(other) or not ours:
        raise ValueError(f"{len(ours)} runs do not pair with {len(other)}: compare the same seeds")
    drawn = _resampled(ours, other, seed)
    drawn = drawn[np.isfinite(drawn)]
    mean = _mean(ours) - _mean(other)
    if not len(drawn):
        return Difference(mean, float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(mean, float(low), float(high), min(1.0, 2 * float(beyond + 1) / (len(drawn) + 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values (1979), in the same order: all of them may be read at once."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, number in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = largest
    return adjusted


def spread(values: Mapping[tuple[int, int], float]) -> Spread:
    """Return how a figure varies over (selection seed, training seed).

    Where every selection seed meets every training seed, the variance is that of a two-way random-effects model without
    replication, estimated by mean squares (negative ones are 0); `rest` is their interaction and what else varies.
    """
    first, second = (sorted({key[side] for key in values}) for side in (0, 1))
    numbers = np.array(list(values.values()))
    nan = float("nan")
    crossed = len(first) > 1 and len(second) > 1 and len(values) == len(first) * len(second)
    if not crossed:
        return Spread(float(numbers.std(ddof=1)) if len(numbers) > 1 else nan, nan, nan, nan)
    table = np.array([[values[s, t] for t in second] for s in first])
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    residual = table - rows[:, None] - columns[None, :] + table.mean()
    rest = float((residual**2).sum() / ((len(first) - 1) * (len(second) - 1)))
    selection = max(0.0, float(rows.var(ddof=1)) - rest / len(second))
    training = max(0.0, float(columns.var(ddof=1)) - rest / len(first))
    return Spread(*(float(np.sqrt(v)) for v in (selection + training + rest, selection, training, rest)))


def pareto(cost: Sequence[float], value: Sequence[float]) -> list[int]:
    """Return the numbers of the arms that no other is both cheaper (or as cheap) and better (or as good) than, by cost."""
    found, best = list[int](), -np.inf
    for number in sorted(range(len(cost)), key=lambda n: (cost[n], -value[n])):
        if value[number] > best:
            found.append(number)
            best = value[number]
    return found


def _mean(runs: Sequence[Outcomes]) -> float:
    means = np.array([run.mean for run in runs])
    return float(np.nanmean(means)) if np.isfinite(means).any() else float("nan")


def _resampled(ours: Sequence[Outcomes], other: Sequence[Outcomes] | None, seed: int) -> Floats:
    """Return the mean (or mean difference) of every resample, shape (resamples,)."""
    rng = np.random.default_rng(seed)
    per_run = np.stack(
        [_prompts_resampled(run, other[number] if other else None, rng) for number, run in enumerate(ours)]
    )
    chosen = rng.integers(len(ours), size=(len(ours), _RESAMPLES))
    return np.asarray(np.take_along_axis(per_run, chosen, axis=0).mean(axis=0))


def _prompts_resampled(run: Outcomes, other: Outcomes | None, rng: np.random.Generator) -> Floats:
    drawn = rng.integers(len(run.totals), size=(_RESAMPLES, len(run.totals)))
    means = _ratio(run, drawn)
    return means if other is None else means - _ratio(other, drawn)


def _ratio(run: Outcomes, drawn: NDArray[np.int64]) -> Floats:
    counted = run.counts[drawn].sum(axis=1)
    unknown = np.full(len(drawn), np.nan)
    return np.asarray(np.divide(run.totals[drawn].sum(axis=1), counted, out=unknown, where=counted > 0))
