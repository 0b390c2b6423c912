"""Learning-curve metrics: area, labels to a target accuracy, saving against another strategy."""

from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray
from models.metrics.intervals import Interval

_RESAMPLES = 2000


def area(labels: FloatArray, accuracy: FloatArray) -> FloatArray:
    """Return the mean height of each curve over log(labels), shape (seeds,), from `accuracy` of shape (seeds, budgets).

    `labels` has shape (budgets,): doubling the budget counts alike anywhere on the curve.
    """
    x = np.log(labels)
    return np.asarray(np.trapezoid(accuracy, x, axis=-1) / (x[-1] - x[0]))


def reach(labels: FloatArray, curve: FloatArray, target: float) -> float:
    """Return the labels at which a mean curve first reaches `target`, interpolated over log(labels).

    A curve that starts above it gives the smallest budget, one that never reaches it the largest: bounds, either way.
    """
    above = np.flatnonzero(curve >= target)
    if not len(above):
        return float(labels[-1])
    place = int(above[0])
    if place == 0:
        return float(labels[0])
    share = (target - curve[place - 1]) / (curve[place] - curve[place - 1])
    x = np.log(labels)
    return float(np.exp(x[place - 1] + share * (x[place] - x[place - 1])))


class Saving(NamedTuple):
    """What a strategy saves on the way to the target: labels and micro-dollars, with 95 % intervals over seeds."""

    labels: Interval
    micro_usd: Interval


def saving(
    labels: FloatArray,
    micro_usd: tuple[FloatArray, FloatArray],
    accuracy: tuple[FloatArray, FloatArray],
    *,
    place: int,
    seed: int = 0,
) -> Saving:
    """Compare a strategy with the control at the control's own accuracy for the budget number `place`.

    Pairs are (strategy, control), each of shape (seeds, budgets); whole seeds are resampled, both sides alike.
    """
    seeds = len(accuracy[0])
    rng = np.random.default_rng(seed)
    draws = np.concatenate([np.arange(seeds)[None], rng.integers(seeds, size=(_RESAMPLES, seeds))])
    saved = np.empty((len(draws), 2))
    for number, drawn in enumerate(draws):
        ours, control = (side[drawn].mean(axis=0) for side in accuracy)
        cost, control_cost = (side[drawn].mean(axis=0) for side in micro_usd)
        needed = reach(labels, ours, float(control[place]))
        price = float(np.interp(needed, labels, cost))
        saved[number] = labels[place] - needed, control_cost[place] - price
    low, high = np.quantile(saved[1:], [0.025, 0.975], axis=0)
    return Saving(*(Interval(float(saved[0, n]), float(low[n]), float(high[n])) for n in range(2)))
