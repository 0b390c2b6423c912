"""Agreement of an evaluator with the expert, and of one policy with another."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


_NONE: Rows = np.zeros(0, dtype=np.int64)
SIMILAR_LENGTH = 0.2  # lengths within a fifth of the longer one: pairs that length cannot decide


class Agreement(NamedTuple):
    """How well proxy scores agree with expert scores on held-out tuples.

    `pair_accuracy`: share of within-prompt pairs, untied for the expert, that the proxy orders alike (a proxy tie counts
    half). `spearman`: over all tuples. `calibration_error`: expected calibration error of σ(proxy difference) as the
    probability of the expert's preference, 10 bins. NaN where nothing can be compared.
    """

    pair_accuracy: float
    spearman: float
    calibration_error: float
    pairs: int
    tuples: int


def within_prompt_pairs(prompt: Rows) -> tuple[Rows, Rows]:
    """Return the row numbers (i, j), i < j, of every two tuples of the same prompt."""
    first, second = [], []
    for number in np.unique(prompt):
        rows = np.flatnonzero(prompt == number)
        upper = np.triu_indices(len(rows), k=1)
        first.append(rows[upper[0]])
        second.append(rows[upper[1]])
    return np.concatenate([_NONE, *first]), np.concatenate([_NONE, *second])


def pair_outcomes(
    expert: Floats,
    proxy: Floats,
    prompt: Rows,
    *,
    least_gap: float = 0.0,
    length: Floats | None = None,
    length_share: float = 0.0,
) -> tuple[Floats, Rows]:
    """Return 1 (agrees), ½ (proxy tie) or 0 for each pair untied for the expert, and the pair's prompt.

    Only pairs whose expert scores differ by more than `least_gap` count, and, given lengths, only those whose lengths
    differ by at most `length_share` of the longer one: what is left when length cannot decide.
    """
    first, second = within_prompt_pairs(prompt)
    gap = expert[first] - expert[second]
    counted = np.abs(gap) > least_gap
    if length is not None:
        longer = np.maximum(length[first], length[second])
        counted &= np.abs(length[first] - length[second]) <= length_share * longer
    first, second = first[counted], second[counted]
    agrees = np.sign(gap[counted]) * np.sign(proxy[first] - proxy[second])
    return (agrees + 1) / 2, prompt[first]


def agreement(expert: Floats, proxy: Floats, prompt: Rows) -> Agreement:
    """Compare proxy with expert scores, each of shape (N,); `prompt` numbers each tuple's prompt."""
    outcomes, _ = pair_outcomes(expert, proxy, prompt)
    return Agreement(
        pair_accuracy=float(outcomes.mean()) if len(outcomes) else float("nan"),
        spearman=rank_correlation(expert, proxy),
        calibration_error=_calibration_error(expert, proxy, prompt),
        pairs=len(outcomes),
        tuples=len(expert),
    )


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation of two arrays of shape (N,); NaN where one of them does not vary."""
    varied = len(one) > 1 and np.ptp(one) > 0 and np.ptp(other) > 0
    return float(spearmanr(one, other).statistic) if varied else float("nan")


def win_rate(challenger: Floats, reference: Floats) -> Floats:
    """Return 1, ½ or 0 per comparison: challenger wins, ties, loses."""
    return (np.sign(challenger - reference) + 1) / 2


def _calibration_error(expert: Floats, proxy: Floats, prompt: Rows, bins: int = 10) -> float:
    first, second = within_prompt_pairs(prompt)
    untied = expert[first] != expert[second]
    if not untied.any():
        return float("nan")
    gap = (proxy[first] - proxy[second])[untied]
    right = (np.sign(gap) == np.sign((expert[first] - expert[second])[untied])) + 0.5 * (gap == 0)
    confidence = expit(np.abs(gap))
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    error = 0.0
    for number in range(bins):
        inside = bin_of == number
        if inside.any():
            error += float(inside.mean() * abs(confidence[inside].mean() - right[inside].mean()))
    return error
