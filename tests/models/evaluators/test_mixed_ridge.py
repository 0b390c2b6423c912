"""The linear evaluator's arithmetic, each piece against the textbook's slower way."""

from pathlib import Path

import numpy as np
import pytest

from models.core.arrays import IntArray
from models.core.data import Response
from models.core.rubric import Rubric
from models.evaluators.base import Examples, FitContext
from models.evaluators.linear import Linear
from models.evaluators.mixed_ridge import choose_penalty, restore, solve, within
from models.evaluators.text_features import LENGTH, STYLE, length, style
from models.metrics.calibration import temperature
from models.policies.checkpoint import Checkpoint

RNG = np.random.default_rng


@pytest.mark.parametrize("ratio", [0.0, 0.7, 10.0])
def test_comparing_within_groups_is_generalised_least_squares(ratio: float) -> None:
    rng = RNG(0)
    group = np.sort(rng.integers(0, 8, 40))
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    covariance = np.eye(40) + ratio * (group[:, None] == group[None])
    inverse = np.linalg.inv(covariance)
    expected = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
    table = within(np.column_stack([x, y]), group, ratio)
    assert solve(table[:, :3], table[:, 3], np.ones(40), 1e-12) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("size", [12, 60])
@pytest.mark.parametrize("groups", [1, 5, 100])
def test_the_left_out_predictions_are_those_of_fits_without_the_group(size: int, groups: int) -> None:
    rng = RNG(1)
    x, y, group = rng.normal(size=(size, 20)), rng.normal(size=size), rng.integers(0, groups, size)
    chosen = choose_penalty(x, y, group, np.array([3.0]))
    for row in range(size):
        rest = group != group[row]
        head = solve(x[rest], y[rest], np.ones(rest.sum()), 3.0)
        assert chosen.left_out[row] == pytest.approx(x[row] @ head, abs=1e-6)


def test_two_labels_a_prompt_of_pure_noise_are_not_taken_for_signal() -> None:
    """Rows that share their prompt's mean are near mirror images: leaving out one would leave its answer in."""
    group = np.repeat(np.arange(60), 2)

    def explained(apart: IntArray) -> float:
        found = []
        for seed in range(12):
            table = within(RNG(seed).normal(size=(120, 41)), group, 10.0)
            left_out = choose_penalty(table[:, :-1], table[:, -1], apart, np.logspace(-1.5, 3, 19)).left_out
            found.append(1.0 - np.mean((table[:, -1] - left_out) ** 2) / np.var(table[:, -1]))
        return float(np.mean(found))

    assert abs(explained(group)) < 0.05
    assert explained(np.arange(120)) > 0.1


@pytest.mark.parametrize("ratio", [0.0, 10.0])
def test_what_within_takes_away_restore_gives_back(ratio: float) -> None:
    rng = RNG(5)
    table, group = rng.normal(size=(30, 3)), rng.integers(0, 9, 30)
    assert restore(within(table, group, ratio), group, ratio) == pytest.approx(table)


def test_the_penalty_is_large_for_noise_and_small_for_signal() -> None:
    rng = RNG(2)
    x = rng.normal(size=(80, 20))
    alphas = np.logspace(-3, 4, 15)
    noise = choose_penalty(x, rng.normal(size=80), np.arange(80), alphas).alpha
    signal = choose_penalty(x, x @ rng.normal(size=20), np.arange(80), alphas).alpha
    assert signal < 1e-1 < 1e1 < noise


def test_the_temperature_that_made_the_preferences_is_found_again() -> None:
    rng = RNG(3)
    proxy = rng.normal(size=400) * 5
    # the oracle's score is the proxy's plus a Gumbel draw times T: a difference of two is logistic with scale T
    oracle = proxy + rng.gumbel(size=400) * 2.5
    assert temperature(proxy, oracle, np.arange(400), rng) == pytest.approx(2.5, rel=0.15)
    assert temperature(np.zeros(3), np.ones(3), np.arange(3), rng) == 1.0


def test_a_prompts_own_level_is_not_mistaken_for_a_better_answer(tmp_path: Path) -> None:
    """Long prompts get high labels here and long answers low ones: only the comparison within prompts sees it."""
    rng = RNG(4)
    level = rng.normal(size=60)
    responses, features, scores = [], [], []
    for number in range(240):
        prompt = number // 4
        feature = level[prompt] + rng.normal()
        responses.append(Response(str(number), str(prompt), "x", number % 4, "y", 1, 0.0))
        features.append([feature, rng.normal()])
        scores.append(2 * level[prompt] - (feature - level[prompt]))
    given = Examples(responses, np.array(features, dtype=np.float32))

    def right(prompt_effect: float) -> float:
        evaluator = Linear(prompt_effect=prompt_effect, ensemble=2)
        context = FitContext(Checkpoint("unused"), Rubric(), tmp_path, 0)
        evaluator.fit(given, np.array(scores), context)
        found = evaluator.predict(given, context).mean(axis=0).reshape(60, 4)
        truth = np.array(scores).reshape(60, 4)
        return float(np.mean(found.argmax(axis=1) == truth.argmax(axis=1)))

    assert right(10.0) > 0.9
    assert right(0.0) < 0.4


def test_surface_columns_are_finite_and_as_many_as_their_names() -> None:
    texts = ["", "I am sorry.", "1. One\n2. Two\n- **three**: `x` 4!?", "```\ncode\n```"]
    assert style(["p"] * 4, texts).shape == (4, len(STYLE))
    assert length(texts).shape == (4, len(LENGTH))
    assert np.isfinite(style(["p"] * 4, texts)).all()
    found = dict(zip(STYLE, style(["say one"], [texts[2]])[0], strict=True))
    assert found["log_numbered"] == pytest.approx(np.log1p(2))
    assert found["log_bullets"] == pytest.approx(np.log1p(1))
    assert found["prompt_words_repeated"] == pytest.approx(1 / 3)
    assert style([], []).shape == (0, len(STYLE))
