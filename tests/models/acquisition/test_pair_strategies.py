"""Strategies over pairs, each against its published formula worked out another way."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import digamma, expit

from models.acquisition.apl import Apl
from models.acquisition.badge import Badge
from models.acquisition.bal_pm import BalPm
from models.acquisition.bald import Bald
from models.acquisition.base import Pool
from models.acquisition.d_optimal import DOptimal
from models.acquisition.ensemble_variance import EnsembleVariance
from models.acquisition.least_confidence import LeastConfidence
from models.acquisition.pair_rules.random_pair import RandomPair
from models.acquisition.pair_variance import PairVariance
from models.acquisition.pairwise import Pairs, candidates
from models.acquisition.pref_entropy import PrefEntropy
from models.acquisition.sharp import Sharp
from models.core.arrays import FloatArray
from models.core.data import Selection

RNG = np.random.default_rng


def two_per_prompt(prompts: int = 15, *, members: int = 6, dimensions: int = 3, seed: int = 0) -> Pool:
    """Two responses a prompt, so that every rule names the same pair."""
    rng = RNG(seed)
    size = 2 * prompts
    nothing = np.zeros(size, dtype=bool)
    return Pool(
        ids=[f"t{n:03}" for n in range(size)],
        prompt=np.repeat(np.arange(prompts), 2),
        unavailable=nothing,
        labelled=nothing,
        vectors=rng.normal(size=(size, dimensions)).astype(np.float32),
        logprob=-rng.gamma(4, 3, size),
        reference_logprob=-rng.gamma(4, 3, size),
        tokens=np.full(size, 9),
        scores=rng.normal(size=(members, size)),
    )


def prompts_of(pool: Pool, picks: list[Selection]) -> list[int]:
    """The prompts in the order picked, each once."""
    return list(dict.fromkeys(int(pool.prompt[pool.ids.index(p.response_id)]) for p in picks))


def preferences(pool: Pool) -> FloatArray:
    """p^e of each prompt's first response over its second, up to the order of the two."""
    assert pool.scores is not None
    return expit(pool.scores[:, 0::2] - pool.scores[:, 1::2])


def h(p: FloatArray) -> FloatArray:
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_bald_is_the_mutual_information_by_enumeration() -> None:
    """Σ over outcomes and members of p(y, e) log p(y, e) / p(y) p(e)."""
    pool = two_per_prompt()
    p = preferences(pool)
    members = len(p)
    information = np.zeros(p.shape[1])
    for outcome in (p, 1 - p):
        information += (outcome / members * np.log(outcome / outcome.mean(axis=0))).sum(axis=0)
    picks = Bald().select(pool, 30, RNG(0))
    assert prompts_of(pool, picks) == list(np.argsort(-information))
    assert [p.utility for p in picks[::2]] == pytest.approx(np.sort(information)[::-1], abs=1e-9)


def test_bald_prefers_disagreement_and_entropy_does_not_care() -> None:
    """Two prompts with p̄ = ½: the members agree that it is even, or are sure of opposite outcomes."""
    pool = two_per_prompt(2, members=2)
    scores = np.array([[0.0, 0.0, 3.0, -3.0], [0.0, 0.0, -3.0, 3.0]])
    pool = replace(pool, scores=scores)
    assert prompts_of(pool, Bald().select(pool, 2, RNG(0))) == [1]
    utilities = [p.utility for p in PrefEntropy().select(pool, 4, RNG(0))]
    assert utilities == pytest.approx([np.log(2)] * 4)


@pytest.mark.parametrize("strategy", [PrefEntropy(), LeastConfidence()])
def test_the_closest_call_comes_first(strategy: PrefEntropy) -> None:
    pool = two_per_prompt()
    mean = preferences(pool).mean(axis=0)
    picks = strategy.select(pool, 30, RNG(0))
    assert prompts_of(pool, picks) == list(np.argsort(np.abs(mean - 0.5)))
    expected = h(mean) if isinstance(strategy, PrefEntropy) else 1 - np.maximum(mean, 1 - mean)
    assert [p.utility for p in picks[::2]] == pytest.approx(np.sort(expected)[::-1])


def test_variance_is_of_the_tuple_or_of_the_difference() -> None:
    pool = two_per_prompt()
    assert pool.scores is not None
    ranked = EnsembleVariance().select(pool, 30, RNG(0))
    assert [p.response_id for p in ranked] == [pool.ids[row] for row in np.argsort(-pool.scores.var(axis=0))]
    shifted = replace(pool, scores=pool.scores + RNG(1).normal(size=(6, 15)).repeat(2, axis=1) * 100)
    pairs = [PairVariance().select(given, 30, RNG(0)) for given in (pool, shifted)]
    assert prompts_of(pool, pairs[0]) == prompts_of(pool, pairs[1]), "what a member gives to a whole prompt cancels"


