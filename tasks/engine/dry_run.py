"""Dry run: stages that are not executed, but note with which key they would be, and return a stand-in for their result."""

import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel

from tasks.engine.store import Ref


@dataclass(frozen=True)
class StageCall:
    """A stage's call that was not executed: its cache key, and its arguments by name."""

    stage: str
    key: str
    arguments: Mapping[str, Any]


Refine = Callable[[Any, Mapping[str, Any]], Any]


@dataclass
class DryRun:
    """The calls of a dry run, in order. `refine` tells, by stage, what is known of a result from the arguments alone."""

    refine: Mapping[str, Refine] = field(default_factory=dict)
    calls: list[StageCall] = field(default_factory=list)

    def call(self, stage: str, key: str, arguments: Mapping[str, Any], returns: object) -> object:
        """Note a call, and return a stand-in for its result."""
        self.calls.append(StageCall(stage, key, dict(arguments)))
        result = stand_in(returns, key)
        return self.refine[stage](result, arguments) if stage in self.refine else result


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """Return the dry run that is going on, if any."""
    return _current.get()


@contextmanager
def dry_run(refine: Mapping[str, Refine] | None = None) -> Iterator[DryRun]:
    """Execute no stage in the block. Nothing is read or written by one.

    Stand-ins are named by the key of the call that they come from, so that two calls have the same key if all that they
    depend on is the same. Really there may be fewer keys: two stages may happen to make the same bytes.
    """
    token = _current.set(run := DryRun(refine or {}))
    try:
        yield run
    finally:
        _current.reset(token)


def stand_in(kind: object, name: str) -> object:
    """Return a value of a type that stands for what nobody has computed; another `name`, another value.

    A table has one row, a tuple no element, a number lies between ½ and 1, and of alternatives it is the first. Raises
    TypeError for a type that no stage should return.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()
    if kind is Ref:
        return Ref(uri=f"planned/{digest[:32]}", sha256=digest, rows=1)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields: dict[str, Any] = {
            of: stand_in(info.annotation, f"{name}.{of}") for of, info in kind.model_fields.items()
        }
        return kind.model_construct(**fields)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in {Union, types.UnionType}:
        return stand_in(arguments[0], name)
    number = (1.0 + int(digest[:8], 16) / 2**32) / 2.0
    simple = {float: number, int: 1, bool: True, str: digest, tuple: (), dict: Figures(name), Literal: arguments[:1]}
    if origin not in simple:
        raise TypeError(
            f"a stage returns a {kind}, which no dry run can stand in for: return a model, a Ref or a number"
        )
    return arguments[0] if origin is Literal else simple[origin]


class Figures(dict[str, float]):
    """Numbers by whatever name they are asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, key: str) -> float:
        return cast("float", stand_in(float, f"{self._name}.{key}"))
