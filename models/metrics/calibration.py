"""Calibrate score differences to preference probabilities: temperature scaling and isotonic regression."""

import math
from typing import Literal

import numpy as np

from models.core.arrays import FloatArray, IntArray
from models.core.registry import Frozen
from models.metrics.agreement import untied_pairs

Method = Literal["temperature", "isotonic"]

_MOST_PAIRS = 20_000
_FEW_PAIRS = 10
_TEMPERATURES = (1e-3, 1e3)


class Calibration(Frozen):
    """A map from |difference of scores| to the probability that the oracle prefers the higher one, in [½, 1].

    σ(|Δ|/`temperature`) (Guo et al. 2017), or, where there are `knots`, the line through these (|Δ|, probability).
    """

    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()

    @classmethod
    def fit(cls, method: Method, gap: FloatArray, preference: FloatArray) -> "Calibration":
        """Learn from N differences and the oracle's preferences in [−1, 1]; the identity σ(|Δ|) from none."""
        decided = np.flatnonzero(preference != 0)
        if len(decided) == 0:
            return cls()
        gap, preference = gap[decided], preference[decided]
        temperature = temperature_of(gap, preference)
        if method == "temperature":
            return cls(temperature=temperature)
        from sklearn.isotonic import IsotonicRegression

        model = IsotonicRegression(y_min=0.5, y_max=1.0)
        model.fit(np.abs(gap), (1.0 + np.sign(gap) * preference) / 2.0)
        knots = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
        return cls(temperature=temperature, knots=tuple(knots))

    def probability(self, gap: FloatArray) -> FloatArray:
        """Return the probability that the oracle prefers the response of the higher score, shape as `gap`."""
        from scipy.special import expit

        if not self.knots:
            return np.asarray(expit(np.abs(gap) / self.temperature))
        gaps, known = np.array(self.knots).T
        return np.asarray(np.interp(np.abs(gap), gaps, known))

    def least_gap(self, probability: float) -> float:
        """Return the smallest |Δ| of this probability; ∞ if none has it."""
        from scipy.special import logit

        if not self.knots:
            return float(self.temperature * logit(probability))
        gaps, known = np.array(self.knots).T
        if probability > known[-1]:
            return math.inf
        if probability <= known[0]:
            return 0.0
        after = int(np.argmax(known >= probability))
        share = (probability - known[after - 1]) / (known[after] - known[after - 1])
        return float(gaps[after - 1] + share * (gaps[after] - gaps[after - 1]))


def cross_calibrated(method: Method, gap: FloatArray, preference: FloatArray, fold: IntArray) -> FloatArray:
    """Return each difference's probability by a calibration learned from the other folds, shape (N,)."""
    found = np.empty(len(gap))
    for number in np.unique(fold):
        inside = fold == number
        found[inside] = Calibration.fit(method, gap[~inside], preference[~inside]).probability(gap[inside])
    return found


def temperature(proxy: FloatArray, oracle: FloatArray, group: IntArray, rng: np.random.Generator) -> float:
    """Return T such that σ((proxy_i − proxy_j)/T) is best as the probability that the oracle prefers i (least log loss).

    Over pairs of the same group; where they are fewer than ten, over pairs of any, drawn at random.
    """
    first, second = untied_pairs(oracle, group)
    if len(first) < _FEW_PAIRS:
        first, second = rng.integers(len(proxy), size=(2, _MOST_PAIRS))
    kept = rng.permutation(np.flatnonzero(oracle[first] != oracle[second]))[:_MOST_PAIRS]
    if len(kept) == 0:
        return 1.0
    return temperature_of((proxy[first] - proxy[second])[kept], np.sign(oracle[first] - oracle[second])[kept])


def temperature_of(gap: FloatArray, preference: FloatArray) -> float:
    """Return the T of least log loss of σ(gap/T) as the probability (1 + preference)/2 that the first is preferred."""
    from scipy.optimize import minimize_scalar

    won = (1.0 + preference) / 2.0

    def loss(log_temperature: float) -> float:
        logits = gap / np.exp(log_temperature)
        return float((won * np.logaddexp(0.0, -logits) + (1.0 - won) * np.logaddexp(0.0, logits)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))
