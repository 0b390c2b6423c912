"""Allowlist of files that an experiment may name (NINEFOLD_FILES): a worker must not read its secrets for a stranger."""

import os
from pathlib import Path
from typing import Final

from models.core.errors import ConfigError

FolderOrName: Final = "a folder, or a name"  # annotation of a text that is either

ALLOWED = "NINEFOLD_FILES"  # of a worker: folders, separated as in PATH, in which all that experiments name lies


def check_path(name: str, path: Path) -> None:
    """Raise ConfigError if a file or folder that a parameter names lies outside of NINEFOLD_FILES, where that is set."""
    allowed = [Path(place).resolve() for place in os.environ.get(ALLOWED, "").split(os.pathsep) if place]
    if not allowed:
        return
    try:
        path = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a zero in it: no path
        return
    if not any(path.is_relative_to(place) for place in allowed):
        folders = os.pathsep.join(map(str, allowed))
        raise ConfigError(f"{name} names {path}, and experiments here may name only what lies in {folders} ({ALLOWED})")


def exists(text: str) -> bool:
    """Whether something is at a text that may be a path; links are followed."""
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