@pytest.mark.parametrize("weight", ["one", "bernoulli"])
def test_d_optimal_raises_the_determinant_most_with_every_pick(weight: str) -> None:
    pool = two_per_prompt(12)
    assert pool.vectors is not None
    direction = (pool.vectors[0::2] - pool.vectors[1::2]).astype(float)
    p = preferences(pool).mean(axis=0)
    w = np.ones(12) if weight == "one" else p * (1 - p)
    design, left, expected = 0.5 * np.eye(3), list(range(12)), []
    for _ in range(6):
        best = max(left, key=lambda c: np.linalg.slogdet(design + w[c] * np.outer(direction[c], direction[c]))[1])
        expected.append(best)
        left.remove(best)
        design = design + w[best] * np.outer(direction[best], direction[best])
    picks = DOptimal(weight=weight, ridge=0.5).select(pool, 12, RNG(0))  # type: ignore[arg-type]
    assert prompts_of(pool, picks) == expected


def test_d_optimal_knows_the_directions_that_are_labelled() -> None:
    pool = two_per_prompt(2, dimensions=2)
    vectors = np.array([[0, 0], [2, 0], [0, 0], [0, 1], [0, 0], [2, 0]], dtype=np.float32)
    pool = Pool(
        ids=list("abcdef"),
        prompt=np.array([0, 0, 1, 1, 2, 2]),
        unavailable=np.array([True, True, False, False, False, False]),
        labelled=np.array([True, True, False, False, False, False]),
        vectors=vectors,
    )
    picks = DOptimal(ridge=0.1, pairs=RandomPair()).select(pool, 2, RNG(0))
    assert prompts_of(pool, picks) == [1], "the longer direction has been asked about"


def test_badge_starts_at_the_largest_gradient_and_keeps_away_from_what_it_has() -> None:
    pool = two_per_prompt(40)
    assert pool.vectors is not None
    p = preferences(pool).mean(axis=0)
    gradient = (p - (p > 0.5))[:, None] * (pool.vectors[0::2] - pool.vectors[1::2])
    picks = Badge().select(pool, 20, RNG(0))
    chosen = prompts_of(pool, picks)
    assert chosen[0] == np.linalg.norm(gradient, axis=1).argmax()

    def spread(rows: list[int]) -> float:
        return float(np.mean([np.linalg.norm(gradient[a] - gradient[b]) for a in rows for b in rows]))

    random = np.mean([spread(list(RNG(s).choice(40, 10, replace=False))) for s in range(50)])
    assert np.mean([spread(prompts_of(pool, Badge().select(pool, 20, RNG(s)))) for s in range(20)]) > 1.1 * random


def test_bal_pm_is_the_loop_over_its_formula() -> None:
    pool = two_per_prompt(14)
    assert pool.vectors is not None
    x = pool.vectors[0::2].astype(float)
    pool = replace(pool, vectors=np.repeat(pool.vectors[0::2], 2, axis=0))
    p = preferences(pool)
    information = h(p.mean(axis=0)) - h(p).mean(axis=0)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    reach = np.sort(distances, axis=1)[:, 4]  # the fourth neighbour: the row itself comes first
    acquired: list[int] = []
    for _ in range(7):
        near = (distances[:, acquired] <= reach[:, None] + 1e-9).sum(axis=1)
        utility = information + 0.7 * (np.log(2 * reach) - digamma(near + 1) / 3)
        utility[acquired] = -np.inf
        acquired.append(int(utility.argmax()))
    picks = BalPm(beta=0.7, neighbours=4).select(pool, 14, RNG(0))
    assert prompts_of(pool, picks) == acquired
    assert prompts_of(pool, BalPm(beta=0.0, neighbours=4).select(pool, 14, RNG(0))) != acquired
    assert set(json.loads(picks[0].components)) == {"information", "spread"}


def test_bal_pm_leaves_the_neighbourhood_of_labelled_prompts() -> None:
    pool = two_per_prompt(60, dimensions=2)
    assert pool.vectors is not None
    same = replace(pool, scores=np.zeros((3, 120)), vectors=np.repeat(pool.vectors[0::2], 2, axis=0))
    assert same.vectors is not None
    around = RNG(0).normal(size=(50, 2)).astype(np.float32) * 0.01
    known = replace(same, anchors=same.vectors[:1] + around)
    free, away = (BalPm(beta=1.0, neighbours=20).select(p, 30, RNG(0)) for p in (same, known))

    def distance(picks: list[Selection]) -> float:
        return float(np.mean([np.linalg.norm(x[2 * n] - x[0]) for n in prompts_of(pool, picks)]))

    x = np.asarray(same.vectors)
    assert distance(away) > distance(free)


