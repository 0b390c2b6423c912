"""Allowlist of files that an experiment may name (NINEFOLD_FILES): a worker must not read its secrets for a stranger."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from models.core.errors import ConfigError

FolderOrName: Final = "a folder, or a name"  # annotation of a text that is either

ALLOWED = "NINEFOLD_FILES"  # of a worker: folders, separated as in PATH, in which all that experiments name lies


def check_places(parameters: Mapping[str, object]) -> None:
    """Raise ConfigError naming the parameter that is a file or folder outside of NINEFOLD_FILES, where that is set.

    Links are followed. A text is a path if there is something at it.
    """
    allowed = [Path(place).resolve() for place in os.environ.get(ALLOWED, "").split(os.pathsep) if place]
    if not allowed:
        return
    for name, value in parameters.items():
        for path in _paths(value) if name != "kind" else ():
            if not any(path.is_relative_to(place) for place in allowed):
                folders = os.pathsep.join(map(str, allowed))
                raise ConfigError(
                    f"{name} names {path}, and experiments here may name only what lies in {folders} ({ALLOWED})"
                )


def _paths(value: object) -> Iterator[Path]:
    """Yield all the places that a value names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, Path | str) and str(value):
        try:
            path = Path(value).expanduser().resolve()
            if isinstance(value, Path) or path.exists():
                yield path
        except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a zero in it: no path
            return
