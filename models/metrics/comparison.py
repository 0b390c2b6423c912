"""Compare arms over seeds and prompts: paired differences, Holm correction, Pareto fronts, variance by seed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray
from models.metrics.crossed import Crossed, Seeds, crossed_mean


class Outcomes(NamedTuple):
    """What one run's held-out prompts say: per prompt the sum of an outcome, and how many it is the sum of.

    Each prompt stands once in `prompts`, in any order; one with a count of 0 says nothing.
    """

    prompts: Sequence[str]
    totals: FloatArray
    counts: FloatArray

    @property
    def mean(self) -> float:
        """Return the mean outcome; NaN where nothing was counted."""
        counted = self.counts.sum()
        return float(self.totals.sum() / counted) if counted else float("nan")

    def at(self, prompts: Sequence[str]) -> "Outcomes":
        """Return what these of the prompts say."""
        place = {name: number for number, name in enumerate(self.prompts)}
        rows = np.array([place[name] for name in prompts], dtype=np.int64)
        return Outcomes(prompts, self.totals[rows], self.counts[rows])

    @property
    def counted(self) -> list[str]:
        """Return the prompts that say anything."""
        return [name for name, count in zip(self.prompts, self.counts, strict=True) if count > 0]


class Difference(NamedTuple):
    """A mean difference with its 95 % interval, p-value and degrees of freedom, and how many prompts it is of.

    `dropped` prompts were counted in one run of some pair and not in the other. All is NaN without a common prompt.
    """

    mean: float
    low: float
    high: float
    p: float
    df: float
    prompts: int
    dropped: int


class Spread(NamedTuple):
    """Standard deviations of a figure over seeds: in all, and by source where the seeds are crossed (else NaN).

    `total` is √ of the total variance, as the paper reports it.
    """

    total: float
    selection: float
    training: float
    rest: float


def mean_of(runs: Sequence[Outcomes], seeds: Seeds) -> Crossed:
    """Return the mean over runs (seeds) of their means, with an interval for other seeds and other prompts."""
    return crossed_mean(_table([(run.counted, _values(run.at(run.counted))) for run in runs]), seeds)


def difference(ours: Sequence[Outcomes], other: Sequence[Outcomes], seeds: Seeds) -> Difference:
    """Return the mean difference of paired runs: run n of both has the seeds number n.

    Each pair is compared on the prompts that both count. Raises ConfigError if the runs do not pair up.
    """
    if len(ours) != len(other) or not ours:
        raise ValueError(f"{len(ours)} runs do not pair with {len(other)}: compare the same seeds")
    cells, dropped = list[tuple[list[str], FloatArray]](), set[str]()
    for one, two in zip(ours, other, strict=True):
        known = set(two.counted)
        common = [name for name in one.counted if name in known]
        cells.append((common, _values(one.at(common)) - _values(two.at(common))))
        dropped |= known ^ set(one.counted)
    found = crossed_mean(_table(cells), seeds)
    return Difference(*found, prompts=len({name for names, _ in cells for name in names}), dropped=len(dropped))


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


def _values(run: Outcomes) -> FloatArray:
    """Return a value for every prompt of a run that counts on all of them, such that their mean is the run's.

    A prompt weighs by what was counted on it, as in the run's own report: the value is the ratio Σ totals ÷ Σ counts, plus
    what the prompt's total is off it, in mean counts (the linearised ratio estimator; Cochran 1977, eq. 6.13).
    """
    if not len(run.counts):
        return np.zeros(0)
    return np.asarray(run.mean + (run.totals - run.mean * run.counts) / run.counts.mean())


def _table(cells: Sequence[tuple[Sequence[str], FloatArray]]) -> FloatArray:
    """Return the values of all runs, shape (runs, prompts), NaN where a run lacks the prompt."""
    place = {name: number for number, name in enumerate(sorted({name for names, _ in cells for name in names}))}
    table = np.full((len(cells), len(place)), np.nan)
    for row, (names, values) in zip(table, cells, strict=True):
        row[[place[name] for name in names]] = values
    return table
