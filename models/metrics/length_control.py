"""Length-controlled win rate: AlpacaEval 2's logistic regression (2404.04475)."""

from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray, IntArray
from models.metrics.intervals import Interval, resampled

_RIDGE = 0.01  # the published method's C = 100: keeps a rate of 0 or 1 finite
_STEPS = 30


class LengthControlled(NamedTuple):
    """The win rate at equal length, and what length does: the difference in logits from much shorter to much longer."""

    win_rate: Interval
    length_effect: float


def length_controlled(wins: FloatArray, longer_by: FloatArray, prompt: IntArray) -> LengthControlled:
    """Return the length-controlled win rate of a challenger, with its interval over prompts.

    logit p(win) = θ + φ tanh(Δ/s): `wins` in [0, 1], Δ `longer_by` how many characters, s its standard deviation, all of
    shape (N,). The rate is σ(θ). The published method has a term for each instruction's difficulty too, which takes
    judgements of many models to know; of two models alone it is part of θ.
    """
    from scipy.special import expit

    spread = float(longer_by.std())
    columns = np.stack([np.ones(len(wins)), np.tanh(longer_by / spread) if spread else np.zeros(len(wins))], axis=1)
    found = logistic(columns, wins, np.ones((1, len(wins))))[0]
    if len(np.unique(prompt)) < 2:
        low = high = float("nan")
    else:
        low, high = np.quantile(expit(logistic(columns, wins, resampled(prompt))[:, 0]), [0.025, 0.975])
    return LengthControlled(Interval(float(expit(found[0])), float(low), float(high)), float(2 * found[1]))


def gain_at_equal_length(wins: FloatArray, longer_by: FloatArray, difficulty: FloatArray) -> Interval:
    """Return the second policy's win rate at equal length less the first's, with the interval over instructions.

    `wins` and `longer_by` have shape (2, N), `difficulty` (N,), of N instructions: logit p = θ + φ tanh(Δ/s) + γ d for each
    policy, both refitted to every resample, for what they predict varies far less than what they are fitted to.
    """
    from scipy.special import expit

    count = len(difficulty)
    weights = np.concatenate([np.ones((1, count)), resampled(np.arange(count))])  # first as they are
    rates = []
    for won, longer in zip(wins, longer_by, strict=True):
        spread = float(longer.std())
        bend = np.tanh(longer / spread) if spread else np.zeros(count)
        found = logistic(np.stack([np.ones(count), bend, difficulty], axis=1), won, weights)
        level = expit(found[:, :1] + found[:, 2:] * difficulty)
        rates.append((weights * level).sum(axis=1) / weights.sum(axis=1))
    gain = rates[1] - rates[0]
    low, high = np.quantile(gain[1:], [0.025, 0.975])
    return Interval(float(gain[0]), float(low), float(high))


def logistic(columns: FloatArray, outcome: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the coefficients, (R, p), of R logistic regressions on `columns` (N, p), whose rows weigh `weights` (R, N).

    `outcome` may be a probability, shape (N,). Newton's method, with a small ridge.
    """
    from scipy.special import expit

    found = np.zeros((len(weights), columns.shape[1]))
    ridge = _RIDGE * np.eye(columns.shape[1])
    for _ in range(_STEPS):
        chance = expit(found @ columns.T)
        slope = (weights * (outcome - chance)) @ columns - _RIDGE * found
        curvature = (
            np.einsum("rn,np,nq->rpq", weights * chance * (1.0 - chance), columns, columns, optimize=True) + ridge
        )
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        # far out the curvature vanishes: no step is longer than the logistic curve is wide
        found += step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True) / 4.0)
        if np.abs(step).max() < 1e-9:
            break
    return found
