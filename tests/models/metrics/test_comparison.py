"""Comparisons of arms find what is there, and find nothing where there is nothing."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from models.metrics.comparison import Difference, Outcomes, difference, holm, mean_of, pareto, spread

NAMES = [f"p{number}" for number in range(100)]


def seeds(count: int) -> list[tuple[int, int]]:
    return [(seed, seed) for seed in range(count)]


def runs(rng: np.random.Generator, *, effect: float = 0.0, seeds: int = 3, prompts: int = 100) -> list[Outcomes]:
    shared = np.random.default_rng(7).normal(size=prompts)
    return [
        Outcomes(NAMES[:prompts], shared + effect + rng.normal(0, 0.5, prompts), np.ones(prompts)) for _ in range(seeds)
    ]


def one(prompts: str, *totals: float) -> list[Outcomes]:
    return [Outcomes(list(prompts), np.array(totals), np.ones(len(prompts)))]


def test_an_effect_is_found_and_the_pairing_narrows_its_interval() -> None:
    rng = np.random.default_rng(0)
    ours, random = runs(rng, effect=0.3), runs(rng)
    found = difference(ours, random, seeds(3))
    assert found.low > 0.1
    assert found.low < found.mean < found.high
    assert found.p < 0.03
    alone = mean_of(ours, seeds(3))
    assert found.high - found.low < alone.high - alone.low, "the prompts' own differences cancel"


def test_the_test_keeps_its_level_when_there_is_no_effect() -> None:
    rng = np.random.default_rng(1)
    p = [difference(runs(rng, seeds=5, prompts=40), runs(rng, seeds=5, prompts=40), seeds(5)).p for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_seeds_that_disagree_widen_the_interval() -> None:
    same = [Outcomes(NAMES[:50], np.full(50, 0.5), np.ones(50))] * 3
    apart = [Outcomes(NAMES[:50], np.full(50, value), np.ones(50)) for value in (0.2, 0.5, 0.8)]
    assert mean_of(same, seeds(3))[1:3] == pytest.approx((0.5, 0.5), abs=1e-12)
    assert mean_of(apart, seeds(3)).low == pytest.approx(0.5 - 4.3027 * 0.3 / np.sqrt(3), abs=1e-4)


def test_prompts_count_by_what_was_compared_on_them() -> None:
    run = Outcomes(list("abc"), np.array([3.0, 0.0, 1.0]), np.array([4.0, 0.0, 1.0]))
    assert run.mean == pytest.approx(0.8)
    assert mean_of([run], seeds(1)).mean == pytest.approx(0.8), "b says nothing, a says four times what c does"
    assert np.isnan(Outcomes([], np.zeros(0), np.zeros(0)).mean)
    assert np.isnan(mean_of([Outcomes(list("ab"), np.zeros(2), np.zeros(2))], seeds(1)).mean)


def test_the_interval_of_a_ratio_covers_where_prompts_have_different_counts() -> None:
    rng, covered = np.random.default_rng(3), []
    for _ in range(400):
        counts = rng.integers(0, 7, 60).astype(np.float64)
        chance = 0.4 + 0.05 * counts  # prompts with more pairs are easier
        truth = float((np.arange(7) * (0.4 + 0.05 * np.arange(7))).sum() / np.arange(7).sum())
        three = [Outcomes(NAMES[:60], rng.binomial(counts.astype(int), chance) * 1.0, counts) for _ in range(3)]
        found = mean_of(three, seeds(3))
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) > 0.92


def test_arms_are_paired_by_the_names_of_their_prompts() -> None:
    found = difference(one("abc", 1, 0, 1), one("zabc", 0, 1, 0, 1), seeds(1))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert (found.prompts, found.dropped) == (3, 1), "z is held out by one alone"
    fewer = difference(one("abc", 1, 0, 1), one("cb", 0, 0), seeds(1))
    assert (fewer.mean, fewer.prompts, fewer.dropped) == (0.5, 2, 1)


def test_a_prompt_that_only_one_side_counts_is_dropped() -> None:
    ours = [Outcomes(list("ab"), np.array([1.0, 0.0]), np.array([1.0, 0.0]))]
    found = difference(ours, one("ab", 0, 1), seeds(1))
    assert (found.mean, found.prompts, found.dropped) == (1.0, 1, 1)


def test_nothing_in_common_is_no_difference_and_no_crash() -> None:
    found = difference(one("ab", 1, 0), one("cd", 1, 0), seeds(1))
    assert np.isnan(found[:5]).all()
    assert (found.prompts, found.dropped) == (0, 4)
    partly = difference(one("ab", 1, 0) * 2, [*one("cd", 1, 0), *one("ab", 0, 0)], seeds(2))
    assert (partly.mean, partly.prompts, partly.dropped) == (0.5, 2, 4), "the seed that has prompts in common"


def test_no_p_value_below_three_seeds() -> None:
    def far(count: int) -> Difference:
        ours = [Outcomes(NAMES[:9], np.full(9, 1.0 + 0.01 * n), np.ones(9)) for n in range(count)]
        return difference(ours, [Outcomes(NAMES[:9], np.zeros(9), np.ones(9))] * count, seeds(count))

    assert np.isnan([far(1).p, far(2).p]).all()
    assert far(3).p < 0.001


def test_unpaired_runs_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="3 runs do not pair with 2"):
        difference(runs(rng), runs(rng, seeds=2), seeds(3))


def test_p_values_are_adjusted_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), by hand
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    p = np.random.default_rng(0).random(20)
    assert (np.array(holm(list(p))) >= false_discovery_control(p) - 1e-12).all(), (
        "stricter than the false discovery rate"
    )


def test_the_variance_is_split_between_the_seeds() -> None:
    rng = np.random.default_rng(0)
    selection, training = rng.normal(0, 0.3, 60), rng.normal(0, 0.1, 60)
    noise = rng.normal(0, 0.05, (60, 60))
    found = spread({(s, t): selection[s] + training[t] + noise[s, t] for s in range(60) for t in range(60)})
    assert found.selection == pytest.approx(0.3, rel=0.25)
    assert found.training == pytest.approx(0.1, rel=0.25)
    assert found.rest == pytest.approx(0.05, rel=0.1)
    assert found.total**2 == pytest.approx(found.selection**2 + found.training**2 + found.rest**2)


def test_paired_seeds_have_a_total_alone() -> None:
    found = spread({(0, 0): 1.0, (1, 1): 2.0, (2, 2): 3.0})
    assert found.total == 1.0
    assert np.isnan(found.selection)
    assert np.isnan(spread({(0, 0): 1.0}).total)


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto([0.0, 1.0, 1.0, 2.0, 3.0], [0.5, 0.6, 0.7, 0.65, 0.9]) == [0, 2, 4]
