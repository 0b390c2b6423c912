"""Resolve relative paths in a parameter file against the folder of that file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from models.core.allowlist import FolderOrName
from models.core.registry import Frozen, OneOf, plugins_of


class FieldsOf(NamedTuple):
    """Annotation of a mapping from fields of a parameter file, as `a.b`, to their values (or to several values each)."""

    cls: type[Frozen]


def rooted(settings: Mapping[str, Any], cls: type[Frozen], folder: Path) -> dict[str, Any]:
    """Return settings whose relative paths, wherever the class has a field for one, begin with the folder.

    A field for a folder or a name holds a path if it begins with `./` or `../`, or if there is such a folder beside the
    file. Where a plugin's `kind` is not said, a field is one for paths if any plugin has it so.
    """
    return {name: _in_field(cls, name, value, folder) for name, value in settings.items()}


def _in_field(cls: type[Frozen], name: str, value: Any, folder: Path) -> Any:  # noqa: ANN401
    field = cls.model_fields.get(name)
    return value if field is None else _rooted(value, field.annotation, field.metadata, folder)


def _rooted(value: Any, kind: Any, marks: Sequence[Any], folder: Path) -> Any:  # noqa: ANN401
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _rooted(value, inner[0], inner[1:], folder)
    if origin in (Union, UnionType):
        changed = (_rooted(value, each, marks, folder) for each in inner)
        return next((found for found in changed if found != value), value)
    if isinstance(value, list) and origin in (tuple, list):
        return [_rooted(each, inner[0], (), folder) for each in value]
    if isinstance(value, dict):
        return _in_mapping(value, kind, marks, folder)
    if isinstance(value, str) and (kind is Path or FolderOrName in marks):
        return _joined(value, folder) if kind is Path else _folder_or_name(value, folder)
    return value


def _in_mapping(value: dict[str, Any], kind: Any, marks: Sequence[Any], folder: Path) -> dict[str, Any]:  # noqa: ANN401
    for mark in marks:
        if isinstance(mark, FieldsOf):
            return {name: _in_place(mark.cls, name.split("."), given, folder) for name, given in value.items()}
        if isinstance(mark, OneOf):
            return _in_plugin(value, plugins_of(kind), folder)
    if get_origin(kind) is dict:
        return {name: _rooted(each, get_args(kind)[1], (), folder) for name, each in value.items()}
    return rooted(value, kind, folder) if isinstance(kind, type) and issubclass(kind, Frozen) else value


def _in_plugin(value: dict[str, Any], plugins: Sequence[type[Frozen]], folder: Path) -> dict[str, Any]:
    named = [plugin for plugin in plugins if plugin.model_fields["kind"].default == value.get("kind")]
    found = dict(value)
    for plugin in named or plugins:
        changed = rooted(value, plugin, folder)
        found |= {name: given for name, given in changed.items() if given != value[name]}
    return found


def _in_place(cls: type[Frozen], place: list[str], value: Any, folder: Path) -> Any:  # noqa: ANN401
    """Return what is given for a field `a.b` of a class; of a list, as grids have them, every value."""
    if isinstance(value, list):
        return [_in_place(cls, place, each, folder) for each in value]
    nested = value
    for name in reversed(place[1:]):
        nested = {name: nested}
    found = _in_field(cls, place[0], nested, folder)
    for name in place[1:]:
        found = found[name]
    return found


def _joined(value: str, folder: Path) -> str:
    return value if not value or value.startswith("~") else str(folder / value)


def _folder_or_name(value: str, folder: Path) -> str:
    if value and (folder / value).is_dir():
        return str(folder / value)
    # one that is missing must not come to look like a name
    return os.path.join(".", folder, value) if value.startswith(("./", "../")) else value
