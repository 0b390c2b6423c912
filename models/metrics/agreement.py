"""Agreement of an evaluator with the oracle, and of one policy with another."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from models.core.arrays import FloatArray, IntArray

_NONE: IntArray = np.zeros(0, dtype=np.int64)
_BINS = 10
SIMILAR_LENGTH = 0.2  # lengths within a fifth of the longer one: pairs that length cannot decide


class Agreement(NamedTuple):
    """How well proxy scores agree with oracle scores on held-out tuples.

    `pair_accuracy`: share of within-prompt pairs, untied for the oracle, that the proxy orders alike (a proxy tie counts
    half). `spearman`: over all tuples. `calibration_error`: of the probability given to these choices.
    NaN where nothing can be compared.
    """

    pair_accuracy: float
    spearman: float
    calibration_error: float
    pairs: int
    tuples: int


def group_ids(names: Sequence[str]) -> IntArray:
    """Return N names, such as those of prompts, as numbers from 0 in the order of the alphabet, shape (N,)."""
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def within_prompt_pairs(prompt: IntArray) -> tuple[IntArray, IntArray]:
    """Return the row numbers (i, j), i < j, of every two tuples of the same prompt."""
    first, second = [], []
    for number in np.unique(prompt):
        rows = np.flatnonzero(prompt == number)
        upper = np.triu_indices(len(rows), k=1)
        first.append(rows[upper[0]])
        second.append(rows[upper[1]])
    return np.concatenate([_NONE, *first]), np.concatenate([_NONE, *second])


def untied_pairs(oracle: FloatArray, group: IntArray) -> tuple[IntArray, IntArray]:
    """Return the rows (i, j) of every two tuples of a group that the oracle does not score alike."""
    first, second = within_prompt_pairs(group)
    untied = oracle[first] != oracle[second]
    return first[untied], second[untied]


def agrees(gap: FloatArray, preference: FloatArray) -> FloatArray:
    """Return 1 (the proxy's difference has the sign of the oracle's preference), ½ (a proxy tie) or 0 for each pair."""
    return np.asarray((np.sign(gap) * np.sign(preference) + 1) / 2)


def pair_outcomes(
    oracle: FloatArray,
    proxy: FloatArray,
    prompt: IntArray,
    *,
    least_gap: float = 0.0,
    length: FloatArray | None = None,
    length_share: float = 0.0,
) -> tuple[FloatArray, IntArray]:
    """Return 1 (agrees), ½ (proxy tie) or 0 for each pair untied for the oracle, and the pair's prompt.

    Only pairs whose oracle scores differ by more than `least_gap` count, and, given lengths, only those whose lengths
    differ by at most `length_share` of the longer one: what is left when length cannot decide.
    """
    first, second = within_prompt_pairs(prompt)
    gap = oracle[first] - oracle[second]
    counted = np.abs(gap) > least_gap
    if length is not None:
        longer = np.maximum(length[first], length[second])
        counted &= np.abs(length[first] - length[second]) <= length_share * longer
    first, second = first[counted], second[counted]
    return agrees(proxy[first] - proxy[second], gap[counted]), prompt[first]


def agreement(
    oracle: FloatArray,
    proxy: FloatArray,
    prompt: IntArray,
    probability: Callable[[FloatArray], FloatArray] | None = None,
) -> Agreement:
    """Compare proxy with oracle scores, each of shape (N,); `prompt` numbers each tuple's prompt.

    `probability` gives that of the proxy's preference from its differences, for the calibration error: σ(|difference|) if
    it is not given.
    """
    from scipy.special import expit

    first, second = untied_pairs(oracle, prompt)
    gap = proxy[first] - proxy[second]
    right = agrees(gap, oracle[first] - oracle[second])
    confidence = expit(np.abs(gap)) if probability is None else probability(gap)
    return Agreement(
        pair_accuracy=float(right.mean()) if len(right) else float("nan"),
        spearman=rank_correlation(oracle, proxy),
        calibration_error=calibration_error(confidence, right),
        pairs=len(right),
        tuples=len(oracle),
    )


def centred(scores: FloatArray, prompt: IntArray) -> FloatArray:
    """Return scores of shape (N,) less the mean of their prompt."""
    _, number = np.unique(prompt, return_inverse=True)
    return scores - (np.bincount(number, scores) / np.bincount(number))[number]


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Return Spearman's correlation of two arrays of shape (N,); NaN where one of them does not vary."""
    from scipy.stats import spearmanr

    varied = len(one) > 1 and np.ptp(one) > 0 and np.ptp(other) > 0
    return float(spearmanr(one, other).statistic) if varied else float("nan")


class Concentration(NamedTuple):
    """Whether scores have collapsed: the shares of the commonest one, and of within-prompt pairs that are tied."""

    top_share: float
    tied_pairs: float


def concentration(scores: FloatArray, prompt: IntArray) -> Concentration:
    """Return how far scores of shape (N,) are one and the same; `prompt` numbers each one's prompt. NaN of nothing."""
    if not len(scores):
        return Concentration(float("nan"), float("nan"))
    rounded = scores.astype(np.float32)  # equal is what differs by rounding alone
    _, level, count = np.unique(rounded, return_inverse=True, return_counts=True)
    first, second = within_prompt_pairs(prompt)
    tied = level[first] == level[second]
    return Concentration(float(count.max() / len(scores)), float(tied.mean()) if len(tied) else float("nan"))


def win_rate(challenger: FloatArray, reference: FloatArray) -> FloatArray:
    """Return 1, ½ or 0 per comparison: challenger wins, ties, loses."""
    return (np.sign(challenger - reference) + 1) / 2


def calibration_error(confidence: FloatArray, right: FloatArray) -> float:
    """Return the expected calibration error over ten bins (Naeini et al. 2015); NaN of nothing.

    `confidence` in [½, 1] is the probability given to the proxy's choice, `right` 1, ½ (tie) or 0; both of shape (N,).
    """
    if len(confidence) == 0:
        return float("nan")
    bin_of = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    off = np.bincount(bin_of, confidence - right, _BINS)
    return float(np.abs(off).sum() / len(confidence))


class CoverageRisk(NamedTuple):
    """Of the pairs from the surest on: which share of all they are, and which share of them is wrong; both (N,)."""

    coverage: FloatArray
    risk: FloatArray


def coverage_risk(confidence: FloatArray, right: FloatArray) -> CoverageRisk:
    """Return the curve of selective prediction (El-Yaniv and Wiener 2010); pairs of equal confidence come in together."""
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, wrong = confidence[order], np.cumsum(1.0 - right[order])
    last = np.flatnonzero(np.diff(sorted_confidence, append=-np.inf))
    return CoverageRisk((last + 1) / max(len(order), 1), wrong[last] / (last + 1))


def krippendorff_alpha(judged: Sequence[Sequence[tuple[str, float | None]]]) -> float:
    """Return Krippendorff's ordinal alpha of the (annotator, score) of each item; NaN where there is nothing to compare.

    K. Krippendorff, Content Analysis, 2004: 1 is perfect, 0 is what chance gives.
    """
    import krippendorff

    names = {name: row for row, name in enumerate(sorted({name for item in judged for name, _ in item}))}
    table = np.full((len(names), len(judged)), np.nan)
    for column, item in enumerate(judged):
        for name, score in item:
            table[names[name], column] = np.nan if score is None else score
    shared = table[:, (~np.isnan(table)).sum(axis=0) >= 2]
    if len(np.unique(shared[~np.isnan(shared)])) < 2:
        return math.nan
    return float(krippendorff.alpha(shared, level_of_measurement="ordinal"))
