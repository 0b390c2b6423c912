"""Machine-wide cache of downloads and conversions ($NINEFOLD_CACHE, by default ~/.cache/ninefold)."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from models.core.errors import ConfigError


def cache_folder() -> Path:
    """Return the folder, made if missing."""
    folder = Path(os.environ.get("NINEFOLD_CACHE") or Path.home() / ".cache" / "ninefold")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def once(name: str, make: Callable[[Path], None]) -> Path:
    """Return `cache_folder()/name`; if missing, let `make` fill a temporary folder and rename it into place.

    Whoever comes second, after a crash or at the same time, finds either nothing or the whole.
    """
    final = cache_folder() / name
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "content"
        made.mkdir()
        make(made)
        try:
            made.rename(final)
        except OSError:
            if not final.exists():  # another process was first: its copy is as good
                raise
    return final


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return `sha256_of` a file that is asked about often, read again only when it was modified."""
    return _sha256_as_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_as_of(path: Path, _modified: int) -> str:
    return sha256_of(path)


def check_sha256(path: Path, expected: str) -> None:
    """Raise ConfigError, and remove the file, if its SHA-256 is another."""
    if (found := sha256_of(path)) != expected:
        set_aside(path)
        raise ConfigError(
            f"{path.name} has SHA-256 {found}, expected {expected}: it was set aside; run again to fetch it"
        )


def set_aside(path: Path) -> None:
    """Rename a file whose bytes are not what they should be, so that it is fetched again."""
    shutil.move(path, path.with_suffix(".damaged"))
