"""The win rate at equal length: found where it is known, and the same as an independent fit gives."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from models.metrics.length_control import gain_at_equal_length, length_controlled, logistic


def judged(count: int, quality: float, length: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Comparisons in which the challenger, usually longer, wins by its quality and by its length."""
    rng = np.random.default_rng(seed)
    longer_by = rng.normal(40, 60, size=count)
    chance = expit(quality + length * np.tanh(longer_by / longer_by.std()))
    return (rng.random(count) < chance).astype(float), longer_by, np.arange(count)


def test_what_length_adds_is_taken_out() -> None:
    wins, longer_by, prompt = judged(6000, quality=0.3, length=1.5)
    found = length_controlled(wins, longer_by, prompt)
    assert found.win_rate.low < expit(0.3) < found.win_rate.high
    assert wins.mean() > found.win_rate.high, "the raw rate is flattered"
    assert found.length_effect == pytest.approx(3.0, abs=0.4)


def test_a_longer_challenger_that_is_no_better_wins_half() -> None:
    wins, longer_by, prompt = judged(6000, quality=0.0, length=2.0)
    found = length_controlled(wins, longer_by, prompt)
    assert found.win_rate.low < 0.5 < found.win_rate.high
    assert wins.mean() > 0.6


def test_equal_lengths_change_nothing() -> None:
    wins = np.array([1.0, 0.0, 1.0, 0.5, 1.0, 1.0] * 20)
    found = length_controlled(wins, np.zeros(120), np.arange(120))
    assert found.win_rate.mean == pytest.approx(wins.mean(), abs=1e-3)
    assert found.length_effect == 0.0


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_challenger_who_always_wins_or_loses_has_a_finite_rate(outcome: float) -> None:
    longer_by = np.linspace(-50, 80, 60)
    found = length_controlled(np.full(60, outcome), longer_by, np.arange(60))
    assert found.win_rate.mean == pytest.approx(outcome, abs=0.02)
    assert np.isfinite([*found.win_rate, found.length_effect]).all()


def test_one_prompt_has_no_interval() -> None:
    found = length_controlled(np.array([1.0, 0.0, 1.0]), np.array([3.0, 1.0, -2.0]), np.zeros(3, dtype=int))
    assert np.isfinite(found.win_rate.mean)
    assert np.isnan([found.win_rate.low, found.win_rate.high]).all()


def test_answers_to_one_prompt_are_resampled_together() -> None:
    wins, longer_by, prompt = judged(150, quality=0.5, length=1.0)
    alone = length_controlled(wins, longer_by, prompt)
    repeated = length_controlled(np.tile(wins, 8), np.tile(longer_by, 8), np.tile(prompt, 8))
    assert repeated.win_rate.high - repeated.win_rate.low == pytest.approx(
        alone.win_rate.high - alone.win_rate.low, rel=0.1
    )


def test_the_regression_is_that_of_a_library() -> None:
    rng = np.random.default_rng(0)
    columns, outcome, weight = rng.normal(size=(300, 3)), rng.random(300), rng.uniform(0, 2, size=300)
    found = logistic(columns, outcome, weight[None, :])[0]
    twice = np.tile(columns, (2, 1))
    model = LogisticRegression(C=1 / 0.01, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(twice, np.repeat([1, 0], 300), np.concatenate([outcome * weight, (1 - outcome) * weight]))
    np.testing.assert_allclose(found, model.coef_[0], atol=1e-5)


def test_the_gain_of_two_policies_that_are_as_good_has_an_interval_that_says_so() -> None:
    """What the regression predicts varies only with the instructions: the judge's noise is in the refits alone."""
    covered, widths = 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hard, longer = rng.normal(size=300), rng.normal(40, 60, size=(2, 300))
        chance = expit(-0.5 - hard + 1.0 * np.tanh(longer / 60))
        wins = (rng.random((2, 300)) < chance).astype(float)
        found = gain_at_equal_length(wins, longer, -hard)
        covered += found.low < 0 < found.high
        widths.append(found.high - found.low)
    assert covered >= 34, "95 % of 40, less what chance takes"
    assert 0.08 < np.mean(widths) < 0.25, "about that of a difference of two rates of 300"


def test_a_better_policy_is_found_at_equal_length() -> None:
    rng = np.random.default_rng(0)
    hard, longer = rng.normal(size=4000), np.stack([rng.normal(0, 60, size=4000), rng.normal(90, 60, size=4000)])
    quality = np.array([-0.5, 0.2])[:, None]
    wins = expit(quality - hard + 1.5 * np.tanh(longer / 60))
    found = gain_at_equal_length(wins, longer, -hard)
    truth = float((expit(0.2 - hard) - expit(-0.5 - hard)).mean())
    assert found.mean == pytest.approx(truth, abs=0.02)
    assert found.low < found.mean < found.high
    assert wins[1].mean() - wins[0].mean() > truth + 0.1, "the raw gain is flattered"
