"""Shards: what they make is what the whole makes, prompts are not parted, and only what failed is computed again."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from models.core.data import Label, Prompt, Response, Score
from models.core.rubric import Rubric
from models.embeddings.policy import PolicyEmbedding
from models.evaluators.generative import Generative
from models.evaluators.training_data import FitOptions
from models.generators.hf import Transformers
from models.policies.resolve import locate
from models.training.sft import SFT
from tasks.engine.caching import stage_runs
from tasks.engine.settings import settings
from tasks.engine.shards import join_tables, split
from tasks.engine.store import Ref, store
from tasks.evaluator.score import score_sharded
from tasks.evaluator.train import fit_evaluator
from tasks.labelling.batches import Batch
from tasks.policy import generate as generating
from tasks.policy.embed import embed_sharded
from tasks.policy.generate import generate_sharded
from tasks.policy.policy_ref import Policy
from tests.conftest import response

pytestmark = pytest.mark.usefixtures("prefect_server", "home")

PROMPTS = [Prompt.of(f"the film number {n} is") for n in range(10)]


def shards_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_SHARD_SIZE", str(rows))
    settings.cache_clear()


@pytest.fixture
def policy(tiny_model_path: Path) -> Policy:
    weights = locate(str(tiny_model_path)).digest
    return Policy(model=str(tiny_model_path), weights=weights, dtype="float32", template="plain")


@flow
def sampled(policy: Policy, prompts: Ref) -> tuple[Ref, dict[str, float]]:
    generator = Transformers(samples=3, max_new_tokens=6, temperature=1.0)
    made = generate_sharded(policy, prompts, generator, samples=3, seed=5)
    return made.ref, made.facts


def test_shards_make_the_same_responses_and_add_up(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = store().write_rows("prompts", PROMPTS, Prompt)
    whole, facts = sampled(policy, prompts)
    shards_of(12, monkeypatch)  # of four prompts
    joined, sums = sampled(policy, prompts)
    each = list(zip(store().rows(joined, Response), store().rows(whole, Response), strict=True))
    assert [one for one, _ in each] == [replace(other, logprob=one.logprob) for one, other in each]
    # other rows beside a text round its sums in their last bits
    assert [one.logprob for one, _ in each] == pytest.approx([other.logprob for _, other in each], abs=1e-5)
    assert sums["responses"] == 30
    assert sums["mean_tokens"] == pytest.approx(facts["mean_tokens"])


def test_more_prompts_cost_their_own_shards_only(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_of(12, monkeypatch)
    asked: list[int] = []
    sample = generating._sample

    def counted(policy: Policy, prompts: Ref, *rest: object, **named: object) -> object:
        asked.append(prompts.rows or 0)
        return sample(policy, prompts, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(generating, "_sample", counted)
    sampled(policy, store().write_rows("prompts", PROMPTS[:8], Prompt))
    assert asked == [4, 4]
    sampled(policy, store().write_rows("prompts", PROMPTS, Prompt))
    assert asked == [4, 4, 2]


def test_shards_leave_one_line_together_and_each_is_counted(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shards_of(12, monkeypatch)
    with stage_runs() as runs, caplog.at_level("INFO", logger="tasks"):
        for prompts in (PROMPTS[:8], PROMPTS):
            sampled(policy, store().write_rows("prompts", prompts, Prompt))
    told = [line for line in caplog.messages if line.startswith("✔ generate")]
    assert [re.sub(r" +\d+\.\d", "", line) for line in told] == [
        "✔ generate s (2 shards)",
        "✔ generate s (3 shards, 2 from cache)",
    ]
    assert [run.cached for run in runs if run.name == "generate"] == [False, False, True, True, False]


def test_a_shard_that_fails_leaves_what_was_done_before_it(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_of(12, monkeypatch)
    prompts = store().write_rows("prompts", PROMPTS, Prompt)
    sample, asked = generating._sample, []

    def failing(policy: Policy, prompts: Ref, *rest: object, **named: object) -> object:
        asked.append(prompts.sha256)
        if len(asked) == 2:
            raise RuntimeError("out of memory")
        return sample(policy, prompts, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(generating, "_sample", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampled(policy, prompts)
    first, failed = asked
    sampled(policy, prompts)
    assert len(asked) == 4
    assert asked[2] == failed
    assert first not in asked[2:]


def test_vectors_and_scores_of_shards_are_those_of_the_whole(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [response(n, prompt=f"the plot {n // 4} is", sample=n % 4) for n in range(22)]
    judge = Generative(training=SFT(learning_rate=1e-3, epochs=1.0, max_length=1024), scoring="sampled", num_samples=2)

    @flow
    def measured() -> tuple[Ref, Ref, Ref, dict[str, float]]:
        responses = store().write_rows("responses", rows, Response)
        labels = [Label(r.id, float(n % 5), 0, 0, True, "labelled") for n, r in enumerate(rows[:10])]
        bought = Batch(
            picks=responses,
            responses=responses,
            labels=store().write_rows("labels", labels, Label),
            vectors=None,
            features=None,
        )
        trained = fit_evaluator(
            judge, (bought,), policy=policy, rubric=Rubric(), options=FitOptions(seed=0), eft_examples=None
        ).ref
        vectors = embed_sharded(
            responses, PolicyEmbedding(pooling="mean"), view="response", rubric=Rubric(), policy=policy
        )
        scored = score_sharded(judge, trained, responses, features=None, policy=policy, rubric=Rubric(), seed=3)
        return vectors, scored.ref, scored.members, scored.facts

    vectors, scores, members, facts = measured()
    shards_of(6, monkeypatch)
    in_shards = measured()
    np.testing.assert_allclose(store().matrix(in_shards[0]), store().matrix(vectors), atol=1e-5)
    np.testing.assert_allclose(store().matrix(in_shards[2]), store().matrix(members), atol=1e-5)
    assert store().rows(in_shards[1], Score) == store().rows(scores, Score)
    assert in_shards[3] == pytest.approx(facts, nan_ok=True)


def test_the_responses_to_a_prompt_stay_in_one_shard() -> None:
    rows = [
        response(n, prompt=f"the plot {prompt} is") for n, prompt in enumerate([0, 0, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4])
    ]
    prompts = [(r.prompt_id, r.id) for r in rows]

    @flow
    def parts(size: int) -> list[list[tuple[str, str]]]:
        table = store().write_rows("responses", rows, Response)
        return [[(r.prompt_id, r.id) for r in store().rows(ref, Response)] for ref in split(table, rows=size).shards]

    for size in (1, 2, 4, 5, 7, 11, 12):
        found = parts(size)
        assert [row for shard in found for row in shard] == prompts
        held = [{prompt for prompt, _ in shard} for shard in found]
        assert not any(one & other for n, one in enumerate(held) for other in held[n + 1 :])
        assert all(len(shard) >= size for shard in found[:-1])


def test_shards_of_which_nothing_could_be_read_are_joined_with_the_others() -> None:
    scores = [Score(f"r{n}", float(n), 0.0) for n in range(3)]

    @flow
    def whole(*parts: list[Score]) -> list[Score]:
        ref = join_tables(tuple(store().write_rows("scores", part, Score) for part in parts)).ref
        assert ref == store().write_rows("scores", [one for part in parts for one in part], Score)
        return store().rows(ref, Score)

    assert whole([], scores[:2], [], scores[2:]) == scores
    assert whole(scores, []) == scores
    assert whole([], []) == []


def test_a_prompt_whose_responses_stand_apart_is_not_parted_in_silence() -> None:
    rows = [response(n, prompt=f"the plot {prompt} is") for n, prompt in enumerate([0, 1, 2, 0])]

    @flow
    def parts() -> object:
        return split(store().write_rows("responses", rows, Response), rows=2)

    with pytest.raises(ValueError, match="stand apart in a table"):
        parts()
