"""Strategies by coverage and by cost, each against the plain loop of its definition or what it promises."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from models.acquisition.bal_pm import BalPm
from models.acquisition.base import Pool
from models.acquisition.cost_aware import CostAware
from models.acquisition.hybrid import Hybrid
from models.acquisition.max_herding import MaxHerding
from models.acquisition.neighbours import clusters, nearest, neighbour_distances
from models.acquisition.predictive_entropy import PredictiveEntropy
from models.acquisition.random import Random
from models.acquisition.typiclust import TypiClust
from models.core.arrays import FloatArray, IntArray

RNG = np.random.default_rng


def pool_of(vectors: FloatArray, **values: object) -> Pool:
    nothing = np.zeros(len(vectors), dtype=bool)
    pool = Pool(
        ids=[f"t{n:04}" for n in range(len(vectors))],
        prompt=np.arange(len(vectors)),
        unavailable=nothing,
        labelled=nothing,
        vectors=vectors.astype(np.float32),
    )
    return replace(pool, **values)  # type: ignore[arg-type]


def blobs(sizes: list[int], *, seed: int = 0) -> tuple[FloatArray, IntArray]:
    rng = RNG(seed)
    centres = rng.normal(size=(len(sizes), 4)) * 30
    of = np.repeat(np.arange(len(sizes)), sizes)
    return centres[of] + rng.normal(size=(len(of), 4)), of


def rows_of(pool: Pool, picks: list[object]) -> list[int]:
    return [pool.ids.index(pick.response_id) for pick in picks]  # type: ignore[attr-defined]


def test_typiclust_asks_about_the_middle_of_every_cluster_the_largest_first() -> None:
    vectors, of = blobs([60, 40, 20, 10])
    pool = pool_of(vectors)
    rows = rows_of(pool, TypiClust().select(pool, 4, RNG(0)))
    assert [int(of[row]) for row in rows] == [0, 1, 2, 3]
    for row in rows:
        own = vectors[of == of[row]]
        to_centre = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert np.linalg.norm(vectors[row] - own.mean(axis=0)) < np.median(to_centre)


def test_typiclust_goes_where_nothing_is_labelled() -> None:
    vectors, of = blobs([60, 40, 20])
    known = np.arange(len(of)) == 7
    pool = pool_of(vectors, labelled=known, unavailable=known, anchors=vectors[of == 1][:1].astype(np.float32))
    assert of[rows_of(pool, TypiClust().select(pool, 1, RNG(0)))].tolist() == [2]


def herding_by_loop(vectors: FloatArray, count: int, bandwidth: float) -> list[int]:
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    kernel = np.exp(-(distances**2) / (2 * bandwidth**2))
    covered, picked = np.zeros(len(vectors)), list[int]()
    for _ in range(count):
        gain = np.maximum(kernel - covered, 0).sum(axis=1)
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        covered = np.maximum(covered, kernel[picked[-1]])
    return picked


def test_max_herding_picks_what_the_naive_loop_picks() -> None:
    """More rows than the working set, so that lazy evaluation has something to skip."""
    vectors = RNG(0).normal(size=(700, 3))
    distances = np.linalg.norm(vectors[:512, None] - vectors[None], axis=2)
    bandwidth = float(np.median(distances[distances > 1e-6]))
    pool = pool_of(vectors)
    picks = MaxHerding().select(pool, 40, RNG(0))
    expected = herding_by_loop(vectors, 40, bandwidth)
    assert rows_of(pool, picks)[:10] == expected[:10]
    assert len(set(rows_of(pool, picks)) & set(expected)) >= 36, "later gains are near ties in float32"


def test_max_herding_counts_what_is_labelled_as_covered() -> None:
    vectors, of = blobs([50, 30, 10])
    known = of == 0
    pool = pool_of(vectors, labelled=known, unavailable=known)
    assert of[rows_of(pool, MaxHerding(width=0.1).select(pool, 2, RNG(0)))].tolist() == [1, 2]


def test_hybrid_covers_only_what_is_uncertain() -> None:
    vectors = RNG(0).normal(size=(100, 4))
    logprob = -np.arange(100.0)
    pool = pool_of(vectors, logprob=logprob, tokens=np.ones(100, dtype=np.int64))
    picks = Hybrid(uncertainty=PredictiveEntropy(), keep=0.2).select(pool, 10, RNG(0))
    assert set(rows_of(pool, picks)) <= set(range(80, 100))
    assert json.loads(picks[3].components)["uncertainty"] >= 80
    assert len(Hybrid(uncertainty=PredictiveEntropy(), keep=0.2).select(pool, 50, RNG(0))) == 50, (
        "keep yields to the budget"
    )


def test_hybrid_refuses_an_uncertainty_of_another_view() -> None:
    with pytest.raises(ValidationError, match="covers the evaluation view and 'bal_pm' works in the instruction view"):
        Hybrid(uncertainty=BalPm())


def test_cost_aware_buys_more_labels_for_the_same_money() -> None:
    cost = RNG(0).integers(1, 50, 200).astype(float)
    pool = pool_of(np.zeros((200, 2)), cost=cost, money=300.0)

    def bought(gamma: float) -> list[int]:
        rows = rows_of(pool, CostAware(gamma=gamma).select(pool, 200, RNG(0)))
        assert cost[rows].sum() <= 300
        return rows

    assert len(bought(1.0)) > 1.5 * len(bought(0.0))
    assert len(CostAware().select(pool, 3, RNG(0))) == 3


def test_cost_aware_is_the_ratio_worked_out_by_hand() -> None:
    pool = pool_of(
        np.zeros((4, 1)),
        cost=np.array([4.0, 1.0, 2.0, 8.0]),
        money=7.0,
        logprob=-np.array([9.0, 2.0, 5.0, 1.0]),
        tokens=np.ones(4, dtype=np.int64),
    )
    picks = CostAware(utility_of=PredictiveEntropy()).select(pool, 4, RNG(0))
    # entropies 9, 2, 5, 1 shifted by 1, over cost: 2, 1, 2, 0; the fourth does not fit the money
    assert [p.utility for p in picks] == [2.0, 2.0, 1.0]
    assert set(rows_of(pool, picks)[:2]) == {0, 2}


def test_of_equally_wanted_tuples_the_cheaper_is_asked_about_first() -> None:
    pool = pool_of(
        np.zeros((3, 1)), cost=np.array([4.0, 1.0, 2.0]), logprob=-np.ones(3), tokens=np.ones(3, dtype=np.int64)
    )
    assert rows_of(pool, CostAware(utility_of=PredictiveEntropy()).select(pool, 3, RNG(0))) == [1, 2, 0]


def test_hybrid_asks_no_more_than_the_money_of_its_inner_strategy_pays() -> None:
    pool = pool_of(RNG(0).normal(size=(8, 2)), cost=np.full(8, 10.0), money=25.0)
    assert len(Hybrid(uncertainty=CostAware()).select(pool, 4, RNG(0))) == 2


def test_a_negative_price_is_refused_by_name() -> None:
    pool = pool_of(np.zeros((3, 1)), cost=np.array([1.0, -2.0, 1.0]))
    with pytest.raises(ValueError, match="cost of tuple t0001 is negative: -2"):
        CostAware().select(pool, 1, RNG(0))
    with pytest.raises(ValueError, match="needs what each query may cost"):
        CostAware().select(replace(pool, cost=None), 1, RNG(0))


def test_views_that_do_not_match_the_pool_are_refused() -> None:
    pool = pool_of(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="vectors has 2 rows for 3 tuples: the views do not match"):
        Random().select(replace(pool, vectors=np.zeros((2, 1), dtype=np.float32)), 1, RNG(0))
    with pytest.raises(ValueError, match="scores has shape"):
        Random().select(replace(pool, scores=np.zeros((2, 4))), 1, RNG(0))


def test_neighbours_and_clusters_are_those_of_the_definition() -> None:
    vectors, of = blobs([30, 20, 10])
    rows = vectors.astype(np.float32)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    assert neighbour_distances(rows, 3) == pytest.approx(np.sort(distances, axis=1)[:, 1:4], abs=1e-2)
    assert nearest(rows[:5], rows, 1).rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    found = clusters(rows, 3, RNG(1))
    assert len({(int(a), int(b)) for a, b in zip(found, of, strict=True)}) == 3