def test_apl_filters_by_entropy_and_then_ranks_by_the_implicit_margin() -> None:
    """A peer has the sign of the entropy reversed; another averages it across prompts."""
    pool = two_per_prompt(20)
    assert pool.logprob is not None
    assert pool.reference_logprob is not None
    entropy = -(pool.logprob[0::2] + pool.logprob[1::2]) / 2
    implicit = pool.logprob - pool.reference_logprob
    margin = np.abs(implicit[0::2] - implicit[1::2])
    kept = np.argsort(-entropy)[:10]  # 2.5 × the batch of 4 pairs
    expected = kept[np.argsort(-margin[kept])][:4]
    assert prompts_of(pool, Apl(widen=2.5).select(pool, 8, RNG(0))) == list(expected)
    assert prompts_of(pool, Sharp().select(pool, 8, RNG(0))) == list(np.argsort(margin)[:4])


def test_a_pair_half_labelled_costs_one_query_and_one_wholly_labelled_none() -> None:
    pool = two_per_prompt(3, members=2)
    scores = np.tile([0.0, 0.1, 0.0, 0.2, 0.0, 5.0], (2, 1))
    known = np.array([True, False, True, True, False, False])
    pool = replace(pool, scores=scores, labelled=known, unavailable=known)
    picks = PrefEntropy().select(pool, 3, RNG(0))
    assert picks[0].response_id == "t001"
    assert {p.response_id for p in picks[1:]} == {"t004", "t005"}


def test_a_pair_that_is_known_gives_way_to_the_next_one_at_once() -> None:
    scores = np.tile([0.0, 1.0, 2.0, 3.0] * 2, (2, 1))
    known = np.array([True, False, False, True] * 2)
    prompt = np.repeat([0, 1], 4)
    pool = Pool(ids=list("abcdefgh"), prompt=prompt, unavailable=known, labelled=known, scores=scores)
    assert all(np.isfinite(p.utility) for p in PrefEntropy().select(pool, 4, RNG(0)))


def test_d_optimal_remembers_its_picks_when_it_names_further_pairs() -> None:
    """One direction only: the second pair of a prompt lies along what the first has told."""
    vectors = np.array([[0.0, 0.0], [10.0, 0.0], [1.0, 0.0], [9.0, 0.0]], dtype=np.float32)
    nothing = np.zeros(4, dtype=bool)
    pool = Pool(
        ids=list("abcd"),
        prompt=np.zeros(4, dtype=np.int64),
        unavailable=nothing,
        labelled=nothing,
        vectors=vectors,
        scores=np.tile([0.0, 9.0, 1.0, 8.0], (2, 1)),
    )
    picks = DOptimal().select(pool, 4, RNG(0))
    assert [p.utility for p in picks[::2]] == pytest.approx([10.0, 8 / np.sqrt(101)])


def test_when_every_pair_is_spent_the_rule_names_the_next_ones() -> None:
    """Six responses of one prompt: best and worst, then second best and second worst, then the middle two."""
    scores = np.tile([0.0, 9.0, 1.0, 6.0, 3.0, 4.0], (2, 1))
    nothing = np.zeros(6, dtype=bool)
    pool = Pool(
        ids=list("abcdef"), prompt=np.zeros(6, dtype=np.int64), unavailable=nothing, labelled=nothing, scores=scores
    )
    picks = PrefEntropy().select(pool, 6, RNG(0))
    assert [{p.response_id for p in picks[n : n + 2]} for n in (0, 2, 4)] == [{"a", "b"}, {"c", "d"}, {"e", "f"}]
    assert all(np.isfinite(p.utility) for p in picks)


def test_a_prompt_with_a_single_response_makes_no_pair() -> None:
    pool = two_per_prompt(3).take(np.array([0, 1, 2, 4, 5]))
    pairs = candidates(pool, RandomPair(), RNG(0), among=~pool.unavailable)
    assert sorted(pool.prompt[pairs.first]) == [0, 2]
    picks = PrefEntropy().select(pool, 5, RNG(0))
    assert picks[-1].response_id == "t002"
    assert picks[-1].utility == -np.inf


def test_temperature_makes_a_margin_softer() -> None:
    pool = two_per_prompt()
    pairs = Pairs(pool, np.arange(0, 30, 2), np.arange(1, 30, 2))
    assert pairs.preference(2.0) == pytest.approx(expit(pairs.difference / 2.0))
