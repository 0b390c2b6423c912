"""The interval of a mean over seeds and prompts holds what it promises, whichever of the two varies."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t as student

from models.core.arrays import FloatArray
from models.metrics.crossed import Crossed, crossed_mean, independent_seeds

REPEATS, PROMPTS = 1000, 40
# standard deviations over seeds, prompts and the rest
WORLDS = {
    "seeds": (1.0, 0.1, 1.0),
    "prompts": (0.05, 2.0, 1.0),
    "both": (0.3, 1.5, 1.0),
    "both, much": (2.0, 2.0, 1.0),
    "neither": (0.0, 0.0, 1.0),
}


def table(rng: np.random.Generator, seeds: int, spread: tuple[float, float, float]) -> FloatArray:
    of_seed, of_prompt, rest = (
        rng.normal(0, s, n) for s, n in zip(spread, (seeds, PROMPTS, seeds * PROMPTS), strict=True)
    )
    return np.asarray(of_seed[:, None] + of_prompt + rest.reshape(seeds, PROMPTS))


def coverage(made: Callable[[], Crossed]) -> tuple[float, float]:
    """Return how often the interval holds the truth, which is 0, and how often p says that it is not."""
    found = [made() for _ in range(REPEATS)]
    return float(np.mean([c.low <= 0 <= c.high for c in found])), float(np.mean([c.p < 0.05 for c in found]))


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("world", WORLDS)
def test_the_interval_covers_and_the_test_keeps_its_level(world: str, seeds: int) -> None:
    rng = np.random.default_rng(11)
    held, rejected = coverage(lambda: crossed_mean(table(rng, seeds, WORLDS[world])))
    assert held >= 0.93
    assert rejected <= 0.07


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kept", [0.5, "own"])
def test_it_covers_where_seeds_lack_prompts_or_have_their_own(world: str, kept: float | str) -> None:
    rng = np.random.default_rng(5)

    def made() -> Crossed:
        if kept == "own":
            found = np.full((4, 4 * PROMPTS), np.nan)
            for seed, place in enumerate(np.split(np.arange(4 * PROMPTS), 4)):
                found[seed, place] = table(rng, 1, WORLDS[world])
        else:
            found = np.where(rng.random((4, PROMPTS)) < kept, table(rng, 4, WORLDS[world]), np.nan)
        return crossed_mean(found)

    held, rejected = coverage(made)
    assert held >= 0.93
    assert rejected <= 0.07


@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.5, 0.3), (0.0, 0.0, 0.0)], ids=str)
@pytest.mark.parametrize("lacking", [0, 1])
def test_nine_runs_of_a_grid_are_not_nine_seeds(spread: tuple[float, float, float], lacking: int) -> None:
    rng = np.random.default_rng(7)
    grid = [(one, two) for one in range(3) for two in range(3)][lacking:]
    first, second = np.array(grid).T

    def made() -> FloatArray:
        selection, training, together = (rng.normal(0, s, n) for s, n in zip(spread, (3, 3, 9), strict=True))
        run = selection[first] + training[second] + together[3 * first + second]
        return np.asarray(run[:, None] + table(rng, len(grid), (0.0, 0.5, 1.0)))

    held, rejected = coverage(lambda: crossed_mean(made(), grid))
    assert held >= 0.93
    assert rejected <= 0.07


def test_a_full_table_has_the_mean_squares_of_the_textbook() -> None:
    found = crossed_mean(np.array([[1.0, 2.0, 6.0], [2.0, 5.0, 8.0]]))
    # by hand: MS_seed 6, MS_prompt 15.5, MS_rest 0.5, so that the variance is 6/6 + 15/6
    assert found.mean == 4.0
    assert found.df == pytest.approx(3.5**2 / (1.0 * 3.5 / 1 + (15.5**2 / 2 + 0.5**2 / 2) / 36))
    half = student.ppf(0.975, found.df) * 3.5**0.5
    assert found[1:3] == pytest.approx((4.0 - half, 4.0 + half))


def test_seeds_weigh_alike_however_many_prompts_they_have() -> None:
    assert crossed_mean(np.array([[1.0, 1.0, 1.0], [4.0, np.nan, np.nan]])).mean == 2.5


def test_two_seeds_that_differ_have_a_wide_interval_and_no_p_value() -> None:
    found = crossed_mean(np.repeat([[0.01], [1.2]], 50, axis=1))
    assert found[:3] == pytest.approx((0.605, -6.955, 8.165), abs=1e-3)
    assert np.isnan(found.p)


def test_one_seed_has_the_interval_of_its_prompts() -> None:
    found = crossed_mean(np.array([[1.0, 2.0, 3.0]]))
    assert found[:3] == pytest.approx((2.0, 2.0 - 4.3027 / 3**0.5, 2.0 + 4.3027 / 3**0.5), abs=1e-4)
    assert found.df == pytest.approx(2)
    assert np.isnan(found.p)


def test_nothing_has_no_mean_and_one_value_no_interval() -> None:
    assert np.isnan(crossed_mean(np.full((3, 2), np.nan))).all()
    assert np.isnan(crossed_mean(np.zeros((2, 0)))).all()
    single = crossed_mean(np.array([[np.nan, 0.3]]))
    assert single.mean == 0.3
    assert np.isnan(single[1:]).all()


def test_no_difference_anywhere_is_certain() -> None:
    assert crossed_mean(np.zeros((3, 5)))[:4] == (0.0, 0.0, 0.0, 1.0)


def test_a_seed_without_any_prompt_is_left_out() -> None:
    rng = np.random.default_rng(0)
    three = table(rng, 3, WORLDS["both"])
    assert crossed_mean(np.vstack([three, np.full(PROMPTS, np.nan)])) == crossed_mean(three)


def test_runs_are_worth_the_smaller_number_of_seeds() -> None:
    assert independent_seeds([(0, 0), (1, 1), (2, 2)]) == 3
    assert independent_seeds([(one, two) for one in range(3) for two in range(5)]) == 3
    assert independent_seeds([(0, two) for two in range(4)]) == 4
    assert independent_seeds([(0, 0)]) == 1
    with pytest.raises(ValueError, match=r"2 rows have the same seeds \(1, 1\)"):
        crossed_mean(np.ones((2, 3)), [(1, 1), (1, 1)])
