"""Generate the configuration reference (docs/reference/configuration.md) from the pydantic models."""

import inspect
import re
from collections.abc import Iterator
from typing import Annotated, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.config.experiment import Experiment
from flows.config.study import LabelEfficiency
from flows.config.sweep import Sweep
from flows.reporting.render import markdown_table
from models.core.money import NO_CAP
from models.core.registry import Frozen, OneOf, Plugin, plugins_of

_HEAD = """# Configuration

Every field of an experiment file, of a sweep file and of a study file (`ninefold bench`). Written by `ninefold reference`;
a test holds it against the models.

`--set a.b=value` changes a field; the value is YAML. A field whose type is a list of kinds is a plugin: `kind` chooses
it, and its other fields are those of that kind.
"""
_ROOMS = {"PairRule": "pair rules"}  # two kinds of plugin in one folder
_SIGNS = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}


def reference() -> str:
    """Return the whole reference as Markdown."""
    parts, seen = [_HEAD], set[type[Frozen]]()
    for root in (Experiment, Sweep, LabelEfficiency):
        parts += [_section(model) for model in _models(root, seen)]
    return "\n".join(parts)


def _models(model: type[Frozen], seen: set[type[Frozen]]) -> Iterator[type[Frozen]]:
    """Yield a model and all that its fields hold, each once, in the order of a reader's questions."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in _inner(field):
            yield from _models(inner, seen)


def _inner(field: FieldInfo) -> list[type[Frozen]]:
    one_of = next(
        (entry for entry in (*field.metadata, *_annotations(field.annotation)) if isinstance(entry, OneOf)), None
    )
    held = [found for found in _leaves(field.annotation) if isinstance(found, type) and issubclass(found, Frozen)]
    if one_of is None:
        return held
    return [plugin for base in held if issubclass(base, Plugin) for plugin in plugins_of(base)]


def _annotations(annotation: object) -> Iterator[object]:
    """Yield what a type is annotated with, at any depth: `Annotated[Oracle, OneOf(...)] | None`."""
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _annotations(argument)


def _leaves(annotation: object) -> Iterator[object]:
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _section(model: type[Frozen]) -> str:
    told = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n"))
    rows = [_row(name, field) for name, field in model.model_fields.items() if name != "kind"]
    table = markdown_table(("field", "type", "default", "what it is"), rows) if rows else "No fields."
    return f"## {_title(model)}\n\n{re.sub(r'  +', ' ', told)}\n\n{table}\n"


def _title(model: type[Frozen]) -> str:
    kind = model.model_fields.get("kind")
    if kind is None:
        return model.__name__
    base = next(parent for parent in model.__mro__ if Plugin in parent.__bases__)
    return f"{_ROOMS.get(base.__name__, model.__module__.split('.')[1])}: `kind: {kind.default}`"


def _row(name: str, field: FieldInfo) -> list[str]:
    signs = ((*_SIGNS[type(rule)], rule) for rule in field.metadata if type(rule) in _SIGNS)
    rules = [f"{sign} {getattr(rule, bound)}" for sign, bound, rule in signs]
    kinds = _inner(field)
    if kinds and "kind" in kinds[0].model_fields:
        told = "list of " if get_origin(field.annotation) is tuple else ""
        told += "one of " + ", ".join(f"`{kind.model_fields['kind'].default}`" for kind in kinds)
        told += " or none" if type(None) in get_args(field.annotation) else ""
    else:
        told = ", ".join([_type(field.annotation), *rules])
    default = "required" if field.default is PydanticUndefined else _default(field.default)
    return [
        f"`{name}`",
        told,
        default,
        (
            field.description
            or ("" if not kinds else "see below" if "kind" in kinds[0].model_fields else f"see {kinds[0].__name__}")
        ).replace("|", "\\|"),
    ]


def _type(annotation: object) -> str:
    if annotation is type(None):
        return "none"
    arguments, origin = get_args(annotation), get_origin(annotation)
    if not arguments:
        return str(getattr(annotation, "__name__", annotation))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "mapping"
    if origin in (tuple, Annotated):
        return ("list of " if origin is tuple else "") + _type(arguments[0])
    return " or ".join(_type(argument) for argument in arguments)


def _default(value: object) -> str:
    if isinstance(value, Plugin):
        return f"`{value.kind_name()}`"
    if isinstance(value, Frozen):
        changed = value.model_dump(exclude_defaults=True)
        return ", ".join(f"`{name}: {entry}`" for name, entry in changed.items()) or "its defaults"
    if value is None or value == NO_CAP:
        return "none"
    if value in ("", (), {}):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("|", "\\|")
