"""The cache: what is in a key and what is not; one computation for identical tasks; failures and damage never served."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from models.core.data import Prompt
from models.generators.hf import Transformers
from models.sources.files import Files
from tasks.engine.caching import StageResult, identity, saved_seconds, stage, stage_runs, untold
from tasks.engine.store import store
from tasks.policy.policy_ref import Policy

pytestmark = pytest.mark.usefixtures("prefect_server", "home")
calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@stage(version=1, ignore=["workers"])
def count_words(text: str, *, generator: Transformers | None = None, workers: int = 1) -> StageResult:
    calls.append(text)
    if text == "fail":
        raise RuntimeError("this stage failed")
    return StageResult(
        ref=store().write_rows("prompts", [Prompt.of(text)], Prompt),
        facts={"words": float(len(text.split()))},
    )


@flow
def counting(text: str, generator: Transformers | None = None, workers: int = 1) -> StageResult:
    return count_words(text, generator=generator, workers=workers)


def test_the_same_inputs_are_computed_once_across_flow_runs() -> None:
    assert counting("one two") == counting("one two")
    assert calls == ["one two"]
    counting("three")
    assert calls == ["one two", "three"]


def test_a_call_leaves_one_line_that_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tasks"):
        counting("one two")
        counting("one two")
        with untold() as runs:
            counting("one two three")
    told = [line for line in caplog.messages if line.startswith("✔")]
    computed, cached = [re.sub(r" +", " ", re.sub(r"\d+\.\d", "N", line)) for line in told]
    assert computed == "✔ count_words N s"
    assert cached == "✔ count_words from cache (N s when computed)"
    assert [(run.name, run.cached) for run in runs] == [("count_words", False)]


def test_workers_and_batch_sizes_are_not_in_the_key_and_temperature_is() -> None:
    counting("x", Transformers(batch_size=1), workers=1)
    counting("x", Transformers(batch_size=64), workers=8)
    assert len(calls) == 1
    counting("x", Transformers(temperature=0.3))
    assert len(calls) == 2


def test_another_version_is_computed_again() -> None:
    counting("x")
    newer = stage(version=2)(count_words.task.fn)

    @flow
    def counting_anew() -> StageResult:
        return newer("x")

    counting_anew()
    assert calls == ["x", "x"]


def test_a_stage_from_the_cache_tells_what_it_took_when_it_was_computed() -> None:
    @stage(version=1)
    def slowly(text: str) -> StageResult:
        time.sleep(0.4)
        return StageResult(ref=store().write_rows("prompts", [Prompt.of(text)], Prompt))

    @flow
    def twice() -> tuple[Any, float]:
        with stage_runs() as runs:
            slowly("x")
            slowly("x")
        return runs, saved_seconds(runs)

    first, saved = twice()
    assert [run.cached for run in first] == [False, True]
    assert saved == 0.0, "it was computed here"
    again, saved = twice()
    assert [run.cached for run in again] == [True, True]
    assert [run.seconds for run in again] == pytest.approx([first[0].seconds] * 2, abs=0.001)
    assert saved == pytest.approx(again[1].seconds - again[1].waited), "once, though it was asked for twice"


def test_a_failure_is_not_cached() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="this stage failed"):
            counting("fail")
    assert calls == ["fail", "fail"]


@pytest.mark.parametrize("damage", ["delete", "damage"])
def test_a_hit_whose_artifact_is_gone_or_damaged_is_computed_again(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ref = counting("one two").ref
    path = store().path(ref)
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"not parquet")
    again = counting("one two").ref
    assert again == ref
    assert calls == ["one two", "one two"]
    assert store().rows(again, Prompt) == [Prompt.of("one two")]
    assert f"{ref.uri}" in caplog.text
    assert counting("one two").ref == ref
    assert len(calls) == 2, "repaired once, then served from the cache"


def test_runs_are_collected_with_their_source() -> None:
    with stage_runs() as runs:
        counting("x")
        counting("x")
    assert [(run.name, run.cached) for run in runs] == [("count_words", False), ("count_words", True)]


def test_a_value_without_identity_is_refused() -> None:
    with pytest.raises(TypeError, match="a stage was given a object, which has no stable identity"):
        identity(object())


@stage(version=1)
def slow_once(folder: str) -> int:
    with Path(folder, "executions").open("a") as log:
        log.write("x")
    time.sleep(1.5)
    return 7


@flow
def twice_at_once(folder: str) -> list[int]:
    futures = [slow_once.task.submit(folder) for _ in range(3)]
    return [future.result() for future in futures]


def test_identical_concurrent_tasks_compute_once(tmp_path: Path) -> None:
    assert twice_at_once(str(tmp_path)) == [7, 7, 7]
    assert (tmp_path / "executions").read_text() == "x"


def test_a_folder_that_moves_changes_no_key() -> None:
    def policy(place: str) -> Policy:
        return Policy(model=place, weights="directory-1", dtype="float32", template="plain")

    def source(place: str) -> Files:
        return Files(pool=Path(place) / "pool.txt", held_out=Path(place) / "held.txt")

    assert identity(policy("/a")) == identity(policy("/b"))
    assert identity(source("/a")) == identity(source("/b"))
    assert identity(source("/a")) != identity(source("/a").model_copy(update={"drop_duplicates": True}))
