"""Mixed-effects ridge regression with a random effect per prompt; its penalty by left-out prompts."""

from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray, IntArray


class PenaltyFit(NamedTuple):
    """The penalty, and the prediction of each row by a fit without its group, both of the transformed problem."""

    alpha: float
    left_out: FloatArray


def within(columns: FloatArray, group: IntArray, ratio: float) -> FloatArray:
    """Return the rows less a part of their group's mean: generalised least squares under a random effect per group.

    y_i = x_i·w + u_g + ε with Var(u)/Var(ε) = `ratio`; a group of n rows loses the share 1 − 1/√(1 + n·ratio) of its mean
    (Fuller and Battese 1973). 0 changes nothing, a large ratio compares within groups alone. `columns` has shape (N, p).
    """
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), columns.shape[1]))
    np.add.at(total, number, columns)
    share = 1.0 - 1.0 / np.sqrt(1.0 + count * ratio)
    return np.asarray(columns - (share / count)[number, None] * total[number])


def restore(columns: FloatArray, group: IntArray, ratio: float) -> FloatArray:
    """Return what `within` was given: (N, p) in the original units."""
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    mean = np.zeros((len(count), columns.shape[1]))
    np.add.at(mean, number, columns)
    mean /= count[:, None]
    return np.asarray(columns + (np.sqrt(1.0 + count * ratio) - 1.0)[number, None] * mean[number])


def choose_penalty(features: FloatArray, target: FloatArray, group: IntArray, alphas: FloatArray) -> PenaltyFit:
    """Return the penalty of least squared error on rows whose whole group was left out (exact, from one decomposition).

    A group's rows share its mean, so that leaving out one of them would leave its answer in.
    """
    left, size, _ = np.linalg.svd(features, full_matrices=False)
    along, blocks = left.T @ target, _blocks(group)
    best = (np.inf, float(alphas[0]), target)
    for alpha in alphas:
        shrink = size**2 / (size**2 + alpha)
        residual = target - left @ (shrink * along)
        out = np.empty_like(residual)
        for rows in blocks:
            basis = left[rows]
            kept = np.eye(rows.shape[1]) * (1.0 + 1e-9) - np.einsum(
                "gik,k,gjk->gij", basis, shrink, basis, optimize=True
            )
            out[rows] = np.linalg.solve(kept, residual[rows][..., None])[..., 0]
        error = float(np.mean(out**2))
        if error < best[0]:
            best = (error, float(alpha), target - out)
    return PenaltyFit(best[1], best[2])


def _blocks(group: IntArray) -> list[IntArray]:
    """Return the rows of the groups, those of one size together, each of shape (groups, size)."""
    order = np.argsort(group, kind="stable")
    _, begins, counts = np.unique(group[order], return_index=True, return_counts=True)
    return [order[begins[counts == size, None] + np.arange(size)] for size in np.unique(counts)]


def solve(features: FloatArray, target: FloatArray, weight: FloatArray, alpha: float) -> FloatArray:
    """Return argmin_w Σ weight_i (y_i − x_i·w)² + alpha ‖w‖², shape (p,)."""
    weighted = features * weight[:, None]
    return np.asarray(np.linalg.solve(features.T @ weighted + alpha * np.eye(features.shape[1]), weighted.T @ target))
