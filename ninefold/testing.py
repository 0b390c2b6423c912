"""Contracts of the extension points as functions: call them from the tests of your own plugins.

    from ninefold.testing import check_acquisition

    def test_my_strategy() -> None:
        check_acquisition(MyStrategy())

Each raises AssertionError that says what was promised. Ninefold's own tests call the same functions.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from pydantic import TypeAdapter

from models.acquisition.base import Acquisition, Pool
from models.acquisition.pair_rules.base import CandidateScores, PairRule
from models.acquisition.pairwise import PairAcquisition
from models.core.data import Response
from models.core.errors import ConfigError
from models.core.registry import OneOf, Plugin, plugins_of
from models.core.rubric import Rubric
from models.evaluators.base import Evaluator, Examples, FitContext
from models.oracles.base import Oracle, canonical_pair
from models.policies.checkpoint import Checkpoint
from models.sources.base import PromptSource, check_disjoint

__all__ = [
    "check_acquisition",
    "check_evaluator",
    "check_oracle",
    "check_pair_rule",
    "check_plugin",
    "check_source",
    "make_candidates",
    "make_pool",
]

_RNG = np.random.default_rng


def make_pool(prompts: int = 12, samples: int = 3, *, seed: int = 0, labelled: int = 0, constant: bool = False) -> Pool:
    """Return a pool with all that a strategy may need, at random from a seed; `constant`: every response is alike."""
    rng, size = _RNG(seed), prompts * samples
    taken = np.zeros(size, dtype=bool)
    taken[rng.permutation(size)[:labelled]] = True
    return Pool(
        ids=[f"t{n:03}" for n in rng.permutation(size)],
        prompt=np.repeat(np.arange(prompts), samples),
        unavailable=taken,
        labelled=taken,
        vectors=(np.ones((size, 6)) if constant else rng.normal(size=(size, 6))).astype(np.float32),
        logprob=np.full(size, -5.0) if constant else -rng.gamma(4, 3, size),
        tokens=rng.integers(3, 20, size),
        reference_logprob=np.full(size, -6.0) if constant else -rng.gamma(4, 3, size),
        scores=np.zeros((4, size)) if constant else rng.normal(size=(4, size)),
        cost=np.full(size, 5.0) if constant else rng.integers(0, 9, size).astype(float),
    )


def make_candidates(
    prompts: int = 200, columns: int = 6, *, members: int = 5, seed: int = 0, tied: bool = False
) -> CandidateScores:
    """Return the members' scores of each prompt's responses, at random from a seed; some responses are absent."""
    rng = _RNG(seed)
    present = rng.random((prompts, columns)) < 0.7
    present[:, :2] = True
    scores = np.zeros((members, prompts, columns)) if tied else rng.normal(size=(members, prompts, columns)) * 2
    return CandidateScores(present, scores)


def check_plugin(plugin: Plugin, base: type[Plugin]) -> None:
    """Check what holds for every plugin: it is found by its kind, documented, immutable, and survives its own file."""
    kind = type(plugin)
    assert kind in plugins_of(base), f"{kind.__name__} is not found: is its module imported?"
    assert kind.__doc__, f"{kind.__name__} has no docstring"
    assert kind.model_config.get("frozen") is True, f"{kind.__name__} can be changed"
    assert kind.model_config.get("extra") == "forbid", f"{kind.__name__} takes fields that it does not know"
    assert len(kind.model_fields) <= 10, f"{kind.__name__} has more than ten fields"
    union: Any = Annotated[base, OneOf()]
    again = TypeAdapter(union).validate_python(plugin.model_dump(mode="json"))
    assert again == plugin, f"{kind.__name__} is another one once it was written to a file and read"


def check_acquisition(
    strategy: Acquisition,
    *,
    prompts: int = 12,
    samples: int = 3,
    labelled: int = 5,
    budget: int = 9,
    constant: bool = False,
    seed: int = 0,
) -> None:
    """Check that a strategy picks as many distinct, available responses as it may, by its own random numbers alone."""
    check_plugin(strategy, Acquisition)
    assert hash(strategy) == hash(strategy.model_copy()), "it can be looked up in a dictionary"
    pool = make_pool(prompts, samples, labelled=labelled, constant=constant, seed=seed)
    _check_selection(lambda given, many, at: strategy.select(given, many, _RNG(at)), pool, budget, seed)
    if isinstance(strategy, PairAcquisition):
        _check_pairs(strategy, pool, budget, seed)
    for picked in strategy.select(pool, budget, _RNG(seed)):
        assert not math.isnan(picked.utility), "a selection's utility is a number"
        values = json.loads(picked.components).values()
        assert all(value is None or isinstance(value, float) for value in values), "components: numbers by name"
    try:
        strategy.select(pool, -1, _RNG(seed))
    except ConfigError:
        return
    raise AssertionError("a negative budget is refused")


def _check_selection(select: Callable[[Pool, int, int], Sequence[Any]], pool: Pool, budget: int, seed: int) -> None:
    def ids(given: Pool) -> list[str]:
        return [picked.response_id for picked in select(given, budget, seed)]

    picked = ids(pool)
    available = {one for one, taken in zip(pool.ids, pool.unavailable, strict=True) if not taken}
    assert len(picked) == min(budget, len(available)), "as many as the budget and the pool allow"
    assert len(set(picked)) == len(picked), "each once"
    assert set(picked) <= available, "none that is unavailable"
    assert ids(pool) == picked, "the same seed, the same ids"
    shuffled = pool.take(_RNG(seed + 9).permutation(len(pool.ids)))
    assert ids(shuffled) == picked, "whatever the order of the pool"

    def moves_global_state() -> bool:
        np.random.seed(1)
        random.seed(1)
        before = str(np.random.get_state()), random.getstate()
        assert ids(pool) == picked, "global random state is not read"
        return (str(np.random.get_state()), random.getstate()) != before

    # a thread of some library may have moved it meanwhile: it does not do so each time
    assert not all(moves_global_state() for _ in range(3)), "nor moved"


def _check_pairs(strategy: PairAcquisition, pool: Pool, budget: int, seed: int) -> None:
    free = ~pool.unavailable
    most = sum(int(free[pool.prompt == prompt].sum()) // 2 for prompt in np.unique(pool.prompt))
    picks = strategy.select_pairs(pool, budget, _RNG(seed))
    assert len(picks) == min(budget, most), "as many disjoint pairs as the budget and the pool allow"
    rows = [pool.ids.index(one) for pick in picks for one in (pick.response_id, pick.against)]
    assert len(set(rows)) == len(rows), "pairs share no response"
    assert free[rows].all(), "none that is unavailable"
    assert (pool.prompt[rows[::2]] == pool.prompt[rows[1::2]]).all(), "both of one prompt"
    shuffled = pool.take(_RNG(seed + 9).permutation(len(pool.ids)))
    assert strategy.select_pairs(shuffled, budget, _RNG(seed)) == picks, "whatever the order of the pool"


def check_pair_rule(
    rule: PairRule, *, prompts: int = 20, columns: int = 6, members: int = 4, tied: bool = False, seed: int = 0
) -> None:
    """Check that a rule proposes two different responses that are there, by its own random numbers alone."""
    check_plugin(rule, PairRule)
    given = make_candidates(prompts, columns, members=members, seed=seed, tied=tied)
    first, second = rule.propose(given, _RNG(seed))
    rows = np.arange(prompts)
    assert (first != second).all(), "two different responses"
    assert given.present[rows, first].all(), "the first is there"
    assert given.present[rows, second].all(), "the second is there"
    poisoned = CandidateScores(given.present, np.where(given.present, given.scores, 1e9))
    for other in (given, poisoned):
        again = rule.propose(other, _RNG(seed))
        assert np.array_equal(again.first, first), "the same seed, the same pairs; what is absent counts for nothing"
        assert np.array_equal(again.second, second), "the same seed, the same pairs; what is absent counts for nothing"


def check_oracle(oracle: Oracle, *, prompt: str = "the film is", one: str = "a delight", other: str = "a mess") -> None:
    """Check that an oracle answers a question twice alike, within its price, under an identity that is its fields'.

    It is asked two real questions. One that samples may give a verdict of its own each time: check the rest by hand.
    """
    check_plugin(oracle, Oracle)
    oracle.check()
    text = canonical_pair(one, other)[0] if oracle.query_type == "pairwise" else one
    first = oracle.judge(prompt, text, Rubric())
    assert first == oracle.judge(prompt, text, Rubric()), "same question, same answer"
    assert math.isfinite(first.score), "a score that is a number; one that cannot be read is NaN and quarantined"
    if oracle.query_type == "pairwise":
        assert -1 <= first.score <= 1, "a preference lies in [−1, 1]"
    assert isinstance(first.micro_usd, int), "money is whole micro-dollars"
    assert 0 <= first.micro_usd <= oracle.max_cost(prompt, text), "no answer costs more than max_cost"
    assert oracle.fingerprint() == oracle.model_copy().fingerprint(), "an identity of its fields alone"
    assert oracle.description, "a description for reports"


def check_evaluator(evaluator: Evaluator, checkpoint: Checkpoint | None = None, *, count: int = 24) -> None:
    """Check that an evaluator predicts the same for the same seed, saves safe files alone, and refuses tied labels.

    `checkpoint` is the policy that it starts from, if it starts from one.
    """
    check_plugin(evaluator, Evaluator)
    responses = [_response(number) for number in range(count)]
    examples = Examples(responses, _RNG(0).normal(size=(count, 6)).astype(np.float32))
    scores = examples.features[:, 0].astype(np.float64) if examples.features is not None else np.zeros(count)
    found = []
    for _ in range(2):
        with TemporaryDirectory() as folder:
            context = FitContext(checkpoint or Checkpoint("unused"), Rubric(), Path(folder), 0)
            _fit(evaluator, examples, scores, context)
            files = {file.suffix for file in Path(folder).rglob("*") if file.is_file()}
            assert files <= {".safetensors", ".json"}, "nothing is saved but safetensors and JSON"
            found.append(evaluator.predict(examples, context))
            assert found[-1].shape[1] == count, "scores of shape (members, responses)"
            part = np.array([3, 5])
            if evaluator.supports_pointwise:
                alone = evaluator.predict(examples.take(part), context)
                np.testing.assert_allclose(
                    alone, found[-1][:, part], atol=2e-4, err_msg="a score does not depend on others"
                )
    np.testing.assert_array_equal(found[0], found[1], err_msg="the same seed, the same scores")
    if evaluator.supports_pointwise:
        with TemporaryDirectory() as folder:
            context = replace(context, folder=Path(folder))
            try:
                evaluator.fit(examples, np.ones(count), context)
            except ConfigError:
                return
        raise AssertionError("labels that are all alike are refused: they hold no preference")


def check_source(source: PromptSource) -> None:
    """Check that a source gives the same disjoint sets each time, known by a digest of what was read."""
    check_plugin(source, PromptSource)
    prompts = source.load()
    assert prompts == source.load(), "the same each time"
    assert source.digest_inputs() == source.digest_inputs(), "a digest of what was read"
    check_disjoint(prompts)
    assert prompts.pool, "prompts to ask about"
    assert prompts.held_out, "prompts held out"
    assert all(d.prompt and d.response for d in prompts.demonstrations), "no empty demonstration"


def _fit(evaluator: Evaluator, examples: Examples, scores: Any, context: FitContext) -> None:  # noqa: ANN401
    if evaluator.supports_pointwise:
        evaluator.fit(examples, scores, context)
    else:
        half = len(scores) // 2
        first, second = (examples.take(np.arange(begin, begin + half)) for begin in (0, half))
        evaluator.fit_pairs(first, second, np.sign(scores[:half] - scores[half : 2 * half]), context)


def _response(number: int) -> Response:
    words = ["good", "warm", "film", "dull", "bad", "story"]
    text = " ".join(words[(number * step) % len(words)] for step in range(1, 2 + number % 5))
    return Response(f"r{number:03}", f"p{number // 2}", f"the film {number // 2} is", number % 2, text, 4, -9.0)
