"""Cache policy of stages: run again only if version or a result-changing input has changed.

The key is (stage, version, inputs). Execution details (batch sizes, workers) are left out of it: fields named in a
model's `execution_fields`, arguments named in `ignore`. Source code is left out too, on purpose: a comment edited in the
oracle must not buy its labels again. Change what a stage does → bump its version in the same commit.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any, Generic, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.transactions import IsolationLevel
from pydantic import BaseModel

from models.core import progress
from models.core.errors import ConfigError
from models.core.registry import Frozen, Plugin, digest_of
from tasks.engine import dry_run, durations
from tasks.engine.dry_run import DryRun
from tasks.engine.locks import StageLocks
from tasks.engine.results import result_options
from tasks.engine.store import DamagedArtifact, Ref, store

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class StageResult(Frozen):
    """What a stage returns: the artifact it made, and facts about it for people (never part of a key)."""

    ref: Ref
    facts: dict[str, float] = {}


@dataclass
class StageCachePolicy(CachePolicy):
    """Key = stage name, version, and the inputs by identity."""

    version: int = 1
    ignore: tuple[str, ...] = ()

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: object
    ) -> str | None:
        """Return the cache key; raise TypeError for an input that has no stable identity."""
        del flow_parameters
        return self.key(task_ctx.task.name, inputs)

    def key(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Return the cache key of a stage's call; raise TypeError for an input that has no stable identity."""
        named = {name: identity(value) for name, value in inputs.items() if name not in self.ignore}
        return f"{stage}-v{self.version}-{digest_of(named)}"


