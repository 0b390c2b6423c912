"""One contract for every strategy, and what each one promises on its own."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.acquisition.apl import Apl
from models.acquisition.base import Acquisition, Pool
from models.acquisition.coreset import CoresetEFT, CoresetIFT
from models.acquisition.cost_aware import CostAware
from models.acquisition.d_optimal import DOptimal
from models.acquisition.hybrid import Hybrid
from models.acquisition.kcenter import farthest_first
from models.acquisition.margin import Margin
from models.acquisition.pair_rules.base import PairRule
from models.acquisition.predictive_entropy import PredictiveEntropy
from models.acquisition.pref_entropy import PrefEntropy
from models.acquisition.random import Random
from models.core.arrays import Float32Array
from models.core.registry import plugins_of
from ninefold.testing import check_acquisition, make_pool

RULES: list[PairRule] = [rule() for rule in plugins_of(PairRule)]
STRATEGIES: list[Acquisition] = [
    *[kind() for kind in plugins_of(Acquisition)],
    Random(stratified=True),
    PredictiveEntropy(per_token=True),
    DOptimal(weight="bernoulli"),
    Hybrid(uncertainty=PredictiveEntropy()),
    CostAware(utility_of=Margin(), gamma=0.5),
    *[PrefEntropy(pairs=rule) for rule in RULES],
]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)


def ids(picks: list[Any]) -> list[str]:
    return [pick.response_id for pick in picks]


@every_strategy
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts=st.integers(1, 8),
    samples=st.integers(1, 4),
    labelled=st.integers(0, 10),
    budget=st.integers(0, 40),
    constant=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_strategy_keeps_the_contract(strategy: Acquisition, **shape: Any) -> None:
    check_acquisition(strategy, **shape)


@pytest.mark.parametrize(
    ("strategy", "field"),
    [
        (CoresetEFT(), "vectors"),
        (PredictiveEntropy(), "logprob"),
        (Margin(), "scores"),
        (Apl(), "reference_logprob"),
        (CostAware(), "cost"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_refused_by_name(strategy: Acquisition, field: str, value: float) -> None:
    pool = make_pool()
    values = getattr(pool, field)
    if field == "scores":
        values[2, 7] = value
    else:
        values[7] = value
    with pytest.raises(ValueError, match=f"{field} of tuple {pool.ids[7]} is not finite"):
        strategy.select(pool, 3, np.random.default_rng(0))


def naive(vectors: Float32Array, k: int, centres: list[int]) -> list[int]:
    """The textbook loop: all distances to every new centre."""
    distance = np.min([np.linalg.norm(vectors - vectors[c], axis=1) for c in centres], axis=0)
    picked: list[int] = []
    for _ in range(k):
        distance[centres + picked] = -1
        picked.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[picked[-1]], axis=1))
    return picked


@pytest.mark.parametrize(("size", "dimensions", "k"), [(40, 3, 20), (700, 8, 200), (3000, 24, 400)])
def test_farthest_first_picks_what_the_naive_loop_picks(size: int, dimensions: int, k: int) -> None:
    vectors = np.random.default_rng(size).normal(size=(size, dimensions)).astype(np.float32)
    labelled = [3, 17, 29]
    assert farthest_first(vectors, k, labelled=labelled, rng=np.random.default_rng(0)) == naive(vectors, k, labelled)


def test_a_warm_start_is_the_continuation_of_a_cold_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32)
    whole = farthest_first(vectors, 60, rng=np.random.default_rng(4))
    rest = farthest_first(vectors, 40, labelled=whole[:20], rng=np.random.default_rng(5))
    assert rest == whole[20:]


def test_farthest_first_does_not_depend_on_the_number_of_threads() -> None:
    import faiss

    vectors = np.random.default_rng(1).normal(size=(2000, 16)).astype(np.float32)
    before = faiss.omp_get_max_threads()
    picks = []
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        picks.append(farthest_first(vectors, 150, rng=np.random.default_rng(0)))
    faiss.omp_set_num_threads(before)
    assert picks[0] == picks[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_optimum(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(11, 2)).astype(np.float32)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    best = min(distances[:, list(centres)].min(axis=1).max() for centres in combinations(range(11), 3))
    picked = farthest_first(vectors, 3, rng=np.random.default_rng(seed))
    assert distances[:, picked].min(axis=1).max() <= 2 * best + 1e-6


def test_farthest_first_refuses_more_picks_than_free_rows() -> None:
    with pytest.raises(ValueError, match="k must be at most the 3 rows that are free, got 4"):
        farthest_first(np.eye(4, dtype=np.float32), 4, labelled=[0], rng=np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_farthest_first_names_what_it_cannot_work_with(value: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="labelled row 4 is outside the pool of 4 rows"):
        farthest_first(vectors, 1, labelled=[0, 4], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="k must not be negative, got -1"):
        farthest_first(vectors, -1, rng=np.random.default_rng(0))
    vectors[2, 1] = value
    with pytest.raises(ValueError, match="vector 2 is not finite"):
        farthest_first(vectors, 2, labelled=[0], rng=np.random.default_rng(0))


def test_vectors_of_length_zero_and_repeated_rows_are_points_like_any_other() -> None:
    vectors = np.array([[0, 0], [0, 0], [3, 4], [3, 4], [1, 0]], dtype=np.float32)
    assert farthest_first(vectors, 2, labelled=[0], rng=np.random.default_rng(0)) in ([2, 4], [3, 4])
    assert sorted(farthest_first(vectors, 5, rng=np.random.default_rng(0))) == [0, 1, 2, 3, 4]


@every_strategy
def test_an_empty_pool_gives_nothing(strategy: Acquisition) -> None:
    assert strategy.select(make_pool(prompts=0), 3, np.random.default_rng(0)) == []


def test_a_coreset_keeps_away_from_what_earlier_rounds_have_labelled() -> None:
    pool = make_pool(prompts=30, samples=1)
    near = pool.vectors[:1] if pool.vectors is not None else None
    far_away = Pool(**{**pool.__dict__, "anchors": near})
    picks = CoresetIFT().select(far_away, 1, np.random.default_rng(0))
    assert pool.vectors is not None
    farthest = np.linalg.norm(pool.vectors - pool.vectors[0], axis=1).argmax()
    assert picks[0].response_id == pool.ids[farthest]


def test_a_coreset_beats_random_on_coverage() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(20, 6)) * 10
    sizes = np.geomspace(1, 100, 20).astype(int)
    vectors = np.concatenate([c + rng.normal(size=(n, 6)) * 0.1 for c, n in zip(clusters, sizes, strict=True)])
    vectors = vectors.astype(np.float32)

    def radius(rows: Any) -> float:
        return float(np.linalg.norm(vectors[:, None] - vectors[rows][None], axis=2).min(axis=1).max())

    picked = farthest_first(vectors, 20, rng=rng)
    assert radius(picked) < 0.2 * min(radius(rng.choice(len(vectors), 20, replace=False)) for _ in range(20))


def test_entropy_ranks_a_uniform_policy_above_a_peaked_one() -> None:
    pool = make_pool(prompts=2, samples=3)
    flat = Pool(**{**pool.__dict__, "logprob": np.array([-1.0, -1.0, -1.0, -8.0, -9.0, -7.0])})
    picks = ids(PredictiveEntropy().select(flat, 3, np.random.default_rng(0)))
    assert set(picks) == set(pool.ids[3:])


def test_entropy_is_averaged_within_a_prompt_never_across() -> None:
    pool = make_pool(prompts=2, samples=2)
    given_logprob = np.array([-1.0, -3.0, -10.0, -20.0])
    utility = PredictiveEntropy().utility(Pool(**{**pool.__dict__, "logprob": given_logprob}), np.random.default_rng(0))
    assert utility.tolist() == [2.0, 2.0, 15.0, 15.0]


def test_per_token_entropy_is_not_moved_by_length_alone() -> None:
    pool = make_pool(prompts=2, samples=1)
    changed = {**pool.__dict__, "logprob": np.array([-2.0, -20.0]), "tokens": np.array([2, 20])}
    utility = PredictiveEntropy(per_token=True).utility(Pool(**changed), np.random.default_rng(0))
    assert utility.tolist() == [1.0, 1.0]


def test_margin_asks_about_both_sides_of_the_closest_pair() -> None:
    pool = make_pool(prompts=3, samples=3)
    scores = np.tile([0.0, 5.0, 9.0, 1.0, 1.1, 1.05, 0.0, 2.0, 4.0], (4, 1))
    picks = ids(Margin().select(Pool(**{**pool.__dict__, "scores": scores}), 2, np.random.default_rng(0)))
    assert set(picks) == {pool.ids[3], pool.ids[4]}


def test_margin_is_monte_carlo_over_members() -> None:
    from scipy.special import expit

    pool = make_pool(prompts=1, samples=2)
    scores = np.array([[0.0, 2.0], [0.0, -1.0]])
    picks = Margin(temperature=2.0).select(replace(pool, scores=scores), 2, np.random.default_rng(0))
    assert [p.utility for p in picks] == pytest.approx([-abs((expit(1.0) + expit(-0.5)) / 2 - 0.5)] * 2)


def test_a_strategy_without_its_inputs_says_what_it_needs() -> None:
    bare = Pool(**{**make_pool().__dict__, "vectors": None, "scores": None, "logprob": None})
    for strategy, need in (
        (CoresetIFT(), "instruction view"),
        (Margin(), "evaluator"),
        (PredictiveEntropy(), "log-prob"),
        (Apl(), "needs log-prob"),
    ):
        with pytest.raises(ValueError, match=need):
            strategy.select(bare, 1, np.random.default_rng(0))
