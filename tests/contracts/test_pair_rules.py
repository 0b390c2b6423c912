"""Pair rules: one contract for all, and each against the plain loop of its definition."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from models.acquisition.pair_rules.baits import Baits
from models.acquisition.pair_rules.base import CandidateScores, PairRule
from models.acquisition.pair_rules.best_worst import BestWorst
from models.acquisition.pair_rules.delta_ucb import DeltaUcb
from models.acquisition.pair_rules.drts import DoubleReversedThompson
from models.acquisition.pair_rules.dts import DoubleThompson
from models.acquisition.pair_rules.infogain import InfoGain
from models.acquisition.pair_rules.infomax import InfoMax
from models.acquisition.pair_rules.max_min_lcb import MaxMinLcb
from models.acquisition.pair_rules.random_pair import RandomPair
from models.core.registry import plugins_of
from ninefold.testing import check_pair_rule, make_candidates

KINDS: list[type[PairRule]] = plugins_of(PairRule)
every_rule = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
Value = Callable[[np.ndarray, np.ndarray, int, int], float]  # type: ignore[type-arg]


@every_rule
@settings(max_examples=25, deadline=None)
@given(
    prompts=st.integers(1, 20),
    columns=st.integers(2, 6),
    members=st.integers(1, 4),
    tied=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_rule_keeps_the_contract(kind: type[PairRule], **shape: Any) -> None:
    """Peers draw i = j and die on an assertion (ActiveUltraFeedback's random); here also where every score is tied."""
    check_pair_rule(kind(), **shape)


@pytest.mark.parametrize("kind", [DoubleThompson, DoubleReversedThompson, DeltaUcb, InfoMax, InfoGain, MaxMinLcb])
def test_beta_is_read_wherever_it_is_documented(kind: type[PairRule]) -> None:
    """A peer sweeps a β that is never read."""
    careful, bold = (kind(beta=beta).propose(make_candidates(), np.random.default_rng(0)) for beta in (0.01, 5.0))
    assert (careful.first != bold.first).any() or (careful.second != bold.second).any()


def test_a_rule_that_ranks_by_scores_says_so_where_there_are_none() -> None:
    for kind in KINDS:
        grid = CandidateScores(np.ones((3, 4), dtype=bool))
        if kind.needs_scores:
            with pytest.raises(ValueError, match="needs the scores of an evaluator"):
                kind().propose(grid, np.random.default_rng(0))
        else:
            kind().propose(grid, np.random.default_rng(0))


def best_by_loop(grid: CandidateScores, value: Value, beta: float) -> list[float]:
    """The largest value over ordered pairs i ≠ j of present responses, prompt by prompt."""
    found = []
    for mean, std, present in zip(grid.mean, grid.std, grid.present, strict=True):
        pairs = permutations(np.flatnonzero(present), 2)
        found.append(max(value(mean + beta * std, mean - beta * std, i, j) for i, j in pairs))
    return found


def values_of(grid: CandidateScores, rule: PairRule, value: Value, beta: float) -> list[float]:
    first, second = rule.propose(grid, np.random.default_rng(0))
    rows = zip(grid.mean, grid.std, first, second, strict=True)
    return [value(m + beta * s, m - beta * s, i, j) for m, s, i, j in rows]


@pytest.mark.parametrize("beta", [0.3, 2.0])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DeltaUcb, lambda u, lower, i, j: u[i] - lower[j]),
        (InfoMax, lambda u, lower, i, j: expit(u[i] - lower[j]) - expit(lower[i] - u[j])),
    ],
)
def test_the_named_pair_is_the_best_of_all_pairs(kind: type[PairRule], value: Value, beta: float) -> None:
    grid = make_candidates()
    assert values_of(grid, kind(beta=beta), value, beta) == pytest.approx(best_by_loop(grid, value, beta), abs=1e-9)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_max_min_lcb_is_the_loop_over_rivals(beta: float) -> None:
    grid = make_candidates()
    first, second = MaxMinLcb(beta=beta).propose(grid, np.random.default_rng(0))
    for row, present in enumerate(grid.present):
        mean, std = grid.mean[row], grid.std[row]
        columns = np.flatnonzero(present)
        worst = {i: min((mean[i] - mean[j] - beta * (std[i] + std[j]), j) for j in columns if j != i) for i in columns}
        i = max(columns, key=lambda column: worst[column][0])
        assert (first[row], second[row]) == (i, worst[i][1])


def test_best_worst_takes_the_extremes_of_the_mean() -> None:
    grid = make_candidates()
    first, second = BestWorst().propose(grid, np.random.default_rng(0))
    for row, present in enumerate(grid.present):
        columns = np.flatnonzero(present)
        assert first[row] == columns[grid.mean[row, columns].argmax()]
        assert second[row] == columns[grid.mean[row, columns].argmin()]


def test_the_thompson_rules_complete_the_drawn_response_by_their_definition() -> None:
    """With two members one of which is drawn, the first response is the best of either."""
    grid = make_candidates(members=2)
    for rule in (InfoGain(beta=1.5), Baits()):
        first, second = rule.propose(grid, np.random.default_rng(0))
        bests = [np.where(grid.present, member, -np.inf).argmax(axis=1) for member in grid.scores]
        assert ((first == bests[0]) | (first == bests[1])).all()
        assert (first != bests[0]).any()
        assert (first != bests[1]).any()
        for row, i in enumerate(first):
            upper, lower = (grid.mean[row] + sign * 1.5 * grid.std[row] for sign in (1, -1))
            gain = {
                j: float(np.var(grid.scores[:, row, i] - grid.scores[:, row, j]))
                if isinstance(rule, Baits)
                else expit(upper[i] - lower[j]) - expit(lower[i] - upper[j])
                for j in np.flatnonzero(grid.present[row])
                if j != i
            }
            assert gain[second[row]] == pytest.approx(max(gain.values()))


def test_dts_names_two_contenders_and_drts_a_good_and_a_bad_one() -> None:
    mean = np.array([5.0, 4.9, 0.0, -5.0])
    scores = mean + np.array([[1.0, 1.0, 0.1, 0.1], [-1.0, -1.0, -0.1, -0.1]])
    grid = CandidateScores(np.ones((500, 4), dtype=bool), np.repeat(scores[:, None, :], 500, axis=1))
    first, second = DoubleThompson().propose(grid, np.random.default_rng(0))
    assert set(np.concatenate([first, second])) == {0, 1}
    first, second = DoubleReversedThompson().propose(grid, np.random.default_rng(0))
    assert set(first) == {0, 1}
    assert set(second) == {3}


def test_dts_falls_back_to_a_random_other_when_no_draw_differs() -> None:
    certain = CandidateScores(np.ones((900, 4), dtype=bool), np.tile([3.0, 2.0, 1.0, 0.0], (2, 900, 1)))
    first, second = DoubleThompson().propose(certain, np.random.default_rng(0))
    assert set(first) == {0}
    assert np.bincount(second, minlength=4)[1:] / 900 == pytest.approx([1 / 3] * 3, abs=0.06)


def test_random_pairs_are_uniform() -> None:
    first, second = RandomPair().propose(CandidateScores(np.ones((12_000, 4), dtype=bool)), np.random.default_rng(0))
    counts = np.bincount(first * 4 + second, minlength=16).reshape(4, 4)
    assert counts[~np.eye(4, dtype=bool)] / 12_000 == pytest.approx([1 / 12] * 12, abs=0.01)