def identity(value: object) -> object:
    """Return what of an argument decides a stage's result, as plain JSON values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseModel):
        execution: frozenset[str] = getattr(value, "execution_fields", frozenset())
        fields = {name: identity(getattr(value, name)) for name in type(value).model_fields if name not in execution}
        version = getattr(value, "version", 1) if isinstance(value, Plugin) else 1
        return {"class": type(value).__name__, **fields} | ({"version": version} if version != 1 else {})
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, dict):
        return {str(key): identity(item) for key, item in value.items()}
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"a stage was given a {type(value).__name__}, which has no stable identity: pass a Ref or a model")


@dataclass(frozen=True)
class StageRun:
    """One call of a stage within a flow run: what it took when it was computed, then or now, and what this call took."""

    name: str
    cached: bool
    seconds: float
    waited: float
    key: str


def saved_seconds(runs: Sequence[StageRun]) -> float:
    """Return the seconds that the cache has saved a flow run: what its stages took, once each, less what it waited."""
    here = {run.key for run in runs if not run.cached}
    return sum({run.key: run.seconds - run.waited for run in runs if run.cached and run.key not in here}.values())


_runs: ContextVar[list[StageRun] | None] = ContextVar("stage_runs", default=None)


@contextmanager
def stage_runs() -> Iterator[list[StageRun]]:
    """Collect the stage runs of the block, in order."""
    collected: list[StageRun] = []
    token = _runs.set(collected)
    try:
        yield collected
    finally:
        _runs.reset(token)


_untold: ContextVar[bool] = ContextVar("untold", default=False)


@contextmanager
def untold() -> Iterator[list[StageRun]]:
    """Log no line of the stages that run in the block, but at DEBUG: whoever opens it tells of all of them in one line.

    Collects their runs, which are collected outside of the block too.
    """
    outer, token = _runs.get(), _untold.set(True)
    try:
        with stage_runs() as collected:
            yield collected
    finally:
        _untold.reset(token)
        if outer is not None:
            outer.extend(collected)


def tell_done(name: str, how: str) -> None:
    """Log the one line about a stage, or about many runs of it, that stays on the page."""
    log.log(logging.DEBUG if _untold.get() else logging.INFO, "✔ %-24s %s", name, how)


STAGES: list[str] = []  # by name, in the order in which they were declared


@dataclass
class _Restart:
    stage: str
    reached: bool = False


_restart: ContextVar[_Restart | None] = ContextVar("restart", default=None)


def check_stage(stage: str) -> None:
    """Raise ConfigError for the name of a stage there is not; "" is none."""
    if stage and stage not in STAGES:
        raise ConfigError(f"no stage is called {stage!r}: restart from one of {', '.join(sorted(STAGES))}")


@contextmanager
def force_from(stage: str) -> Iterator[None]:
    """Execute the stage of this name, and all that follow it in the block, whatever the cache holds; none for "".

    The ledger still knows what has been bought: asking again costs nothing. Raises as `check_stage`.
    """
    check_stage(stage)
    token = _restart.set(_Restart(stage) if stage else None)
    try:
        yield
    finally:
        _restart.reset(token)


def _anew(stage: str) -> bool:
    restart = _restart.get()
    if restart is None:
        return False
    restart.reached |= stage == restart.stage
    return restart.reached


@dataclass(frozen=True)
class Stage(Generic[P, R]):
    """A cached Prefect task that checks the artifacts behind a cache hit and recomputes what is missing or damaged."""

    task: Task[P, R]
    recipe: StageCachePolicy
    told: bool = True

    @property
    def name(self) -> str:
        """Return the stage's name, as the Prefect UI shows it."""
        return self.task.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the stage, or return its result from an earlier run with the same key; in a dry run, a stand-in for it."""
        if (dry := dry_run.current()) is not None:
            return self._note(dry, *args, **kwargs)
        started = time.monotonic()
        log.debug("▶ %s", self.name)
        with progress.heading(f"▶ {self.name}") if self.told else nullcontext():
            result, cached = self._result(*args, **kwargs)
        waited, key = time.monotonic() - started, self._key(*args, **kwargs)
        took = durations.kept(key) if cached else None
        run = StageRun(self.name, cached, waited if took is None else took, waited, key)
        if not cached:
            durations.keep(key, waited)
        if self.told:
            before = f" ({took:.1f} s when computed)" if took is not None else ""
            tell_done(self.name, f"from cache{before}" if cached else f"{waited:.1f} s")
        if (collected := _runs.get()) is not None:
            collected.append(run)
        return result

    def _result(self, *args: P.args, **kwargs: P.kwargs) -> tuple[R, bool]:
        """Return the stage's result, and whether it came from the cache."""
        options = result_options()
        task = self.task.with_options(**options) if options else self.task
        state: Any = (task.with_options(refresh_cache=True) if _anew(self.name) else task)(
            *args, return_state=True, **kwargs
        )
        result: R = state.result()
        cached = state.name == "Cached"
        if cached and (damage := _damage(result)):
            log.warning("%s: %s; computing it again", self.name, damage)
            state = task.with_options(refresh_cache=True)(*args, return_state=True, **kwargs)
            result, cached = state.result(), False
        return result, cached

    def _note(self, dry: DryRun, *args: P.args, **kwargs: P.kwargs) -> R:
        returns = signature(self.task.fn).return_annotation
        return cast("R", dry.call(self.name, self._key(*args, **kwargs), self._given(*args, **kwargs), returns))

    def _key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        return self.recipe.key(self.name, self._given(*args, **kwargs))

    def _given(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        given = signature(self.task.fn).bind(*args, **kwargs)
        given.apply_defaults()
        return given.arguments


def stage(*, version: int, ignore: Sequence[str] = (), told: bool = True) -> Callable[[Callable[P, R]], Stage[P, R]]:
    """Make a function a cached stage. Results are small JSON values; what is big travels as a Ref.

    One that is not `told` has no line on the page: a stage run by the hundred behind a progress bar.
    """

    def decorate(function: Callable[P, R]) -> Stage[P, R]:
        policy = StageCachePolicy(
            version=version,
            ignore=tuple(ignore),
            isolation_level=IsolationLevel.SERIALIZABLE,
            lock_manager=StageLocks(),
        )
        task = Task(
            fn=function,
            name=function.__name__,
            cache_policy=policy,
            persist_result=True,
            result_serializer="json",
            task_run_name=function.__name__.replace("_", " "),
            log_prints=False,
        )
        STAGES.append(task.name)
        return Stage(task, policy, told)

    return decorate


def refs_in(value: object) -> Iterator[Ref]:
    """Yield every Ref inside a stage's result."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from refs_in(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


def _damage(result: object) -> DamagedArtifact | None:
    for ref in refs_in(result):
        try:
            store().verify(ref)
        except DamagedArtifact as damaged:
            return damaged
    return None
