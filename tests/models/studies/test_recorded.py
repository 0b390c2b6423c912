"""Learning curves: what is bought, what is held out, and the figures made of them."""

from dataclasses import replace

import numpy as np
import pytest

from models.acquisition.base import Acquisition
from models.acquisition.coreset import CoresetEFT
from models.acquisition.cost_aware import CostAware
from models.acquisition.margin import Margin
from models.acquisition.random import Random
from models.core.data import Response
from models.evaluators.linear import Linear
from models.metrics.agreement import pair_outcomes
from models.metrics.intervals import paired_difference
from models.metrics.learning_curves import area, reach, saving
from models.studies.recorded import Point, Recording, judge, learning_curve
from models.studies.synthetic import REGIMES, Regime
from models.studies.synthetic import world as known_world

RNG = np.random.default_rng
EVALUATOR = Linear(ensemble=4, style=0.0, length=0.0)
WHOLE = Linear(ensemble=4, embedding=1.0, style=0.0, length=0.0, prompt_effect=0.0)


def world(prompts: int = 50, samples: int = 4, *, seed: int = 0) -> Recording:
    """Scores are linear in the features, with a level of its own for every prompt."""
    rng = RNG(seed)
    size = prompts * samples
    features = rng.normal(size=(size, 6)).astype(np.float32)
    prompt = np.repeat(np.arange(prompts), samples)
    texts = ["word " * int(n) for n in rng.integers(1, 9, size)]
    return Recording(
        responses=[
            Response(f"r{n:04}", f"p{prompt[n]}", "x", n % samples, texts[n], 0, float("nan")) for n in range(size)
        ],
        prompt=prompt,
        scores=4 * features @ np.array([2.0, -1.0, 0.5, 0, 0, 0]) + rng.normal(size=prompts)[prompt],
        micro_usd=rng.integers(1, 9, size),
        vectors={"response": features, "evaluation": features, "instruction": features},
    )


@pytest.mark.parametrize("strategy", [Random(), CoresetEFT(), Margin(), CostAware()], ids=repr)
def test_a_curve_buys_what_it_says_and_learns(strategy: Acquisition) -> None:
    pool, held_out = world().split(0.3, RNG(0))
    points = learning_curve(pool, held_out, strategy, EVALUATOR, budgets=[10, 30, 100], seed=0)
    assert [p.labels for p in points] == [10, 30, 100]
    assert np.all(np.diff([p.micro_usd for p in points]) > 0)
    assert points[-1].pair_accuracy > 0.95
    assert points == learning_curve(pool, held_out, strategy, EVALUATOR, budgets=[10, 30, 100], seed=0)


def test_shuffled_labels_teach_nothing_and_a_strategy_starts_where_random_does() -> None:
    pool, held_out = world().split(0.3, RNG(0))

    def curve(strategy: Acquisition, *, shuffle: bool = False) -> list[Point]:
        return learning_curve(pool, held_out, strategy, EVALUATOR, budgets=[20, 60], seed=3, shuffle=shuffle)

    assert curve(Random(), shuffle=True)[-1].pair_accuracy < 0.8
    assert curve(Margin())[0] == curve(Random())[0]
    assert curve(Margin())[1] != curve(Random())[1]


def test_no_prompt_stands_on_both_sides_of_a_split() -> None:
    pool, held_out = world().split(0.3, RNG(1))
    assert not set(pool.prompt) & set(held_out.prompt)
    assert len(set(held_out.prompt)) == 15
    assert len(pool.responses) + len(held_out.responses) == 200


def test_pairs_of_similar_length_are_counted_by_themselves() -> None:
    oracle, proxy = np.array([0.0, 2.0, 5.0]), np.array([1.0, 0.0, 2.0])
    prompt, length = np.zeros(3, dtype=np.int64), np.array([100.0, 90.0, 10.0])
    assert pair_outcomes(oracle, proxy, prompt)[0].tolist() == [0.0, 1.0, 1.0]
    assert pair_outcomes(oracle, proxy, prompt, least_gap=2.5)[0].tolist() == [1.0, 1.0]
    assert pair_outcomes(oracle, proxy, prompt, length=length, length_share=0.2)[0].tolist() == [0.0]


