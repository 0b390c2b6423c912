"""The losses of a reward head against their definitions."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from models.training.reward_losses import information, ordinal_head, proportional_odds, squared_error


def outputs(*columns: Any) -> Any:
    return SimpleNamespace(logits=torch.tensor(np.stack(columns, axis=1), dtype=torch.float32, requires_grad=True))


def test_regression_is_the_mean_squared_error() -> None:
    found = squared_error(outputs([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    assert float(found.detach()) == pytest.approx((1 + 4) / 2)


def chances(rewards: Any, thresholds: Any) -> Any:
    above = expit(np.asarray(rewards)[:, None] - thresholds)
    whole = np.hstack([np.ones((len(above), 1)), above, np.zeros((len(above), 1))])
    return whole[:, :-1] - whole[:, 1:]


def test_levels_are_as_likely_as_proportional_odds_say() -> None:
    rewards, thresholds, levels = np.array([0.3, -1.0, 2.0, 0.0]), np.array([-1.0, 0.5, 1.5]), np.array([0, 1, 3, 2])
    given = outputs(rewards, *(np.full(4, t) for t in thresholds))
    loss = proportional_odds(given, torch.tensor(levels))
    expected = chances(rewards, thresholds)
    np.testing.assert_allclose(expected.sum(1), 1.0)
    assert float(loss.detach()) == pytest.approx(-np.log(expected[np.arange(4), levels]).mean(), abs=1e-6)
    loss.backward()
    assert torch.isfinite(given.logits.grad).all(), "also at the ends of the scale"


def test_the_loss_stays_finite_far_from_the_level() -> None:
    given = outputs([60.0, -60.0], [-0.5, -0.5], [0.5, 0.5])
    loss = proportional_odds(given, torch.tensor([0, 2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(60.5, abs=0.1)
    assert torch.isfinite(given.logits.grad).all()


def test_thresholds_are_in_order_whatever_is_learnt() -> None:
    head = ordinal_head()(torch.randn(1, 6), 5)
    with torch.no_grad():
        head.gaps.copy_(torch.tensor([-4.0, 3.0, -9.0, 0.0]))
        found = head(torch.randn(2, 7, 6))
    assert found.shape == (2, 7, 6)
    assert (found[..., 1:].diff(dim=-1) > 0).all()
    assert (found[..., 1:] == found[0, 0, 1:]).all()


def test_thresholds_are_learnt_in_bfloat16_too() -> None:
    head = ordinal_head()(torch.randn(1, 6, dtype=torch.bfloat16), 5)
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-4)
    before = head(torch.randn(1, 6, dtype=torch.bfloat16)).detach()[0, 1:]
    states = torch.randn(8, 6, dtype=torch.bfloat16)
    proportional_odds(SimpleNamespace(logits=head(states)), torch.zeros(8)).backward()
    optimiser.step()
    after = head(states).detach()[0, 1:]
    assert (after[0] > before[0]).all(), "all were of the lowest level: its threshold rises"


def test_the_information_of_a_level_is_the_expected_curvature() -> None:
    rewards, thresholds, step = np.linspace(-2, 2, 5), np.array([-1.0, 0.2, 1.5]), 1e-4
    log = [np.log(chances(rewards + move * step, thresholds)) for move in (-1, 0, 1)]
    curvature = -(log[0] - 2 * log[1] + log[2]) / step**2
    expected = (chances(rewards, thresholds) * curvature).sum(1)
    np.testing.assert_allclose(information("ordinal", rewards, rewards, thresholds), expected, rtol=1e-4)
    np.testing.assert_allclose(information("regression", np.zeros(4), np.full(4, 0.5), thresholds), 4.0)
