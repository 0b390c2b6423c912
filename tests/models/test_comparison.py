"""Comparisons of arms find what is there, and find nothing where there is nothing."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from models.comparison import Outcomes, holm, mean_over_seeds, paired_bootstrap, pareto, spread


def runs(rng: np.random.Generator, *, effect: float = 0.0, seeds: int = 3, prompts: int = 100) -> list[Outcomes]:
    shared = np.random.default_rng(7).normal(size=prompts)
    return [Outcomes(shared + effect + rng.normal(0, 0.5, prompts), np.ones(prompts)) for _ in range(seeds)]


def test_an_effect_is_found_and_the_pairing_narrows_its_interval() -> None:
    rng = np.random.default_rng(0)
    ours, random = runs(rng, effect=0.3), runs(rng)
    found = paired_bootstrap(ours, random)
    assert found.low > 0.1
    assert found.low < found.mean < found.high
    assert found.p < 0.01
    alone = mean_over_seeds(ours)
    assert found.high - found.low < alone.high - alone.low, "the prompts' own differences cancel"


def test_the_test_keeps_its_level_when_there_is_no_effect() -> None:
    rng = np.random.default_rng(1)
    p = [paired_bootstrap(runs(rng, seeds=5, prompts=40), runs(rng, seeds=5, prompts=40)).p for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_seeds_that_disagree_widen_the_interval() -> None:
    same = [Outcomes(np.full(50, 0.5), np.ones(50))] * 3
    apart = [Outcomes(np.full(50, value), np.ones(50)) for value in (0.2, 0.5, 0.8)]
    assert mean_over_seeds(same)[1:] == (0.5, 0.5)
    assert mean_over_seeds(apart).low == pytest.approx(0.2)


def test_prompts_count_by_what_was_compared_on_them() -> None:
    run = Outcomes(np.array([3.0, 0.0, 1.0]), np.array([4.0, 0.0, 1.0]))
    assert run.mean == pytest.approx(0.8)
    assert np.isnan(Outcomes(np.zeros(2), np.zeros(2)).mean)


def test_unpaired_runs_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="3 runs do not pair with 2"):
        paired_bootstrap(runs(rng), runs(rng, seeds=2))


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