def test_judging_the_oracles_own_scores_finds_no_fault() -> None:
    held_out = world()
    point = judge(held_out, held_out.scores)
    assert (point.pair_accuracy, point.similar_length) == (1.0, 1.0)
    assert point.spearman == pytest.approx(1.0)
    nothing = judge(replace(held_out, scores=np.zeros(200)), held_out.scores)
    assert np.isnan(nothing.pair_accuracy)


def test_the_area_is_the_mean_height_over_log_labels() -> None:
    labels = np.array([10.0, 20.0, 40.0])
    assert area(labels, np.array([[0.5, 0.6, 0.7], [0.6, 0.6, 0.6]])) == pytest.approx([0.6, 0.6])


def test_reach_interpolates_between_budgets_and_stops_at_the_ends() -> None:
    labels, curve = np.array([10.0, 20.0, 40.0]), np.array([0.5, 0.6, 0.7])
    assert reach(labels, curve, 0.65) == pytest.approx(np.sqrt(20 * 40))
    assert reach(labels, curve, 0.4) == 10
    assert reach(labels, curve, 0.9) == 40


def test_a_saving_is_what_the_better_curve_does_not_need() -> None:
    labels = np.array([10.0, 20.0, 40.0, 80.0])
    noise = RNG(0).normal(size=(12, 4)) * 0.001
    control = np.array([0.5, 0.6, 0.7, 0.8]) + noise
    cost = np.tile(labels * 3, (12, 1))
    found = saving(labels, (cost, cost), (control + 0.1, control), place=2)
    assert found.labels.mean == pytest.approx(20, abs=0.5)
    assert found.labels.low <= 20 <= found.labels.high
    assert found.micro_usd.mean == pytest.approx(60, abs=1.5)
    assert saving(labels, (cost, cost), (control, control), place=2).labels == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_paired_difference_ignores_what_seeds_share() -> None:
    shared = RNG(0).normal(size=20) * 10
    found = paired_difference(shared + 1 + RNG(1).normal(size=20) * 0.1, shared)
    assert found.low < 1.02
    assert found.high - found.low < 0.2


def test_regret_is_what_the_proxys_favourite_falls_short_of_the_best() -> None:
    three = world(prompts=2, samples=2)
    point = judge(replace(three, scores=np.array([1.0, 4.0, 2.0, 0.0])), np.array([9.0, 0.0, 5.0, 1.0]))
    assert point.regret == pytest.approx((3.0 + 0.0) / 2)


@pytest.mark.parametrize("regime", REGIMES)
def test_in_a_known_world_more_labels_leave_less_regret(regime: Regime) -> None:
    curves = []
    for seed in range(3):
        pool, held_out = known_world(regime, seed)
        assert judge(held_out, held_out.scores).regret == 0
        points = learning_curve(pool, held_out, Random(), WHOLE, budgets=[12, 300], seed=seed)
        curves.append([point.regret for point in points])
    first, last = np.mean(curves, axis=0)
    assert last < 0.7 * first


def test_the_regimes_are_what_their_names_say() -> None:
    def spread(regime: Regime) -> float:
        pool = known_world(regime, 0).pool
        _, count = np.unique(pool.vectors["instruction"], axis=0, return_counts=True)
        return float(count.max() / count.sum())

    assert spread("on_policy") < 0.25
    assert spread("imbalanced") > 0.7
    on, off = (known_world(regime, 0).pool.vectors["response"] for regime in ("on_policy", "off_policy"))
    assert np.linalg.norm(on.mean(axis=0) - off.mean(axis=0)) > 0.1
