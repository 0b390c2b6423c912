"""Last-layer Laplace approximation: an ensemble of heads over a frozen trunk."""

import numpy as np

from models.core.arrays import FloatArray

_LOG_PRECISIONS = (-18.0, 18.0)


def of_comparisons(head: FloatArray, differences: FloatArray, margin: FloatArray | float = 0.0) -> FloatArray:
    """Return the curvature Σ p(1 − p) δδᵀ of Bradley–Terry's loss, (d, d), p = σ(w·δ − margin).

    `differences` δ of the states of the compared responses, better less worse, have the shape (n, d), margins (n,).
    """
    from scipy.special import expit

    chance = expit(differences @ head - margin)
    return np.asarray((differences * (chance * (1.0 - chance))[:, None]).T @ differences)


def of_texts(states: FloatArray, information: FloatArray) -> FloatArray:
    """Return the curvature Σ ι (h − h̄)(h − h̄)ᵀ of a loss over single texts, (d, d).

    `states` h have the shape (n, d); `information` ι is what a text's label says of its reward, (n,). h̄ is their mean by ι:
    a constant is free.
    """
    apart = states - np.average(states, axis=0, weights=information)
    return np.asarray((apart * information[:, None]).T @ apart)


def draw_heads(head: FloatArray, curvature: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return `count` heads, shape (count, d), whose mean is `head` and whose spread is what the labels leave open.

    Last-layer Laplace (2106.14806): N(w, (λI + `curvature`)⁻¹). λ has the greatest evidence (MacKay 1992). Draws come in
    pairs w ± ε, so that the ensemble's mean is the trained head; an odd one is w itself.
    """
    from scipy.optimize import minimize_scalar

    size, direction = np.linalg.eigh(curvature)
    size = np.maximum(size, 0.0)

    def less_evidence(log_precision: float) -> float:
        precision = np.exp(log_precision)
        return float(precision * (head @ head) + np.log1p(size / precision).sum()) / 2.0

    precision = float(np.exp(minimize_scalar(less_evidence, bounds=_LOG_PRECISIONS, method="bounded").x))
    spread = (rng.normal(size=(count // 2, len(head))) / np.sqrt(size + precision)) @ direction.T
    middle = np.zeros((count % 2, len(head)))
    return np.asarray(head + np.concatenate([spread, -spread, middle]))
