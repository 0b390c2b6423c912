"""Ridge regression with a random effect per group, its penalty by leave-one-out error, and a calibrated temperature."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_MOST_PAIRS = 20_000
_TEMPERATURES = (1e-3, 1e3)


class Chosen(NamedTuple):
    """The penalty, and the prediction of each row by a fit without it, both of the transformed problem."""

    alpha: float
    left_out: Floats


def within(columns: Floats, group: Rows, ratio: float) -> Floats:
    """Return the rows less a part of their group's mean: generalised least squares under a random effect per group.

    y_i = x_i·w + u_g + ε with Var(u)/Var(ε) = `ratio`; a group of n rows loses the share 1 − 1/√(1 + n·ratio) of its mean
    (Fuller and Battese 1973). 0 changes nothing, a large ratio compares within groups alone. `columns` has shape (N, p).
    """
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), columns.shape[1]))
    np.add.at(total, number, columns)
    share = 1.0 - 1.0 / np.sqrt(1.0 + count * ratio)
    return np.asarray(columns - (share / count)[number, None] * total[number])


def choose_penalty(features: Floats, target: Floats, alphas: Floats) -> Chosen:
    """Return the penalty of least leave-one-out squared error (exact, from one decomposition)."""
    left, size, _ = np.linalg.svd(features, full_matrices=False)
    along, best = left.T @ target, (np.inf, float(alphas[0]), target)
    for alpha in alphas:
        shrink = size**2 / (size**2 + alpha)
        leverage = np.minimum((left**2) @ shrink, 1.0 - 1e-9)
        residual = (target - left @ (shrink * along)) / (1.0 - leverage)
        error = float(np.mean(residual**2))
        if error < best[0]:
            best = (error, float(alpha), target - residual)
    return Chosen(best[1], best[2])


def solve(features: Floats, target: Floats, weight: Floats, alpha: float) -> Floats:
    """Return argmin_w Σ weight_i (y_i − x_i·w)² + alpha ‖w‖², shape (p,)."""
    weighted = features * weight[:, None]
    return np.asarray(np.linalg.solve(features.T @ weighted + alpha * np.eye(features.shape[1]), weighted.T @ target))


def temperature(proxy: Floats, expert: Floats, group: Rows, rng: np.random.Generator) -> float:
    """Return T such that σ((proxy_i − proxy_j)/T) is best as the probability that the expert prefers i (least log loss).

    Over pairs of the same group; where they are fewer than ten, over pairs of any.
    """
    first, second = np.triu_indices(len(proxy), k=1)
    untied = expert[first] != expert[second]
    same = untied & (group[first] == group[second])
    kept = np.flatnonzero(same if same.sum() >= 10 else untied)
    if len(kept) == 0:
        return 1.0
    kept = rng.permutation(kept)[:_MOST_PAIRS]
    gap = (proxy[first] - proxy[second])[kept] * np.sign(expert[first] - expert[second])[kept]

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -gap / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))
