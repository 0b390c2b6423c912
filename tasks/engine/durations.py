"""Durations of stages, kept beside their artifacts so that cached runs report them."""

import json
from contextlib import suppress

from tasks.engine.store import store

_FOLDER = "seconds"


def keep(key: str, seconds: float) -> None:
    """Keep how many seconds the stage of a cache key took; a store that is full or read-only is no reason to fail."""
    with suppress(OSError):
        store().fs.makedirs(f"{store().root}/{_FOLDER}", exist_ok=True)
        store().fs.pipe_file(_file(key), json.dumps(round(seconds, 3)).encode())


def kept(key: str) -> float | None:
    """Return how many seconds the stage of a cache key took; None where nobody has kept it."""
    with suppress(OSError, ValueError):
        return float(json.loads(store().fs.cat_file(_file(key))))
    return None


def _file(key: str) -> str:
    return f"{store().root}/{_FOLDER}/{key}.json"
