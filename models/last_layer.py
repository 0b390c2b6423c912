"""How sure a trained linear head is: a Laplace approximation over its weights, everything below it frozen."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

Floats = NDArray[np.float64]

_LOG_PRECISIONS = (-18.0, 18.0)


def draw_heads(head: Floats, differences: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return `count` heads, shape (count, d), whose mean is `head` and whose spread is what the comparisons leave open.

    Last-layer Laplace (2106.14806): N(w, (λI + Σ p(1 − p) δδᵀ)⁻¹), p = σ(w·δ), for `differences` δ of the states of the
    compared responses, shape (n, d). λ has the greatest evidence (MacKay 1992). Draws come in pairs w ± ε, so that the
    ensemble's mean is the trained head; an odd one is w itself.
    """
    chance = expit(differences @ head)
    curvature = (differences * (chance * (1.0 - chance))[:, None]).T @ differences
    size, direction = np.linalg.eigh(curvature)
    size = np.maximum(size, 0.0)

    def less_evidence(log_precision: float) -> float:
        precision = np.exp(log_precision)
        return float(precision * (head @ head) + np.log1p(size / precision).sum()) / 2.0

    precision = float(np.exp(minimize_scalar(less_evidence, bounds=_LOG_PRECISIONS, method="bounded").x))
    spread = (rng.normal(size=(count // 2, len(head))) / np.sqrt(size + precision)) @ direction.T
    middle = np.zeros((count % 2, len(head)))
    return np.asarray(head + np.concatenate([spread, -spread, middle]))
