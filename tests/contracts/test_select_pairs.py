"""Pairs for a pairwise oracle: what every strategy over pairs promises when it is asked for pairs."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from models.acquisition.base import Acquisition, Pool
from models.acquisition.pairwise import PairAcquisition
from models.acquisition.random_pairs import RandomPairs
from models.core.registry import plugins_of

RNG = np.random.default_rng


def make_pool(prompts: int, samples: int) -> Pool:
    rng, size = RNG(0), prompts * samples
    nothing = np.zeros(size, dtype=bool)
    return Pool(
        ids=[f"t{n:03}" for n in range(size)],
        prompt=np.repeat(np.arange(prompts), samples),
        unavailable=nothing,
        labelled=nothing,
        vectors=rng.normal(size=(size, 3)).astype(np.float32),
        logprob=-rng.gamma(4, 3, size),
        reference_logprob=-rng.gamma(4, 3, size),
        tokens=np.full(size, 9),
        scores=rng.normal(size=(6, size)),
    )


PAIR_STRATEGIES = [kind() for kind in plugins_of(Acquisition) if issubclass(kind, PairAcquisition)]


@pytest.mark.parametrize("strategy", PAIR_STRATEGIES, ids=lambda s: s.kind)
@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_pairs_for_a_pairwise_oracle_share_no_response(strategy: PairAcquisition, budget: int) -> None:
    rng = RNG(budget)
    size = 5 * 6
    taken = rng.random(size) < 0.2
    pool = replace(make_pool(6, 5), unavailable=taken, labelled=taken & (rng.random(size) < 0.5))
    available = sum(int((~taken[pool.prompt == prompt]).sum()) // 2 for prompt in range(6))
    picks = strategy.select_pairs(pool, budget, RNG(3))
    assert len(picks) == min(budget, available)
    asked = [i for p in picks for i in (p.response_id, p.against)]
    assert len(set(asked)) == len(asked)
    rows = [pool.ids.index(i) for i in asked]
    assert not taken[rows].any()
    assert (pool.prompt[rows[::2]] == pool.prompt[rows[1::2]]).all()
    shuffled = pool.take(RNG(9).permutation(size))
    assert strategy.select_pairs(shuffled, budget, RNG(3)) == picks
    assert all(json.loads(p.components) for p in picks)


def test_random_pairs_are_uniform_over_prompts_and_pairs() -> None:
    pool = make_pool(4, 3)
    count: Counter[frozenset[str]] = Counter()
    for seed in range(1200):
        (pick,) = RandomPairs().select_pairs(pool, 1, RNG(seed))
        count[frozenset((pick.response_id, pick.against))] += 1
    assert len(count) == 12
    assert min(count.values()) > 60
