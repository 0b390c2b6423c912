"""A dry run executes no stage, and knows each by the key that it would have."""

from typing import Literal

import pytest

from models.core.registry import Frozen
from tasks.engine.caching import StageResult, stage
from tasks.engine.dry_run import current, dry_run, stand_in
from tasks.engine.store import Ref


class Made(Frozen):
    ref: Ref
    maybe: Ref | None
    verdict: Literal["good", "bad"]
    facts: dict[str, float]
    along: tuple[Ref, ...] = ()
    count: int = 0


@stage(version=3, ignore=["workers"])
def made(rows: Ref, *, size: int, workers: int = 1) -> Made:
    """Never executed here."""
    raise AssertionError((rows, size, workers))


@stage(version=1)
def odd(size: int) -> set[int]:
    """Return what no stage should."""
    return {size}


def test_calls_are_noted_and_nothing_is_executed() -> None:
    rows = stand_in(Ref, "rows")
    assert isinstance(rows, Ref)
    with dry_run() as dry:
        assert current() is dry
        first, again, other = made(rows, size=2), made(rows, size=2, workers=5), made(rows, size=3)
        made(first.ref, size=2)
    assert current() is None
    keys = [call.key for call in dry.calls]
    assert keys[0] == keys[1] == made.recipe.key("made", {"rows": rows, "size": 2}), "as the cache would have it"
    assert len(set(keys)) == 3
    assert dry.calls[0].arguments == {"rows": rows, "size": 2, "workers": 1}
    assert first == again
    assert first.ref != other.ref
    assert first.ref != first.maybe, "two artifacts of one call"
    assert (first.verdict, first.along, first.count) == ("good", (), 1)
    assert 0.5 <= first.facts["anything"] <= 1.0
    assert first.facts["anything"] == again.facts["anything"] != other.facts["anything"]


def test_what_is_known_of_a_result_is_said_by_whoever_plans() -> None:
    with dry_run({"made": lambda result, given: result.model_copy(update={"count": given["size"]})}):
        assert made(stand_in(Ref, "rows"), size=7).count == 7  # type: ignore[arg-type]


def test_a_type_without_a_stand_in_is_named() -> None:
    with dry_run(), pytest.raises(TypeError, match=r"a stage returns a set\[int\], which no dry run can stand in for"):
        odd(1)


def test_every_stage_s_result_has_a_stand_in() -> None:
    assert isinstance(stand_in(StageResult, "x"), StageResult)
