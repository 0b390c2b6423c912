"""The Laplace approximation of a head against its definition."""

import numpy as np
import pytest
from scipy.special import expit

from models.evaluators.laplace import draw_heads, of_comparisons, of_texts

RNG = np.random.default_rng


def test_draws_have_the_heads_mean_and_the_posteriors_covariance() -> None:
    differences, head = RNG(0).normal(size=(200, 3)), np.array([1.0, -0.5, 0.2])
    draws = draw_heads(head, of_comparisons(head, differences), 40_000, RNG(1))
    np.testing.assert_allclose(draws.mean(0), head, atol=1e-12)
    chance = expit(differences @ head)
    curvature = (differences * (chance * (1 - chance))[:, None]).T @ differences
    precisions = np.exp(np.linspace(-8, 8, 4001))
    evidence = [3 * np.log(p) - p * head @ head - np.linalg.slogdet(curvature + p * np.eye(3))[1] for p in precisions]
    best = precisions[int(np.argmax(evidence))]
    expected = np.linalg.inv(curvature + best * np.eye(3))
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.03 * expected.max())


def test_a_direction_that_was_never_compared_is_the_most_uncertain() -> None:
    differences = RNG(0).normal(size=(100, 4)) * [1, 1, 1, 0]
    head = np.array([1.0, 0.0, -1.0, 0.0])
    draws = draw_heads(head, of_comparisons(head, differences), 64, RNG(0))
    spread = draws.std(0)
    assert spread[3] > 2 * spread[:3].max()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_there_are_as_many_as_asked_for(count: int) -> None:
    head = np.array([0.5, 2.0])
    draws = draw_heads(head, of_comparisons(head, np.ones((1, 2))), count, RNG(0))
    assert draws.shape == (count, 2)
    np.testing.assert_allclose(draws.mean(0), head)


def test_of_single_texts_a_constant_is_free() -> None:
    states, weight = RNG(0).normal(size=(50, 3)), RNG(1).uniform(1, 2, size=50)
    found = of_texts(states, weight)
    np.testing.assert_allclose(of_texts(states + np.array([5.0, 0.0, -3.0]), weight), found, atol=1e-8)
    free = np.linalg.inv(
        np.linalg.inv(np.hstack([states, np.ones((50, 1))]).T * weight @ np.hstack([states, np.ones((50, 1))]))[:3, :3]
    )
    np.testing.assert_allclose(found, free, atol=1e-8)
