"""Templates of Prefect's and MLflow's empty databases, made once per machine: migrations take seconds."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from models.core.cache import once
from models.core.subprocesses import child_environment

_FILE = "database.sqlite"
_PREFECT = """
import asyncio
from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

async def make():
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)

asyncio.run(make())
"""


def lay_prefect_database(file: Path) -> bool:
    """Copy an empty database of the installed Prefect to where none is; whether the schema there is the installed one's.

    Where it is, Prefect need not look for migrations: that takes a second of a server's start.
    """
    empty = _made(f"prefect-{version('prefect')}", _make_prefect)
    if empty is None:
        return False
    _copy(empty, file)
    return _revision(file) == _revision(empty)


def lay_mlflow_database(file: Path) -> None:
    """Copy an empty database of the installed MLflow to where none is."""
    if not file.exists() and (empty := _made(f"mlflow-{version('mlflow')}", _make_mlflow)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)  # where Prefect's server is elsewhere, nobody has made it yet
        _copy(empty, file)


def _made(name: str, make: Callable[[Path], None]) -> Path | None:
    """Return the empty database; None where it cannot be kept, or made: then the library makes its tables itself."""
    with suppress(OSError, subprocess.CalledProcessError):
        return once(f"empty/{name}", make) / _FILE
    return None


def _make_prefect(folder: Path) -> None:
    place = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / _FILE}",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_DATABASE_MIGRATE_ON_START": "true",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "true",
    }
    subprocess.run([sys.executable, "-c", _PREFECT], env=child_environment(place), check=True, capture_output=True)


def _make_mlflow(folder: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{folder / _FILE}").search_experiments()


def _copy(empty: Path, file: Path) -> None:
    """Copy a database to where none is, whole or not at all; whoever comes second leaves what is there."""
    if file.exists():
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(empty)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def _revision(file: Path) -> str | None:
    """Return which version a database's tables are of; None where they say nothing."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(found[0]) if found else None
